"""PyTorch's own files (.pth, .pt, .bin) read as tensors and plain values alone; one error where that fails."""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

from nsdcap.errors import DataError, NsdcapError, first_line

ZIP = b"PK\x03\x04"
PICKLE = re.compile(
    rb"\x80[\x02-\x05]\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
)  # the format before torch 1.6


def read(file: Path, setting: str, advice: str, where: str = "cpu") -> Any:
    """What a file holds. ``where`` "meta" gives shapes alone; a zip's numbers stay on disk until used.

    Raises
    ------
    DataError
        Begins with ``setting``, ends in ``advice``: no such file, one that holds code (which is never run), or
        one that torch does not read, whatever it raises.
    """
    import torch

    if not file.is_file():
        found = "it is a folder, expected a file" if file.is_dir() else "there is no such file"
        raise DataError(f"{setting}: {found}; {advice}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pickle's protocol
            return torch.load(
                file, map_location=where, weights_only=True, mmap=zipfile.is_zipfile(file)
            )
    except NsdcapError:
        raise
    except (
        Exception
    ) as error:  # torch's unpickler takes bytes at their word: any error may come of them
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            why = f"it would run {code[1]}, and code from a file is never run"
        else:
            told = getattr(error, "strerror", None) or _told(error)
            why = f"cannot be read as a checkpoint ({told})"
    raise DataError(f"{setting}: {why}; {advice}")


def check(file: Path, setting: str, advice: str) -> None:
    """Raise DataError, as ``read`` does, for a file that is damaged, as far as can be told in milliseconds."""
    with file.open("rb") as opened:
        start = opened.read(16)
    if start.startswith(ZIP):
        read(file, setting, advice, "meta")
    elif not PICKLE.match(start):
        raise DataError(
            f"{setting}: cannot be read as a checkpoint (begins with {start[:8]!r}, expected what torch.save "
            f"writes); {advice}"
        )


def _told(error: Exception) -> str:
    """torch's advice to switch its safety off is not passed on."""
    first = first_line(error)
    return type(error).__name__ if first.startswith("Weights only load failed") else first
