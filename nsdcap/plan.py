"""Which cells of a run to hand to SLURM now, which wait for which, and which stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from nsdcap.jobs import NEVER, OWN_FAULT, Task
from nsdcap.paths import Cell


@dataclass(frozen=True)
class Known:
    """A cell as it stands: done, running, pending, failed, stale, missing, or unknown where the queue was
    not asked; of a failed one the cause; its last job, if it was ever submitted; ``outdated`` if that
    began with other settings (of a done one: and still runs or waits)."""

    cell: Cell
    word: str
    reason: str = ""
    cause: str = ""
    task: Task | None = None
    outdated: bool = False


@dataclass
class Plan:
    """``submit`` in the order of the stages; ``withdraw`` are cells whose job waits for one that will
    not do, or computes what is outdated, to be cancelled first (most are submitted anew). ``kept`` are
    running or pending already. ``refused`` failed by themselves and are not tried again; ``blocked``
    need what is neither done nor on its way, named."""

    submit: list[Cell] = field(default_factory=list)
    withdraw: list[Cell] = field(default_factory=list)
    kept: list[Cell] = field(default_factory=list)
    done: list[Cell] = field(default_factory=list)
    refused: list[Known] = field(default_factory=list)
    blocked: list[tuple[Cell, list[Cell]]] = field(default_factory=list)


def make(
    cells: Iterable[Cell], known: dict[Cell, Known], inputs: Callable[[Cell], list[Cell]], *,
    retry_failed: bool, retries: int,
) -> Plan:  # fmt: skip
    """Settle every cell; ``cells`` in the order of the stages, ``known`` also of what they need.

    A failed cell is tried again by itself where the cluster was at fault (its node failed, it was
    cancelled or killed); where the cell was (an exception, memory, time) only with ``retry_failed``,
    and not after ``retries`` more tries. The last cell of a run, aggregate, needs its inputs to have
    ended, not to be done: it is submitted while any of them is on its way.
    """
    plan = Plan()
    coming: set[Cell] = set()  # done, or on its way in a job that stands
    anew: set[Cell] = set()
    chosen = list(cells)
    for (
        other,
        state,
    ) in known.items():  # of stages that are not chosen: those that stand as they are
        if state.word == "done" or (on_its_way(state) and not state.outdated):
            coming.add(other)
    coming -= set(chosen)
    # it would put its result in the place of the one that is wanted
    plan.withdraw += [other for other, s in known.items() if s.word == "done" and s.outdated]
    for cell in chosen:
        state = known[cell]
        needed = [other for other in inputs(cell) if known[other].word != "done"]
        lacking = [other for other in needed if other not in coming]
        last = cell.stage == "aggregate"
        if state.word == "done":
            plan.done.append(cell)
            coming.add(cell)
            continue
        # what runs on inputs that are made anew has begun too early, aggregate after failures above all
        waits = state.word == "pending"
        stands = (
            on_its_way(state)
            and not state.outdated
            and not anew.intersection(needed)
            and not (waits and lacking and not last)
            and not (waits and state.task is not None and state.task.reason in NEVER)
        )
        if stands:
            plan.kept.append(cell)
            coming.add(cell)
            continue
        if on_its_way(state):
            plan.withdraw.append(cell)
        if lacking and not (last and (len(lacking) < len(needed))):
            plan.blocked.append((cell, lacking))
        elif state.word == "failed" and not may_retry(state, retry_failed, retries):
            plan.refused.append(state)
        else:
            plan.submit.append(cell)
            anew.add(cell)
            coming.add(cell)
    return plan


def on_its_way(state: Known) -> bool:
    """Whether a job of the cell runs or waits, or may do so where the queue was not asked."""
    return state.word in ("running", "pending", "unknown")


def may_retry(state: Known, retry_failed: bool, retries: int) -> bool:
    """Whether a failed cell is submitted again."""
    if state.cause not in OWN_FAULT:
        return True
    return retry_failed and (state.task is None or state.task.tries <= retries)


@dataclass(frozen=True)
class Need:
    """What cells of one array wait for: ``indices`` within it, ``on`` the cells, none of them done."""

    indices: tuple[int, ...]
    on: tuple[Cell, ...]


def needs(cells: Sequence[Cell], waits: Callable[[Cell], list[Cell]]) -> list[Need]:
    """The cells of an array, put together where they wait for the same cells."""
    groups: dict[tuple[Cell, ...], list[int]] = {}
    for index, cell in enumerate(cells):
        groups.setdefault(tuple(waits(cell)), []).append(index)
    return [Need(tuple(indices), on) for on, indices in groups.items()]


def chunks(cells: Sequence[Cell], size: int) -> list[list[Cell]]:
    """Cells in arrays of at most ``size``, as even as can be."""
    count = -(-len(cells) // size)
    ends = [len(cells) * number // count for number in range(count + 1)]
    return [list(cells[a:b]) for a, b in pairwise(ends)]
