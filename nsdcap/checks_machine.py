"""The doctor's rows of this machine, of the folder of the results, and of what tasks run in."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nsdcap import layout, room
from nsdcap.cells import Ledger
from nsdcap.checks import Row, broken, look
from nsdcap.config import Config
from nsdcap.containers import MissingError, visible_gpus
from nsdcap.cost import CORE_FLOPS, Cost, Costs
from nsdcap.devices import array_library, choose_device
from nsdcap.dry_run import duration, size
from nsdcap.errors import NsdcapError, UsageError, bound
from nsdcap.memory import free_host_memory
from nsdcap.paths import Cell, disk_error
from nsdcap.stages import SOLVERS, STAGES

LATE = 2.0  # seconds by which a folder's clock may be off
PATIENCE = 86400.0  # seconds on the CPU that are not worth a word


# --- the folder of the results --------------------------------------------------------------------


def writable(out: Path) -> float:
    """Try that files can be written in ``out``, or where it will be made; nothing stays. Returns the seconds
    by which its file system's clock is ahead of this host's.

    Raises
    ------
    DiskError
        There is no room, or the disk fails.
    UsageError
        It cannot be written: why.
    """
    try:
        with tempfile.TemporaryFile(dir=_nearest(out)) as file:
            begun = time.time()
            file.write(b"nsdcap")
            os.fsync(file.fileno())
            stamp, ended = os.fstat(file.fileno()).st_mtime, time.time()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise disk_error(out / "config.toml", error) or error from None
        raise UsageError(
            f"--out {out}: cannot be written ({error.strerror}); name another folder{bound()}"
        ) from None
    # a file system's clock may tick only every few milliseconds
    return stamp - begun if stamp < begun else max(stamp - ended, 0.0)


def folder_rows(out: Path) -> Iterator[Row]:
    """Write access, and the clock."""
    late: list[float] = []

    def write() -> str:
        layout.check(out)
        late.append(writable(out))
        return f"{out}"

    yield look("--out can be written", write, "a folder that can be written")
    if late:
        told, expected = f"{abs(late[0]):.1f} s from this host's", f"within {LATE:.0f} s"
        if abs(late[0]) <= LATE:
            yield Row("clock of --out", "ok", told, expected)
        else:  # times of files are held against those of jobs
            yield Row("clock of --out", "note", told, expected, "set both by NTP: what has failed is told "
                      "from what runs by times")  # fmt: skip


def to_run(ledger: Ledger, cells: Iterable[Cell]) -> list[tuple[Cell, Cost]]:
    """The cells that are not done, with what they cost. Raises DataError where sizes cannot be told."""
    costs = Costs(ledger)
    return [
        (state.cell, costs.of(state.cell)) for state in ledger.states(cells) if state.word != "done"
    ]


def room_rows(
    ledger: Ledger | None, cells: Iterable[Cell], out: Path | None, elsewhere: bool
) -> Iterator[Row]:
    """Disk and, unless tasks run ``elsewhere``, memory against the estimate."""
    try:
        if ledger is None:
            raise MissingError("NSD is not there")
        waiting = to_run(ledger, cells)
    except NsdcapError:
        yield Row(
            "disk and memory", "note", "not estimated: sizes follow from data and models, see there"
        )
        return
    if out is not None:
        wanted = room.needed(ledger, cells)
        row = look(
            "disk", lambda: room.refuse(out, wanted), f"{size(wanted)} for {len(waiting)} cells"
        )
        yield replace(row, verdict="missing") if row.error else row
    if elsewhere or not waiting:
        return
    cell, cost = max(waiting, key=lambda pair: pair[1].memory_bytes)
    free, whole = (
        free_host_memory(),
        float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
    )
    told, expected = f"{size(free)} free of {size(whole)}", f"{size(cost.memory_bytes)} for {cell}"
    if free >= cost.memory_bytes:
        yield Row("memory", "ok", told, expected)
    else:
        word = "note" if whole >= cost.memory_bytes else "missing"
        yield Row("memory", word, told, expected, "end what else runs, smaller batches and blocks, or "
                  "another machine")  # fmt: skip


def _nearest(out: Path) -> Path:
    """The folder itself, or the one above it that is there."""
    return next(place for place in (out, *out.absolute().parents) if place.exists())


# --- libraries and GPUs ---------------------------------------------------------------------------


def installation(words: Sequence[str], what: str, mend: str) -> dict[str, Any]:
    """What ``nsdcap.imports`` tells of a Python, given the ``words`` that run it.

    Raises
    ------
    MissingError
        It cannot be run, has another version of nsdcap, or something cannot be imported: what, and why.
    """
    from nsdcap import __version__

    done = subprocess.run([*words, "-m", "nsdcap.imports"], capture_output=True, text=True)
    try:
        told = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise MissingError(
            f"{what}: ended with {done.returncode}: {said[-1][:200]}; {mend}"
        ) from None
    if told["nsdcap"] != __version__:
        raise MissingError(
            f"{what}: found nsdcap {told['nsdcap']}, expected {__version__}, as here; {mend}"
        )
    if told["failed"]:
        name, why = next(iter(told["failed"].items()))
        raise MissingError(
            f"{what}: {len(told['failed'])} modules cannot be imported, {name}: {why}; {mend}"
        )
    return told


def library_rows(
    words: Sequence[str], what: str, mend: str, settings: Config, stages: Iterable[str],
    elsewhere: bool, seconds: float,
) -> Iterator[Row]:  # fmt: skip
    """What a Python can import, and its GPUs, unless tasks run ``elsewhere`` and there are none here;
    ``seconds`` the models' and solvers' work would take on this machine's CPU."""
    expected = "all libraries and modules can be imported"
    try:
        told = installation(words, what, mend)
    except MissingError as error:
        yield broken(what, error, expected)
        return
    some = ("torch", "transformers", "diffusers", "numpy")
    versions = ", ".join(f"{name} {told['versions'].get(name, '?')}" for name in some)
    yield Row(what, "ok", f"Python {told['python']}, {versions}", expected)
    stages = list(stages)
    if any(STAGES[stage].weights for stage in stages):
        yield torch_row(
            settings.models.device, told["torch"], len(visible_gpus()), elsewhere, seconds
        )
    if any(stage in SOLVERS for stage in stages):
        yield cupy_row(settings.ridge.device, told["cupy"], len(visible_gpus()), elsewhere)


def torch_row(
    wanted: str, told: dict[str, Any], there: int, elsewhere: bool, seconds: float
) -> Row:
    """Of torch, as ``imports`` tells it: whether it computes on the GPUs, of which ``there`` are visible."""
    check, expected = "GPU for models", f"models.device = {wanted}"
    built = f"built for CUDA {told['cuda']}" if told["cuda"] else "built without CUDA"
    found = f"torch {told['version']}, {built}, sees {len(told['gpus'])} GPUs"
    if wanted == "cpu":
        return Row(check, "ok", f"torch {told['version']}, not asked for", expected)
    if told["gpus"]:
        found = f"torch {told['version']}, {built}, on {', '.join(told['gpus'])}"
        return _computes(check, found, told["fails"], expected)
    return _without(check, found, expected, wanted != "auto", there, elsewhere, "torch", seconds)


def cupy_row(wanted: str, told: dict[str, Any], there: int, elsewhere: bool) -> Row:
    """The same of CuPy, with which ridge regressions are solved."""
    check, expected = "GPU for ridge", f"ridge.device = {wanted}"
    if wanted == "cpu":
        return Row(check, "ok", "not asked for", expected)
    if not told:
        found = "CuPy is not installed"
    elif told["gpus"]:
        runs, driver = (
            f"{told[key] // 1000}.{told[key] % 1000 // 10}" for key in ("cuda", "driver")
        )
        found = (
            f"CuPy {told['version']} with CUDA {runs}, driver's {driver}, sees {told['gpus']} GPUs"
        )
        return _computes(check, found, told["fails"], expected)
    else:
        found = f"CuPy {told['version']} sees no GPU{': ' * bool(told.get('none'))}{told.get('none', '')}"
    return _without(check, found, expected, wanted != "auto", there, elsewhere, "CuPy", 0.0)


def _computes(check: str, found: str, fails: str, expected: str) -> Row:
    if not fails:
        return Row(check, "ok", f"{found}: computes", expected)
    mend = "install it for a CUDA that the driver and the GPU know (nvidia-smi tells)"
    return Row(check, "missing", f"{found}, a product fails: {fails}", expected, mend)


def _without(
    check: str, found: str, expected: str, asked: bool, there: int, elsewhere: bool, library: str,
    seconds: float,
) -> Row:  # fmt: skip
    """The row of a library that sees no GPU, of which there may be some."""
    if there:
        mend = f"install {library} for the CUDA of the driver (nvidia-smi tells), see README"
        word = "missing" if asked or library == "torch" else "note"
        return Row(check, word, f"{found}, nvidia-smi {there}", expected, mend)
    if elsewhere:
        return Row(check, "ok", f"{found}; the nodes' own are seen by their tasks alone", expected)
    if asked:
        return Row(check, "missing", found, expected, "use auto or cpu, or a machine with a GPU")
    if seconds > PATIENCE:
        told = f"about {duration(seconds)} on {os.cpu_count()} cores"
        return Row(
            check, "note", f"{found}: {told}", expected, "a machine with a GPU, or a cluster"
        )
    return Row(check, "ok", f"{found}: on the CPU", expected)


def on_cpu(waiting: Iterable[tuple[Cell, Cost]]) -> float:
    """Seconds that the work of cells would take on all of this machine's cores."""
    return sum(cost.flops for _, cost in waiting) / (CORE_FLOPS * (os.cpu_count() or 1))


def device_row(settings: Config, stages: Iterable[str]) -> Row:
    """The GPUs that the settings ask for by name, in this process; nothing is loaded where they do not."""
    stages, models, ridge = list(stages), settings.models.device, settings.ridge.device

    def there() -> str:
        if models.startswith("cuda") and any(STAGES[stage].weights for stage in stages):
            choose_device(models)
        if ridge == "cuda" and any(stage in SOLVERS for stage in stages):
            array_library(ridge)
        return f"models.device = {models}, ridge.device = {ridge}"

    return look("devices", there, "GPUs that are asked for are there")
