"""What is refused before any work, and the folder of a run made ready."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from nsdcap.config import Config
from nsdcap.errors import DataError, UsageError
from nsdcap.model_files import is_checkpoint, local, sources


def preflight(settings: Config) -> None:
    """Refuse what can be seen to be wrong before any work: missing sessions, folders that are none.

    Raises
    ------
    DataError
        Names the setting or file, what was found, and what to do.
    """
    from nsdcap.cells import open_nsd, sessions_of

    nsd = open_nsd(settings)
    for subject in settings.data.subjects:
        for session in sessions_of(settings, nsd, subject):
            nsd.betas_file(subject, session)
    here = local(settings.models)
    for model, where in sources(settings.models).items():
        if not where:
            raise UsageError(f"models.{model} is empty: give a Hugging Face folder or a hub id")
        path = where.startswith(("/", ".", "~")) or (model == "blip" and is_checkpoint(where))
        if path and model not in here:
            what = "file" if model == "blip" and is_checkpoint(where) else "folder"
            raise DataError(
                f"models.{model} = {where!r}: there is no such {what}; mend the setting"
            )


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


def make_folder(out: Path) -> None:
    """Make the folder of the results, and try that it can be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UsageError(
            f"--out {out}: cannot be written ({error.strerror}); name another folder"
        ) from None
