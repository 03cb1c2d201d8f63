"""What is refused before any work, and the folder of a run made ready."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from nsdcap import headers, limits, weights
from nsdcap.config import MODEL_NAMES, Config
from nsdcap.errors import DataError, UsageError, bound
from nsdcap.hub import at_hand
from nsdcap.paths import Cell
from nsdcap.stages import STAGES

if TYPE_CHECKING:
    from nsdcap.site import Site


def preflight(
    settings: Config, cells: Iterable[Cell], site: Site | None = None, dry: bool = False
) -> None:
    """Refuse what can be seen to be wrong before any work: missing sessions, models that are not there or
    not what their lock says, settings that they cannot follow. Only models that ``cells`` load are asked for.

    ``site`` where tasks run the cells. A hub id that is not in the cache is fetched to it, off-line or
    ``dry`` not; ``dry`` computes no SHA-256 either.

    Raises
    ------
    DataError, UsageError
        Names the setting or file, what was found, and what to do.
    """
    from nsdcap.cells import open_nsd, sessions_of
    from nsdcap.nsd_checks import check_for

    nsd = open_nsd(settings)
    sessions = {s: sessions_of(settings, nsd, s) for s in settings.data.subjects}
    for subject, chosen in sessions.items():
        for session in chosen:
            nsd.betas_file(subject, session)
    stages = {cell.stage for cell in cells}
    check_for(nsd, settings, {kind for stage in stages for kind in STAGES[stage].nsd}, sessions)
    limits.check_folds(settings, nsd, stages)
    loaded = {model for stage in stages for model in STAGES[stage].weights}
    names = [name for name in MODEL_NAMES if name in loaded]
    there = {
        model
        for model, where in weights.used(settings, names).items()
        if _check_weights(model, where, site, dry)
    }
    limits.check(settings, there)
    place = settings.models.backbones
    if "backbones" in loaded and place:
        if not Path(place).expanduser().is_dir():
            raise DataError(
                f"models.backbones = {place!r}: there is no such folder{bound()}; mend the setting, or leave "
                "it empty: then what needs it is not computed"
            )
        weights.verify("models.backbones", place, contents=not dry)
        headers.check("backbones", place)


def _check_weights(model: str, where: str, site: Site | None, dry: bool) -> bool:
    """Whether the model is at hand now; one that tasks will fetch is not."""
    if not where:
        raise UsageError(f"models.{model} is empty: give a Hugging Face folder or a hub id")
    hub = not weights.is_path(where)
    if hub and site is not None and site.image:
        if os.environ.get("APPTAINERENV_HF_HUB_OFFLINE") == "0":
            return False  # its tasks have a network
        if not (site.cache or os.environ.get("HF_HOME")):
            raise UsageError(
                f"models.{model} = {where!r} is no folder, and tasks in an image are off-line: give a folder "
                "(python hpc/prefetch.py fetches it), or that of downloaded weights (cache in the site file, "
                "or the variable HF_HOME)"
            )
    if dry and hub and not weights.offline() and weights.missing(model, where):
        print(f"note: models.{model} = {where!r} would be fetched to {weights.hub_cache()} first")
        return False
    at_hand(model, where)
    weights.verify(f"models.{model}", where, contents=not dry)
    return True


def check_path(out: Path) -> None:
    """Refuse a folder whose name SLURM or submitit would change in the names of its logs.

    Raises
    ------
    UsageError
        A %, a backslash or a line break.
    """
    wrong = [sign for sign in ("%", "\\", "\n") if sign in str(out)]
    if wrong:
        raise UsageError(
            f"--out {str(out)!r}: in the path of a log {wrong[0]!r} is read as a sign; give "
            "another folder, or a symbolic link with a plain name to this one"
        )


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
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UsageError(
            f"--out {out}: cannot be written ({error.strerror}); name another folder{bound()}"
        ) from None
