"""Which cells go to SLURM: by a small run whose cells stand in every way."""

from __future__ import annotations

from pathlib import Path

import pytest

from nsdcap.jobs import NEVER, Task
from nsdcap.paths import Cell
from nsdcap.plan import Known, chunks, make, needs

PREPARE, DECODE = [Cell("prepare", s) for s in (1, 2)], [Cell("decode", s) for s in (1, 2)]
LAST = Cell("aggregate")
CELLS = [*PREPARE, *DECODE, LAST]


def inputs(cell: Cell) -> list[Cell]:
    """decode of a subject needs its prepare; aggregate needs everything."""
    if cell.stage == "aggregate":
        return [*PREPARE, *DECODE]
    return [Cell("prepare", cell.subject)] if cell.stage == "decode" else []


def task(cell: Cell, state: str = "", reason: str = "", tries: int = 1) -> Task:
    return Task(cell, "7", 0.0, Path("log"), state, reason, tries=tries)


def planned(words: dict[Cell, Known | str], retry: bool = False, cells=CELLS):
    known = {}
    for cell in CELLS:
        word = words.get(cell, "missing")
        known[cell] = word if isinstance(word, Known) else Known(cell, word)
    return make(cells, known, inputs, retry_failed=retry, retries=2)


def failed(cell: Cell, cause: str, tries: int = 1) -> Known:
    return Known(cell, "failed", "", cause, task(cell, tries=tries))


def test_nothing_is_done_all_is_submitted_in_order():
    assert planned({}).submit == CELLS


def test_done_is_skipped_and_what_runs_is_not_doubled():
    plan = planned({PREPARE[0]: "done", PREPARE[1]: "running", DECODE[1]: "pending"})
    assert plan.submit == [DECODE[0], LAST]
    assert plan.done == [PREPARE[0]]
    assert plan.kept == [PREPARE[1], DECODE[1]]


@pytest.mark.parametrize("cause", ["node", "killed", "cancelled", "preempted", "lost"])
def test_the_clusters_fault_is_tried_again_by_itself(cause):
    assert PREPARE[0] in planned({PREPARE[0]: failed(PREPARE[0], cause, tries=9)}).submit


@pytest.mark.parametrize("cause", ["exception", "memory", "time"])
def test_its_own_fault_is_tried_again_on_demand_and_not_for_ever(cause):
    words = {PREPARE[0]: failed(PREPARE[0], cause)}
    plan = planned(words)
    assert [state.cell for state in plan.refused] == [PREPARE[0]]
    assert plan.blocked == [(DECODE[0], [PREPARE[0]])]
    assert plan.submit == [PREPARE[1], DECODE[1], LAST]
    assert planned(words, retry=True).submit == CELLS
    third = {PREPARE[0]: failed(PREPARE[0], cause, tries=3)}
    assert [state.cell for state in planned(third, retry=True).refused] == [PREPARE[0]]


def test_a_pending_cell_is_submitted_anew_when_its_input_is():
    """Its job waits for the input's old job, which has failed."""
    words = {PREPARE[0]: failed(PREPARE[0], "node"), DECODE[0]: "pending", LAST: "pending"}
    plan = planned(words)
    assert plan.withdraw == [DECODE[0], LAST]
    assert plan.submit == CELLS


def test_a_pending_cell_that_can_never_start_is_withdrawn():
    stuck = Known(DECODE[0], "pending", NEVER[0], "", task(DECODE[0], "PENDING", NEVER[0]))
    plan = planned({PREPARE[0]: "done", DECODE[0]: stuck})
    assert plan.withdraw == [DECODE[0]]
    assert DECODE[0] in plan.submit
    blocked = planned({PREPARE[0]: failed(PREPARE[0], "exception"), DECODE[0]: stuck})
    assert blocked.withdraw == [DECODE[0]]
    assert blocked.blocked == [(DECODE[0], [PREPARE[0]])]


def test_what_runs_with_other_settings_is_begun_anew():
    old = Known(PREPARE[0], "running", "", "", task(PREPARE[0], "RUNNING"), outdated=True)
    plan = planned({PREPARE[0]: old})
    assert plan.withdraw == [PREPARE[0]]
    assert plan.submit == CELLS


def test_what_runs_while_its_inputs_are_begun_anew_is_too():
    """aggregate, above all: it has begun after failures and would only list them."""
    words = {
        **dict.fromkeys([PREPARE[1], *DECODE], "done"),
        PREPARE[0]: failed(PREPARE[0], "node"),
        LAST: Known(LAST, "running", "", "", task(LAST, "RUNNING")),
    }
    plan = planned(words)
    assert plan.withdraw == [LAST]
    assert plan.submit == [PREPARE[0], LAST]


@pytest.mark.parametrize("cells", [CELLS, DECODE], ids=["chosen", "an input"])
def test_a_job_with_other_settings_of_a_done_cell_is_taken_back(cells):
    """Else it would put its result in the place of the one that is wanted."""
    late = Known(PREPARE[0], "done", task=task(PREPARE[0], "PENDING"), outdated=True)
    plan = planned({PREPARE[0]: late, PREPARE[1]: "done"}, cells=cells)
    assert plan.withdraw == [PREPARE[0]]
    assert plan.submit == [cell for cell in cells if cell.stage != "prepare"]


def test_what_waits_with_other_settings_is_submitted_anew():
    old = Known(PREPARE[0], "pending", "", "", task(PREPARE[0], "PENDING"), outdated=True)
    assert planned({PREPARE[0]: old}).withdraw == [PREPARE[0]]
    # and is not what a stage by itself may wait for
    assert planned({PREPARE[0]: old}, cells=DECODE).blocked[0] == (DECODE[0], [PREPARE[0]])


def test_a_stage_by_itself_needs_its_inputs_done_or_on_their_way():
    words = {PREPARE[0]: "done"}
    plan = planned(words, cells=DECODE)
    assert plan.submit == [DECODE[0]]
    assert plan.blocked == [(DECODE[1], [PREPARE[1]])]
    assert planned({**words, PREPARE[1]: "running"}, cells=DECODE).submit == DECODE


def test_aggregate_runs_after_failures_but_not_after_nothing():
    """It refuses gaps by itself, with a list; where nothing is on its way it would only do that."""
    bad = {cell: failed(cell, "exception") for cell in PREPARE}
    assert planned(bad).submit == []
    assert planned({PREPARE[0]: bad[PREPARE[0]]}).submit[-1] == LAST


def test_cells_of_an_array_are_put_together_by_what_they_wait_for():
    groups = needs(
        [Cell("encode", s, n) for s in (1, 2) for n in range(3)], lambda c: [PREPARE[c.subject - 1]]
    )
    assert [(need.indices, need.on) for need in groups] == [
        ((0, 1, 2), (PREPARE[0],)),
        ((3, 4, 5), (PREPARE[1],)),
    ]


@pytest.mark.parametrize(("n", "size"), [(1, 10), (10, 10), (11, 10), (1000, 101)])
def test_chunks_cover_all_in_order(n, size):
    cells = [Cell("encode", 1, number) for number in range(n)]
    parts = chunks(cells, size)
    assert [cell for part in parts for cell in part] == cells
    assert max(map(len, parts)) <= size
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
