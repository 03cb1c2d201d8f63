"""Latents to brain: encoding models of every voxel from z_v, z_B and both (paper 3.4)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from nsdcap import ridge, stats
from nsdcap.config import PHASES, Config
from nsdcap.features import blocks, open_features, rows_of
from nsdcap.folds import Collapsed, collapse, grouped_folds
from nsdcap.paths import Cell, artefact, atomic


@dataclass(frozen=True)
class Responses:
    """What a subject's voxels did: training trials by picture, and the test pictures' means."""

    data: Collapsed
    folds: np.ndarray  # (n_pictures,)
    train_ids: np.ndarray  # (n_pictures,) nsd_id, sorted
    test: np.ndarray  # (n_test, n_voxels) float32
    test_ids: np.ndarray  # (n_test,)


def run(cell: Cell, config: Config, nsd: object, out: Path, target: Path) -> None:
    """One cell of encoding models; each writes a group of (n_voxels,) float32 maps to ``target``.

    Without a layer: ``z_v`` from all of BLIP's ViT tokens and ``z_v_cls`` from its CLS token alone,
    a control for their numbers of features. With a layer: ``z_B_early``, ``z_B_mid``, ``z_B_late``
    from BERT's hidden states, and ``joint_*`` from z_v and z_B together, each space scaled to unit
    trace. Maps: ``r`` with the test pictures' mean responses, ``p_permutation``, ``p_fwe``,
    ``p_gaussian``, ``alpha``; joint ones also ``ratio``, ``gain``, ``gain_low``, ``gain_high``.

    Memory: responses of the training pictures, twice (means and sums of squares), and kernels of
    (n_pictures, n_pictures) float64; voxels are solved ``encode.block`` at a time.
    """
    responses = read_responses(cell.subject, config, out)
    n_voxels = responses.test.shape[1]
    print(f"{cell}: (n_pictures, n_voxels) = ({len(responses.train_ids)}, {n_voxels})")
    with h5py.File(target, "w") as file:
        if cell.layer is None:
            _solve_z_v(cell.subject, responses, config, out, file.create_group("z_v"))
            cls = [z_v_cls(out, subject, ids) for subject, ids in _both(cell.subject, responses)]
            solve_features(cls[0], cls[1], responses, config, file.create_group("z_v_cls"))
            return
        single = _solve_z_v(cell.subject, responses, config, out, None)
        kernel_v = z_v_kernel(cell.subject, responses, config, out)
        for phase, name in enumerate(PHASES):
            z_b, z_b_test = (
                read_z_b(out, subject, ids, cell.layer, phase)
                for subject, ids in _both(cell.subject, responses)
            )
            solve_features(z_b, z_b_test, responses, config, file.create_group(f"z_B_{name}"))
            kernel_b = (z_b @ z_b.T, z_b_test @ z_b.T)
            _solve_joint(
                kernel_v, kernel_b, single, responses, config, file.create_group(f"joint_{name}")
            )


def read_responses(subject: int | None, config: Config, out: Path) -> Responses:
    """A subject's prepared betas with the repeats of each training picture collapsed exactly."""
    with h5py.File(artefact(out, Cell("prepare", subject)), "r") as file:
        trial_ids = file["nsd_id_train"][:]
        data = collapse(file["betas_train"], trial_ids)  # read by blocks of voxels
        test, test_ids = file["betas_test"][:], file["nsd_id_test"][:]
    first = np.unique(trial_ids, return_index=True)[1]
    folds = grouped_folds(trial_ids, config.ridge.folds, config.seed)[first]
    return Responses(data, folds, data.ids, test, test_ids)


def read_z_b(out: Path, subject: int | None, ids: np.ndarray, layer: int, phase: int) -> np.ndarray:
    """z_B (n, width) float64 of the given pictures at one BERT state and phase."""
    with open_features(out, subject) as file:
        return file["z_B"][:, layer, phase, :][rows_of(file, ids)].astype(np.float64)


def z_v_cls(out: Path, subject: int | None, ids: np.ndarray) -> np.ndarray:
    """The CLS token of z_v (n, width) float64 of the given pictures."""
    with open_features(out, subject) as file:
        width = int(file["z_v"].attrs["shape"][1])
        return file["z_v"][:, :width][rows_of(file, ids)].astype(np.float64)


def z_v_kernel(
    subject: int | None, responses: Responses, config: Config, out: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Kernels of z_v, (n, n) between training pictures and (n_test, n), float64, not centred.

    z_v is read once, ``ridge.block`` columns at a time. The kernel is kept beside the encoding
    results, under the hash of what it was made from, so every layer's cell need not read z_v again.
    """
    own, shared = (artefact(out, Cell("features", s)) for s in (subject, None))
    stamp = [f"{p.stat().st_size} {p.stat().st_mtime_ns}" for p in (own, shared)]
    kept = out / "encode" / f".subj{subject:02d}_kernel_z_v.h5"
    if kept.exists():
        with h5py.File(kept, "r") as file:
            if list(file.attrs["stamp"]) == stamp:
                return file["train"][:], file["test"][:]
    n, n_test = len(responses.train_ids), len(responses.test_ids)
    train, test = np.zeros((n, n)), np.zeros((n_test, n))
    with h5py.File(own, "r") as features, h5py.File(shared, "r") as test_features:
        rows = rows_of(features, responses.train_ids)
        test_rows = rows_of(test_features, responses.test_ids)
        for columns in blocks(features["z_v"].shape[1], config.ridge.block):
            x = features["z_v"][:, columns][rows].astype(np.float64)
            train += x @ x.T
            test += test_features["z_v"][:, columns][test_rows].astype(np.float64) @ x.T
    with atomic(kept) as partial, h5py.File(partial, "w") as file:
        file.attrs["stamp"] = stamp
        file["train"], file["test"] = train, test
    return train, test


def _solve_z_v(
    subject: int | None, responses: Responses, config: Config, out: Path, group: h5py.Group | None
) -> np.ndarray:
    """Predictions (n_test, n_voxels) of z_v's model; its maps go to ``group`` where there is one."""
    kernel, test = z_v_kernel(subject, responses, config, out)
    fit = ridge.encode_dual(kernel, responses.data, responses.folds, config.ridge.alphas, test,
                            config.encode.block)  # fmt: skip
    if group is not None:
        _write_maps(group, fit, responses, config)
    return fit.predictions


def solve_features(
    features: np.ndarray, test: np.ndarray, responses: Responses, config: Config, group: h5py.Group
) -> None:
    """A model from few features (n, p), ``test`` (n_test, p) for the test pictures, and its maps."""
    fit = ridge.encode_primal(features, responses.data, responses.folds, config.ridge.alphas, test,
                              config.encode.block)  # fmt: skip
    _write_maps(group, fit, responses, config)


def _solve_joint(
    kernel_v: tuple, kernel_b: tuple, single: np.ndarray, responses: Responses, config: Config,
    group: h5py.Group,
) -> None:  # fmt: skip
    """The model of z_v and z_B together, its maps, and what z_B adds to z_v (``single``)."""
    fit = ridge.encode_joint(
        (kernel_v[0], kernel_b[0]), responses.data, responses.folds, config.ridge.alphas,
        config.encode.ratios, (kernel_v[1], kernel_b[1]), config.encode.block,
    )  # fmt: skip
    _write_maps(group, fit, responses, config)
    group["ratio"] = np.asarray(config.encode.ratios, dtype="f4")[fit.ratio_index]
    gains = stats.gain_r2(
        fit.predictions, single, responses.test, config.encode.bootstraps, config.seed
    )
    for name, values in zip(("gain", "gain_low", "gain_high"), gains, strict=True):
        group[name] = values.astype("f4")


def _write_maps(group: h5py.Group, fit: ridge.Fit, responses: Responses, config: Config) -> None:
    """r, its p by three rules, and the chosen penalty, (n_voxels,) float32 each."""
    r = stats.pearson(fit.predictions, responses.test)
    p, p_fwe = stats.p_permutation(
        fit.predictions, responses.test, config.encode.nulls, config.seed
    )
    maps = {"r": r, "p_permutation": p, "p_fwe": p_fwe,
            "p_gaussian": stats.p_gaussian(r, len(responses.test)),
            "alpha": np.asarray(config.ridge.alphas)[fit.alpha_index]}  # fmt: skip
    for name, values in maps.items():
        group[name] = values.astype("f4")
    share = ridge.edge_share(fit.alpha_index, len(config.ridge.alphas))
    group.attrs["edge_share"] = share
    print(
        f"{group.name[1:]}: mean r {np.nanmean(r):.3f}, penalty at the grid's edge for {share:.1%} of voxels"
    )


def _both(subject: int | None, responses: Responses):
    """The training pictures lie with the subject's own features, the test pictures with the shared."""
    return ((subject, responses.train_ids), (None, responses.test_ids))
