"""The pictures of one cell shared out over several processes, one a GPU.

The process that runs a cell starts the others; each computes its share of the cell's parts (see ``parts``),
which are on disk when they end. What is then left is what a cell that goes on after its parts does in any
case: it finds all of them and puts them together. So one process or many, killed in between or not, the
same function gives the result.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import logging
import os
import signal
import sys
import tempfile
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nsdcap.errors import DataError, DiskError, UsageError
from nsdcap.parts import is_kept, keep, keep_only, kept
from nsdcap.paths import Cell, parts_folder, write_json
from nsdcap.progress import track
from nsdcap.provenance import used

if TYPE_CHECKING:
    from accelerate import PartialState

    from nsdcap.config import Config

Work = Mapping[str, Callable[[], Mapping[str, Any]]]
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_crew: PartialState | None = None  # in a process that has but a share to do


class ShareDone(Exception):
    """This process has done its share; the one that started it puts the parts together."""


def in_order(out: Path, cell: Cell, work: Work) -> Iterator[dict[str, np.ndarray]]:
    """The parts of a cell, in the order of ``work``, which computes each by its name where it is not kept.

    Parts of other names, which a run with another batch left, are thrown away. Where all are kept nothing is
    computed, so models are best loaded by ``work``.

    Raises
    ------
    ShareDone
        In a process that ``share_out`` has started, after its own share of the parts that were missing.
    """
    if _crew is not None:
        _do_share(_crew, out, cell, work)
    if not _told(out, cell, 0).exists():  # else they were shared out just now
        _go_on(out, cell, work)
    for name, compute in work.items():
        yield kept(out, cell, name, compute)


def _go_on(out: Path, cell: Cell, work: Work) -> None:
    if before := keep_only(out, cell, work):
        print(f"{cell}: goes on after {before} finished parts", flush=True)


def _do_share(crew: PartialState, out: Path, cell: Cell, work: Work) -> None:
    missing = [name for name in work if not is_kept(out, cell, name)]
    number = crew.process_index
    if number == 0:
        _go_on(out, cell, work)
    crew.wait_for_everyone()  # all have looked before the first part is written
    with crew.split_between_processes(missing) as mine:
        for name in track(mine, f"{cell}, process {number + 1} of {crew.num_processes}"):
            keep(out, cell, name, work[name]())
    write_json(_told(out, cell, number), {"missing": missing, "mine": mine, "used": used()})
    raise ShareDone


def share_out(settings: Config, out: Path, cell: Cell, processes: int) -> None:
    """Compute the parts of a cell by so many processes of this machine, and wait for them.

    GPUs are taken in the order in which they are visible, one a process; on the CPU the threads are divided.
    Memory: that of the cell, once a process.

    Raises
    ------
    DataError, UsageError, DiskError
        As one of the processes did; the others are ended. Or there are fewer GPUs.
    RuntimeError
        One ended otherwise: its last line, and its traceback. Or parts are missing or were done twice.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from nsdcap.preflight import freeze

    _check_gpus(settings, processes)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # told by ours
    for number in range(processes):
        _told(out, cell, number).unlink(missing_ok=True)
    file = freeze(settings, out)
    launch = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex,
        rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", max_restarts=0, monitor_interval=0.1,
        start_method="spawn", local_addr="127.0.0.1",  # a machine's own name may be unknown
    )  # fmt: skip
    with _own_signals(), _threads_for(processes):
        _start_tracker()
        try:
            row = (str(out), cell.stage, cell.subject, cell.layer, str(file), os.getpid())
            elastic_launch(launch, share)(*row)
        except ChildFailedError as error:
            _explain(out, cell, processes, error)
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            sys.exit(128 + error.sigval)
    _check(out, cell, processes)


def share(
    out: str, stage: str, subject: int | None, layer: int | None, file: str, parent: int
) -> None:
    """One process's share of a cell, by the settings in ``file``; rank and number from the environment."""
    global _crew
    if sys.platform == "linux":  # whoever kills the cell's process kills these
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit("the process that began this cell is gone")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # the cell's process gets it, too, and decides
    from datetime import timedelta

    from accelerate import PartialState

    from nsdcap import config
    from nsdcap.cells import Ledger
    from nsdcap.devices import choose_device
    from nsdcap.stages import STAGES

    cell, rank = Cell(stage, subject, layer), int(os.environ["RANK"])
    try:
        settings = config.load(Path(file))
        cpu = choose_device(settings.models.device).type == "cpu"
        _crew = PartialState(cpu=cpu, timeout=timedelta(days=1))
        ledger = Ledger(settings, Path(out))
        module, name = STAGES[stage].function.split(":")
        function = getattr(importlib.import_module(module), name)
        with tempfile.TemporaryDirectory() as folder:
            function(cell, settings, ledger.nsd, ledger.out, Path(folder) / "unused")
        raise RuntimeError(f"stage {stage} is not shared out")
    except ShareDone:
        return
    except Exception as error:
        told = {"kind": type(error).__name__, "message": str(error)}
        told["traceback"] = traceback.format_exc()
        with suppress(OSError):  # the disk may be what it is about
            write_json(_told(Path(out), cell, rank), told)
        sys.exit(DiskError.exit_code if isinstance(error, DiskError) else 1)
    finally:
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()


def shares(out: Path, cell: Cell) -> list[dict[str, Any]]:
    """What each process used that has just done its share of a cell, see ``provenance.used``."""
    files = sorted(
        parts_folder(out, cell).glob("process*.json"), key=lambda file: (len(file.name), file.name)
    )
    return [told["used"] for file in files if "used" in (told := json.loads(file.read_text()))]


def _told(out: Path, cell: Cell, number: int) -> Path:
    """Where a process says what it has done, or what stopped it."""
    return parts_folder(out, cell) / f"process{number}.json"


def _explain(out: Path, cell: Cell, processes: int, error: Any) -> None:
    """Raise what stopped the first process that says so."""
    for number in range(processes):
        file = _told(out, cell, number)
        told = json.loads(file.read_text()) if file.exists() else {}
        if "kind" in told:
            for kind in (DataError, UsageError, DiskError):
                if told["kind"] == kind.__name__:
                    raise kind(told["message"]) from None
            raise RuntimeError(
                f"process {number + 1} of {processes}:\n{told['traceback'].strip()}"
            ) from None
    number, failure = error.get_first_failure()
    if failure.exitcode == -signal.SIGINT:
        raise KeyboardInterrupt from None
    if failure.exitcode == DiskError.exit_code:  # and there was no room to say more
        raise DiskError(f"{parts_folder(out, cell)}: cannot be written; make room there, then give the same "
                        "command: it goes on after what is finished")  # fmt: skip
    raise RuntimeError(
        f"process {number + 1} of {processes} was ended: {failure.message or failure.signal_name()}"
    ) from None


def _check_gpus(settings: Config, processes: int) -> None:
    import torch

    from nsdcap.devices import choose_device

    device, seen = choose_device(settings.models.device), torch.cuda.device_count()
    if device.type == "cuda" and (processes > seen or device.index is not None):
        raise UsageError(
            f"{processes} processes, one a GPU: {seen} GPUs are visible and models.device is "
            f"{settings.models.device!r}; expected at most as many processes, and auto or cuda"
        )


def _check(out: Path, cell: Cell, processes: int) -> None:
    """Whether each part that was missing was done once, and is there."""
    files = [_told(out, cell, number) for number in range(processes)]
    told = [json.loads(f.read_text()) if f.exists() else {"missing": [], "mine": []} for f in files]
    missing = told[0]["missing"]
    done = [name for one in told for name in one["mine"]]
    gaps = [name for name in missing if not is_kept(out, cell, name)]
    alike = all(one["missing"] == missing for one in told)
    if gaps or not alike or sorted(done) != sorted(missing):
        raise RuntimeError(
            f"{cell}: of {len(missing)} parts {len(gaps)} are missing and {len(done) - len(set(done))} were "
            f"done twice by {processes} processes; was its folder changed meanwhile? Start it again"
        )


def _start_tracker() -> None:
    """Start Python's process that clears up after others, deaf to the signal that SLURM sends to all of a
    task's processes before its time limit: it would die of it, and its successor complain."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})


@contextmanager
def _own_signals() -> Iterator[None]:
    """Put back the handlers that torch replaces."""
    kept_handlers = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    }
    try:
        yield
    finally:
        for number, handler in kept_handlers.items():
            signal.signal(number, handler)


@contextmanager
def _threads_for(processes: int) -> Iterator[None]:
    """Divide the numerical libraries' threads among processes that are started in the block."""
    before = {name: os.environ.get(name) for name in THREADS}
    try:
        for name, value in before.items():
            count = int(value) if value else os.cpu_count() or 1
            os.environ[name] = str(max(1, count // processes))
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
