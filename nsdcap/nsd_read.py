"""Volumes and HDF5 files of NSD as they are opened; what is missing, broken or another's is one error.

Libraries raise what they like on a broken file, so whatever they raise becomes DataError. Before anything is
allocated, the size that a header claims is held against the length of the file.
"""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np

from nsdcap.errors import DataError, absent, first_line

DEFLATE = 1032  # zlib makes data at most so many times smaller
SMALL = 1 << 26  # bytes that may be allocated whatever the file's length


def must_exist(path: Path, hint: str = "; check the NSD root, or fetch the file") -> None:
    """Raise DataError unless ``path`` is a file that holds something."""
    if path.is_dir():
        raise DataError(f"{path} is a folder, expected a file{hint}.")
    if not path.is_file():
        raise absent(f"{path} does not exist{hint}.")
    if not path.stat().st_size:
        raise DataError(f"{path} is empty, 0 bytes; fetch it again.")


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Within it whatever a library raises over a broken file is DataError: "PATH WHAT (why)".

    For the library's call alone: what goes wrong with anything else would be put down to the file.
    """
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"{path} {what} ({first_line(error)}); fetch it again.") from error


# --- NIfTI and MGH --------------------------------------------------------------------------------


def load_image(path: Path) -> Any:
    """A NIfTI or MGH image, its header read. Raises DataError where it claims more than the file can hold."""
    must_exist(path)
    with reading(path, "cannot be read"):
        image: Any = nib.load(path)
        shape = [int(side) for side in image.shape]
        item = int(image.get_data_dtype().itemsize)
    if image.get_data_dtype().kind not in "iuf":
        raise DataError(f"{path}: {image.get_data_dtype()}, expected numbers; fetch it again.")
    packed = path.suffix in (".gz", ".mgz")
    most = path.stat().st_size * (DEFLATE if packed else 1)
    if not shape or min(shape) < 1 or math.prod(shape) * item > most:
        raise DataError(
            f"{path}: its header says {image.get_data_dtype()} {tuple(shape)}, more or less than a file of "
            f"{path.stat().st_size} bytes can hold; fetch it again."
        )
    return image


def read_image(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """All numbers of an image, float64 in its own shape, and its affine (4, 4).

    Of a gzipped file the check sum is compared, which a library that stops at the last number does not.
    """
    must_exist(path)
    if path.suffix in (".gz", ".mgz"):
        with reading(path, "is broken"), gzip.open(path) as file:
            while file.read(1 << 20):
                pass
    image = load_image(path)
    with reading(path, "is broken"), np.errstate(all="ignore"):
        values = np.asarray(image.dataobj, dtype=np.float64)
        affine = np.asarray(image.affine, dtype=np.float64)
    return values, affine


def read_volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(X, Y, Z) float32 and the affine (4, 4) of a NIfTI file."""
    values, affine = read_image(path)
    if values.ndim != 3:
        raise DataError(f"{path} has shape {values.shape}, expected one volume (X, Y, Z).")
    with np.errstate(over="ignore"):
        return values.astype(np.float32), affine


def check_gzip_end(path: Path, n_bytes: int) -> None:
    """Raise DataError where a .gz ends too early to hold ``n_bytes``, by its last bytes alone.

    They tell the length of what is packed, modulo 2^32; where they tell another, as in a file of several
    gzip members, all of it is unpacked once to be sure.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4))
        told = int.from_bytes(file.read(4), "little")
    if told == n_bytes % 2**32:
        return
    found = 0
    with reading(path, "is broken"), gzip.open(path) as unpacked:
        while block := unpacked.read(1 << 24):
            found += len(block)
    if found < n_bytes:
        raise DataError(f"{path} ends after {found} of {n_bytes} bytes; fetch it again.")


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


# --- HDF5 -----------------------------------------------------------------------------------------


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file for reading; HDF5's errors, here or while it is read, become DataError."""
    must_exist(path)
    with reading(path, "is truncated or broken"), h5py.File(path, "r") as file:
        yield file


def find_dataset(file: h5py.File, path: Path, name: str, dtype: str, ndim: int) -> h5py.Dataset:
    """A dataset by name; DataError where it is absent, of another kind, or cannot be unpacked here."""
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{path} has no dataset {name!r}, only {list(file)}; fetch it again.")
    if dataset.dtype.newbyteorder("=") != np.dtype(dtype) or dataset.ndim != ndim:
        raise DataError(
            f"{path}: {name} is {dataset.dtype} {dataset.shape}, expected {np.dtype(dtype)} with"
            f" {ndim} axes; fetch it again."
        )
    layout = dataset.id.get_create_plist()
    filters = [layout.get_filter(k) for k in range(layout.get_nfilters())]
    for number, _, _, called in filters:
        if not h5py.h5z.filter_avail(number):
            raise DataError(
                f"{path}: {name} is packed with the HDF5 filter {number} ({called.decode(errors='replace')}), "
                "which is not installed here; expected NSD's own file, which is not packed: fetch it again."
            )
    held = os.path.getsize(path) * (DEFLATE if filters else 1)
    block = math.prod(dataset.chunks or (1,)) * dataset.dtype.itemsize
    if block > max(held, SMALL):
        raise DataError(
            f"{path}: {name} has chunks of {block} bytes, more than the file holds; fetch it again."
        )
    return dataset
