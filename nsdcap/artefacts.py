"""A stage's result as the next one opens it: what is damaged, or of another shape, is one error that names it.

Numbers are looked at as they are read, block by block, for a file may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nsdcap.errors import DataError, first_line
from nsdcap.paths import Cell, artefact

# axes of each dataset: the same letter is the same length within a file, a digit is a length
SHAPES: dict[str, dict[str, str]] = {
    "prepare": {
        "betas_train": "nv", "nsd_id_train": "n", "session_train": "n", "trial_train": "n", "betas_test": "mv",
        "nsd_id_test": "m", "repeats_test": "m", "voxel_mean": "v", "voxel_sd": "v", "xyz": "v3", "stream": "v",
        "ncsnr": "v", "noise_ceiling": "v", "affine": "44",
    },
    "features": {"nsd_id": "n", "caption": "n", "z_v": "na", "z_B": "nspw", "z": "nb", "c": "nd"},
    "decode": {"nsd_id": "m"} | {
        f"{name}/{key}": axes + name[-1]
        for name in ("z_v", "z", "c")
        for key, axes in (("predicted", "m"), ("mean", ""), ("alpha_index", ""), ("cv_r2", ""))
    },
    "kernel": {"whole/values": "k", "whole/vectors": "nk", "whole/out": "mk", "whole/weight": "n"},
    "reconstruct": {
        "nsd_id": "n", "shown": "nss3", "coarse": "nss3", "caption": "nkss3", "direct": "nkss3",
        "clip_shown": "ne", "clip_coarse": "ne", "clip_caption": "nke", "clip_direct": "nke",
    },
}  # fmt: skip
IDS = {"prepare": "nsd_id_test", "features": "nsd_id", "decode": "nsd_id", "reconstruct": "nsd_id"}
TEXTS = ("features", "caption")  # alone holds no numbers


class Stored:
    """A dataset that is read by slices, as h5py's; what cannot be read, or is not finite, is DataError."""

    def __init__(self, dataset: Any, path: Path, finite: bool):
        self._dataset, self._path, self._finite = dataset, path, finite
        self.shape: tuple[int, ...] = dataset.shape
        self.dtype, self.ndim = dataset.dtype, len(dataset.shape)
        self.attrs = Attributes(dataset.attrs, path)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        try:
            found = self._dataset[key]
        except (OSError, RuntimeError, ValueError, IndexError, TypeError) as error:
            raise damaged(self._path, f"{self.name} cannot be read: {first_line(error)}") from error
        if self._finite and found.dtype.kind == "f" and not np.isfinite(found).all():
            raise damaged(self._path, f"{self.name} holds NaN or infinite numbers")
        return found

    @property
    def name(self) -> str:
        return self._dataset.name.lstrip("/")

    def asstr(self) -> Stored:
        """The same, of which strings are read as str."""
        texts = Stored(self._dataset, self._path, self._finite)
        texts._dataset = self._dataset.asstr()
        return texts


class Attributes:
    """Attributes by name; one that lacks is DataError."""

    def __init__(self, attrs: Any, path: Path):
        self._attrs, self._path = attrs, path

    def __contains__(self, key: str) -> bool:
        return key in self._attrs

    def __getitem__(self, key: str) -> Any:
        try:
            return self._attrs[key]
        except (KeyError, OSError, RuntimeError) as error:
            raise damaged(self._path, f"the attribute {key} cannot be read") from error

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self._attrs else default


class Artefact:
    """An HDF5 file, or a group of one, whose datasets are ``Stored``; closes as a context."""

    def __init__(self, group: Any, path: Path, finite: bool):
        self._group, self.path, self._finite = group, path, finite
        self.attrs = Attributes(group.attrs, path)

    def __enter__(self) -> Artefact:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._group.file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._group

    def __iter__(self) -> Iterator[str]:
        return iter(self._group)

    def __len__(self) -> int:
        return len(self._group)

    @property
    def name(self) -> str:
        return self._group.name

    def __getitem__(self, key: str) -> Any:
        try:
            found = self._group[key]
        except (KeyError, OSError, RuntimeError) as error:
            where = f"{self.name}/{key}".lstrip("/")
            raise damaged(self.path, f"found no {where}") from error
        kind = Stored if isinstance(found, h5py.Dataset) else Artefact
        return kind(found, self.path, self._finite)


def open_artefact(out: Path, cell: Cell, keys: Sequence[str] = ()) -> Artefact:
    """A cell's result, to be read by the stages after it, where every number is finite.

    Raises DataError where it is missing or broken, or lacks one of ``keys``, or where shapes do not agree, and
    when what is read of it cannot be, or is not finite.
    """
    return open_file(artefact(out, cell), cell.stage, keys)


def open_file(path: Path, stage: str, keys: Sequence[str] = (), finite: bool = True) -> Artefact:
    """As ``open_artefact``; without ``finite`` NaN is let through, as in maps of voxels that never varied."""
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise DataError(
            f"{path}: cannot be read, it is not there; run the {stage} stage, "
            f"--stage {stage} --force"
        ) from None
    except OSError as error:
        raise damaged(path, f"cannot be read: {first_line(error)}") from error
    try:
        found = Artefact(file, path, finite)
        if lacking := [key for key in keys if key not in file]:
            raise damaged(path, f"lacks {', '.join(lacking)}")
        _check_shapes(file, path, stage)
        _check_ids(found, path, stage)
    except (
        OSError,
        RuntimeError,
        KeyError,
        AttributeError,
    ) as error:  # of h5py's, on a broken file
        file.close()
        raise damaged(path, f"cannot be read: {first_line(error)}") from error
    except DataError:
        file.close()
        raise
    return found


def damaged(path: Path, why: str) -> DataError:
    """The error of an artefact that cannot be used."""
    stage = path.parent.name
    return DataError(
        f"{path}: {why}; it was damaged after it was made, or made otherwise: run its stage again, --stage "
        f"{stage} --force"
    )


def _check_shapes(file: h5py.File, path: Path, stage: str) -> None:
    lengths: dict[str, tuple[int, str]] = {}
    for name, axes in SHAPES.get(stage, {}).items():
        if name not in file:
            continue  # where it is needed that is told
        one = file[name]
        shape = getattr(one, "shape", None)
        if shape is None or len(shape) != len(axes):
            raise damaged(path, f"{name} is {shape}, expected {len(axes)} axes")
        if (stage, name) != TEXTS and one.dtype.kind not in "fiu":
            raise damaged(path, f"{name} is {one.dtype}, expected numbers")
        for length, axis in zip(shape, axes, strict=True):
            wanted, of = (
                (int(axis), "it") if axis.isdigit() else lengths.setdefault(axis, (length, name))
            )
            if length != wanted:
                raise damaged(path, f"{name} is {shape}, expected {wanted} as {of} has")


def _check_ids(file: Artefact, path: Path, stage: str) -> None:
    """Pictures stand there once each, where they are looked up in order, and none in both halves."""
    name = IDS.get(stage, "")
    if name not in file or not name:
        return
    ids = file[name][:]
    steps = np.diff(ids if stage == "features" else np.sort(ids))
    if not len(ids) or (steps <= 0).any() or ids.min() < 0:
        order = " in order" if stage == "features" else ""
        raise damaged(path, f"{name} is not a list of pictures, each once{order}")
    if "nsd_id_train" in file and len(both := np.intersect1d(ids, file["nsd_id_train"][:])):
        raise damaged(path, f"picture {both[0]} is both in training and test")
