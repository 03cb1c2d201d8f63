"""The kernel of z_v between a subject's pictures, factorised once for every encoding model."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nsdcap.artefacts import Artefact, open_artefact
from nsdcap.config import Config
from nsdcap.devices import array_library
from nsdcap.features import open_features, rows_of
from nsdcap.folds import grouped_folds
from nsdcap.parts import kept
from nsdcap.paths import Cell
from nsdcap.ridge import blocks, to_host
from nsdcap.ridge_encode import KernelBasis, kernel_basis
from nsdcap.ridge_joint import JointBases, check_kernels, fold_basis


@dataclass(frozen=True)
class Pictures:
    """A subject's training pictures as the trials show them, and the test pictures."""

    ids: np.ndarray  # (n,) nsd_id, sorted
    counts: np.ndarray  # (n,) repeats
    folds: np.ndarray  # (n,)
    test_ids: np.ndarray  # (m,)


def run(cell: Cell, config: Config, nsd: object, out: Path, target: Path) -> None:
    """Write the eigenbases of z_v's kernel to ``target``: of all training pictures and of each fold's.

    HDF5: groups ``whole`` and ``fold_0``, ``fold_1``, ..., each with ``values`` (k,), ``vectors`` (n, k),
    ``out`` (m, k), ``weight`` (n,), float64, and the attribute ``scale``, see ``KernelBasis``; of a fold also
    the rows ``left`` out. About 8 (folds + 1) n^2 bytes: 4 GB for 8,859 pictures and five folds; while the
    cell runs twice that on disk, for the kernel and each basis are kept as parts. Memory: 7 n^2 float64, for
    there is one basis at a time.
    """
    pictures = read_pictures(cell.subject, config, out)
    kernels: list[Any] = []  # once a basis asks for them

    def make(fold: Any) -> dict[str, Any]:
        if not kernels:
            kernels.extend(_kernels(cell, pictures, config, out))
        kernel, test = kernels
        if fold is None:
            return _arrays(kernel_basis(kernel, pictures.counts, test))
        basis, left = fold_basis(kernel, pictures.counts, pictures.folds, fold)
        return {**_arrays(basis), "left": left}

    with h5py.File(target, "w") as file:
        for number, fold in enumerate([None, *np.unique(pictures.folds)]):
            name = "whole" if fold is None else f"fold_{number - 1}"
            found = kept(out, cell, name, partial(make, fold))
            group = file.create_group(name)
            group.attrs["scale"] = float(found.pop("scale"))
            for key in list(found):
                group[key] = found.pop(key)
    print(f"{cell}: (n_pictures, n_test) = ({len(pictures.ids)}, {len(pictures.test_ids)})")


def _kernels(cell: Cell, pictures: Pictures, config: Config, out: Path) -> tuple[Any, Any]:
    """What ``z_v_kernels`` gives, kept as a part."""

    def compute() -> dict[str, Any]:
        train, test = z_v_kernels(cell.subject, pictures, out, config)
        check_kernels(train, pictures.counts, pictures.folds, test)
        return {"train": to_host(train), "test": to_host(test)}

    xp, found = array_library(config.ridge.device), kept(out, cell, "kernel", compute)
    return xp.asarray(found["train"]), xp.asarray(found["test"])


def read_pictures(subject: int | None, config: Config, out: Path) -> Pictures:
    """A subject's pictures; the same folds for every encoding model."""
    with open_artefact(out, Cell("prepare", subject)) as file:
        trial_ids, test_ids = file["nsd_id_train"][:], file["nsd_id_test"][:]
    ids, first, counts = np.unique(trial_ids, return_index=True, return_counts=True)
    folds = grouped_folds(trial_ids, config.ridge.folds, config.seed)[first]
    return Pictures(ids, counts, folds, test_ids)


def z_v_kernels(
    subject: int | None, pictures: Pictures, out: Path, config: Config
) -> tuple[Any, Any]:
    """Kernels of z_v, (n, n) between training pictures and (n_test, n), float64.

    z_v is read once, ``ridge.block`` columns at a time, and taken about the training trials' mean: products
    of large numbers would leave few digits to what differs.
    """
    xp = array_library(config.ridge.device)
    n, n_test = len(pictures.ids), len(pictures.test_ids)
    train, test = xp.zeros((n, n)), xp.zeros((n_test, n))
    share = pictures.counts / pictures.counts.sum()
    with open_features(out, subject) as features, open_features(out, None) as test_features:
        rows = rows_of(features, pictures.ids)
        test_rows = rows_of(test_features, pictures.test_ids)
        for columns in blocks(features["z_v"].shape[1], config.ridge.block):
            z_v = features["z_v"][:, columns][rows].astype(np.float64)
            mean = share @ z_v
            x = xp.asarray(z_v - mean)
            train += x @ x.T
            test += xp.asarray(test_features["z_v"][:, columns][test_rows] - mean) @ x.T
    return train, test


def read_bases(subject: int | None, config: Config, out: Path) -> JointBases:
    """What ``run`` wrote, on the device that ridge runs on."""
    with open_artefact(out, Cell("kernel", subject)) as file:
        whole = _read(file["whole"], config)
        groups = [file[f"fold_{number}"] for number in range(len(file) - 1)]
        found = [_read(group, config) for group in groups]
        return JointBases(whole, found, [group["left"][:] for group in groups])


def read_whole(subject: int | None, config: Config, out: Path) -> KernelBasis:
    """The eigenbasis of all training pictures alone."""
    with open_artefact(out, Cell("kernel", subject)) as file:
        return _read(file["whole"], config)


_ARRAYS = tuple(field.name for field in fields(KernelBasis) if field.name != "scale")


def _arrays(basis: KernelBasis) -> dict[str, Any]:
    """A basis as arrays on the host."""
    return {name: to_host(getattr(basis, name)) for name in _ARRAYS} | {"scale": basis.scale}


def _read(group: Artefact, config: Config) -> KernelBasis:
    xp = array_library(config.ridge.device)
    arrays = {name: xp.asarray(group[name][:]) for name in _ARRAYS}
    return KernelBasis(**arrays, scale=float(group.attrs["scale"]))
