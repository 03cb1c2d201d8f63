"""What is refused before any work, and the folder of a run made ready."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nsdcap import weights
from nsdcap.checks import Row
from nsdcap.config import Config
from nsdcap.errors import UsageError, bound
from nsdcap.paths import Cell

if TYPE_CHECKING:
    from nsdcap.site import Site


def preflight(
    settings: Config, cells: Iterable[Cell], site: Site | None = None, dry: bool = False,
    out: Path | None = None, slurm: bool = False,
) -> None:  # fmt: skip
    """Refuse what can be seen to be wrong before any work, by the doctor's checks for the stages of ``cells``:
    data, models, the folder ``out``, the image; with ``slurm`` its partitions.

    ``site`` where tasks run the cells. A hub id that is not in the cache is fetched to it, off-line or
    ``dry`` not. ``dry`` holds no weights against their lock (of a folder without a lock ``Ledger.depends``
    computes the SHA-256 all the same), and does not ask whether ``out`` can be written.

    Raises
    ------
    NsdcapError
        The first thing that is bad or missing: the setting or file, what was found, and what to do.
    """
    for row in _rows(settings, list(cells), site, dry, out, slurm):
        if row.error is not None:
            raise row.error
        if dry and row.verdict == "note" and row.check.startswith("models."):
            print(f"note: {row.found}")


def _rows(
    settings: Config, cells: list[Cell], site: Site | None, dry: bool, out: Path | None, slurm: bool
) -> Iterator[Row]:
    """The doctor's rows that are quick and that a run cannot do without, one after another."""
    from nsdcap import checks_cluster, checks_data, checks_machine, checks_models

    stages = list(dict.fromkeys(cell.stage for cell in cells))
    if site is not None:  # what takes no time first
        yield from checks_cluster.rows(site, out, stages, slurm=False)
    yield from checks_data.rows(settings, stages, thorough=False)
    yield from checks_models.rows(settings, stages, site, fetch=not dry, contents=not dry)
    if site is None:
        yield checks_machine.device_row(settings, stages)
    if dry or out is None:
        return
    yield from checks_machine.folder_rows(out)
    if site is not None and slurm and any(checks_cluster.wanted(site, stage) for stage in stages):
        yield from checks_cluster.slurm_rows(site, stages)


def freeze(settings: Config, out: Path) -> Path:
    """The settings in a file that no later launch changes, for the tasks that are submitted with them."""
    from nsdcap import config

    text = config.dump(settings)
    file = out / "jobs" / f"settings-{hashlib.sha256(text.encode()).hexdigest()[:12]}.toml"
    _put(text, file)
    return file


def write_settings(settings: Config, out: Path) -> None:
    """Put the settings beside the results."""
    from nsdcap import config
    from nsdcap.paths import config_file

    _put(config.dump(settings), config_file(out))


def _put(text: str, file: Path) -> None:
    """Write a file, whole or not at all, unless it says the same already."""
    from nsdcap.paths import atomic

    if not file.exists() or file.read_text() != text:
        with atomic(file) as partial:
            partial.write_text(text)


def keep_cache(out: Path, cache: str) -> None:
    """Write down which folder of Hugging Face weights a run's tasks have, for whoever asks of its cells."""
    if cache:
        _put(cache, weights.cache_note(out))
    else:
        weights.cache_note(out).unlink(missing_ok=True)


def make_folder(out: Path) -> None:
    """Make the folder of the results, and try that it can be written."""
    from nsdcap.checks_machine import writable

    writable(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--out {out}: cannot be written ({error.strerror}); name another folder{bound()}"
        ) from None
    writable(out)
