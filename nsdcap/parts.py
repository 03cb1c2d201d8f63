"""Finished parts of a cell that is under way, so that a cell that was stopped goes on from there.

They lie beside the artefact, in ``paths.parts_folder``, until the artefact is whole: a cell takes up to
twice its space while it runs. A part's name says which rows or targets it holds, for the settings that
size a part are not among those that decide a cell's result.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nsdcap.paths import Cell, atomic, parts_folder

SIGNATURE = "signature"


def kept(
    out: Path, cell: Cell, name: str, compute: Callable[[], Mapping[str, Any]]
) -> dict[str, np.ndarray]:
    """The part ``name`` of a cell: as kept by a run before, or else computed now, and kept.

    What ``compute`` gives, numbers, lists of strings or arrays by name, comes back as arrays on the host, in
    C order, the same bits either way.
    """
    arrays = found(out, cell, name)
    return keep(out, cell, name, compute()) if arrays is None else arrays


def found(out: Path, cell: Cell, name: str) -> dict[str, np.ndarray] | None:
    """The part ``name`` if it was kept; None where it was not, or cannot be read in full."""
    try:
        with _file(out, cell, name).open("rb") as file:
            head = json.loads(file.readline())
            return {key: _read(file, dtype, shape) for key, dtype, shape in head}
    except (OSError, ValueError, TypeError, EOFError):  # TypeError: objects, not numbers
        return None


def is_kept(out: Path, cell: Cell, name: str) -> bool:
    """Whether a part is there, without reading it."""
    return _file(out, cell, name).exists()


def keep(out: Path, cell: Cell, name: str, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Write a part, whole or not at all, and give it back."""
    arrays = {key: np.asarray(value, order="C") for key, value in values.items()}
    try:
        _save(_file(out, cell, name), arrays)
    except FileNotFoundError:  # another run of this cell has just removed the folder
        _save(_file(out, cell, name), arrays)
    return arrays


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A line of names, dtypes and shapes, then the arrays' bytes.

    Not by ``np.save`` or ``np.savez``: where a signal's handler raises SystemExit while they write, or read,
    a ValueError or TypeError may come out of them.
    """
    head = json.dumps([[key, array.dtype.str, array.shape] for key, array in arrays.items()])
    with atomic(path) as partial, partial.open("wb") as file:
        file.write(head.encode() + b"\n")
        for array in arrays.values():
            file.write(array.reshape(-1).view(np.uint8).data)


def _read(file: BinaryIO, dtype: str, shape: list[int]) -> np.ndarray:
    array = np.empty(shape, np.dtype(dtype))
    if file.readinto(array.reshape(-1).view(np.uint8)) != array.nbytes:  # type: ignore[attr-defined]
        raise EOFError
    return array


def begin(out: Path, cell: Cell, signature: str, force: bool) -> int:
    """Make the folder ready for a cell of this signature; returns how many finished parts it holds.

    Parts of another signature, or with ``force`` all, are thrown away.
    """
    folder = parts_folder(out, cell)
    mark = folder / SIGNATURE
    if force or not mark.is_file() or mark.read_text() != signature:
        forget(out, cell)
        with atomic(mark) as partial:
            partial.write_text(signature)
    for told in folder.glob("*.json"):
        told.unlink(missing_ok=True)
    return len(list(folder.glob("*.part")))


def keep_only(out: Path, cell: Cell, names: Collection[str]) -> int:
    """Throw away the parts of other names, of a run with another batch; returns how many are left."""
    for part in parts_folder(out, cell).glob("*.part"):
        if part.stem not in names:
            part.unlink(missing_ok=True)
    return sum(is_kept(out, cell, name) for name in names)


def forget(out: Path, cell: Cell) -> None:
    """Remove a cell's parts and their folder."""
    folder = parts_folder(out, cell)
    (folder / SIGNATURE).unlink(missing_ok=True)  # first: what a kill leaves then belongs to no run
    for part in (*folder.glob("*.part"), *folder.glob("*.json")):
        part.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)  # on NFS a file open elsewhere keeps its folder


def _file(out: Path, cell: Cell, name: str) -> Path:
    return parts_folder(out, cell) / f"{name}.part"
