"""Volumes and HDF5 files of NSD as they are opened; what is missing, broken or another's is one error."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from nsdcap.errors import DataError

UNREADABLE = (OSError, EOFError, zlib.error, ImageFileError, ValueError)


def must_exist(path: Path, hint: str = "; check the NSD root, or fetch the file") -> None:
    if not path.is_file():
        raise DataError(f"{path} does not exist{hint}.")


def load_image(path: Path) -> Any:
    must_exist(path)
    try:
        return nib.load(path)
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read ({error}); fetch it again.") from error


def read_volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(X, Y, Z) float32 and the affine (4, 4) of a NIfTI file."""
    image = load_image(path)
    try:
        values = np.asarray(image.dataobj, dtype=np.float32)
    except UNREADABLE as error:
        raise DataError(f"{path} is broken ({error}); fetch it again.") from error
    if values.ndim != 3:
        raise DataError(f"{path} has shape {values.shape}, expected one volume (X, Y, Z).")
    return values, np.asarray(image.affine, dtype=np.float64)


def inside(xyz: np.ndarray, shape: tuple[int, ...], path: Path) -> np.ndarray:
    """``xyz`` (n, 3) as int64, or DataError when a voxel lies outside ``shape``."""
    voxels = np.asarray(xyz, dtype=np.int64)
    if voxels.ndim != 2 or voxels.shape[1] != 3:
        raise DataError(f"voxels have shape {voxels.shape}, expected (n_voxels, 3).")
    if np.any(voxels < 0) or np.any(voxels >= shape):
        raise DataError(
            f"{path} has a volume of {tuple(shape)}, but voxels up to"
            f" {tuple(voxels.max(0).tolist())} are asked; take ROI and betas of the same subject."
        )
    return voxels


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file for reading; HDF5's errors, here or while it is read, become DataError."""
    must_exist(path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path} is truncated or broken ({error}); fetch it again.") from error


def find_dataset(file: h5py.File, path: Path, name: str, dtype: str, ndim: int) -> h5py.Dataset:
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{path} has no dataset {name!r}, only {list(file)}; fetch it again.")
    if dataset.dtype.newbyteorder("=") != np.dtype(dtype) or dataset.ndim != ndim:
        raise DataError(
            f"{path}: {name} is {dataset.dtype} {dataset.shape}, expected {np.dtype(dtype)} with"
            f" {ndim} axes; fetch it again."
        )
    return dataset
