"""Whether what lies in a run's folder can be what a run keeps there: folders and files in their places."""

from __future__ import annotations

import os
from pathlib import Path

from nsdcap.errors import UsageError
from nsdcap.options import STAGE_NAMES
from nsdcap.paths import DONE, FAILED, config_file

_FOLDERS = (*STAGE_NAMES, "log", "jobs")
_FILES = ("dataset_description.json", "lock.json", "lock.json.taking")
_ENDS = (".h5", ".json", ".txt", ".toml")  # of files, of which no folder has the name


def check(out: Path) -> None:
    """Refuse a folder in the place of a file, or the other way round; nothing is written or moved.

    Raises
    ------
    UsageError
        The path, what it is and what it should be.
    """
    for name in _FOLDERS:
        path = out / name
        if os.path.lexists(path) and not os.path.isdir(path):
            raise UsageError(
                f"{path}: found a file or a broken link, expected a folder, which a run keeps there; "
                "move it away, or name another folder (--out)"
            )
    files = [config_file(out), *(out / name for name in _FILES)]
    files += [out / f"aggregate{end}" for end in (DONE, FAILED)]
    for stage in STAGE_NAMES:
        if stage != "aggregate":
            files += _named_as_files(out / stage)
    for path in files:
        if os.path.isdir(path):
            raise UsageError(
                f"{path}: found a folder, expected a file, which a run keeps there; move it away, or name "
                "another folder (--out)"
            )


def _named_as_files(folder: Path) -> list[Path]:
    """Folders with the name of an artefact or of what lies beside one."""
    try:
        with os.scandir(folder) as entries:
            return [
                Path(entry.path)
                for entry in entries
                if entry.name.endswith(_ENDS) and not entry.name.startswith(".") and entry.is_dir()
            ]
    except OSError:  # not there yet, or not ours to read, which is told where it is read
        return []
