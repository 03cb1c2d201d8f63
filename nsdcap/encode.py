"""Latents to brain: encoding models of every voxel from z_v, z_B and both (paper 3.4)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nsdcap import stats
from nsdcap.artefacts import open_artefact
from nsdcap.config import PHASES, Config
from nsdcap.devices import array_library
from nsdcap.encoded import ROIS, inside
from nsdcap.errors import DataError
from nsdcap.features import open_features, rows_of
from nsdcap.folds import Collapsed, collapse
from nsdcap.kernel import read_bases, read_pictures, read_whole
from nsdcap.parts import kept
from nsdcap.paths import Cell
from nsdcap.ridge import Fit, edge_share, edge_warning, to_host
from nsdcap.ridge_encode import encode_basis, encode_dual, encode_flops, encode_primal
from nsdcap.ridge_joint import encode_joint
from nsdcap.stats_means import mean_gain_error, mean_r_error

Maps = dict[str, np.ndarray]  # of one model, by name


@dataclass(frozen=True)
class Responses:
    """What a subject's voxels did: training trials by picture, and the test pictures' means."""

    data: Collapsed
    folds: np.ndarray  # (n_pictures,)
    train_ids: np.ndarray  # (n_pictures,) nsd_id, sorted
    test: np.ndarray  # (n_test, n_voxels) float32
    test_ids: np.ndarray  # (n_test,)
    rois: np.ndarray  # (ROIS, n_voxels) bool: which voxels are in each


def run(cell: Cell, config: Config, nsd: object, out: Path, target: Path) -> None:
    """One cell of encoding models; each writes a group of (n_voxels,) float32 maps to ``target``.

    Without a layer: ``z_v`` from all of BLIP's ViT tokens and ``z_v_cls`` from its CLS token alone,
    a control for their numbers of features. With a layer: ``z_B_early``, ``z_B_mid``, ``z_B_late``
    from BERT's hidden states, and ``joint_*`` from z_v and z_B together, each space scaled to unit
    mean eigenvalue. Maps: ``r`` with the test pictures' mean responses, ``p_permutation``, ``p_fwe``,
    ``p_gaussian``, ``alpha``; joint ones also ``ratio``, ``gain``, ``gain_low``, ``gain_high``,
    ``gain_p``. Beside them ``mean_r_error`` and ``mean_gain_error``: for each of ``ROIS`` the standard
    error over pictures of its mean r and its mean gain.

    A part is kept of each model, of the joint ones together.
    Memory: responses of the training pictures, twice, and with a layer the eigenbases of z_v's kernel,
    8 (folds + 1) n_pictures^2 bytes; voxels are solved ``encode.block`` at a time.
    """
    responses = read_responses(cell.subject, config, out)
    n_voxels = responses.test.shape[1]
    print(f"{cell}: (n_pictures, n_voxels) = ({len(responses.train_ids)}, {n_voxels})")
    with h5py.File(target, "w") as file:
        if cell.layer is None:
            _write(file, "z_v", kept(out, cell, "z_v", lambda: _z_v(cell, responses, config, out)))
            cls, cls_test = (
                z_v_cls(out, subject, ids) for subject, ids in _both(cell.subject, responses)
            )
            solve = partial(solve_features, "z_v_cls", cls, cls_test, responses, config)
            _write(file, "z_v_cls", kept(out, cell, "z_v_cls", solve))
            return
        spaces = []
        for phase, name in enumerate(PHASES):
            z_b, z_b_test = (
                read_z_b(out, subject, ids, cell.layer, phase)
                for subject, ids in _both(cell.subject, responses)
            )
            solve = partial(solve_features, f"z_B_{name}", z_b, z_b_test, responses, config)
            _write(file, f"z_B_{name}", kept(out, cell, f"z_B_{name}", solve))
            spaces.append(varying(z_b, z_b_test, config))
        joint = kept(out, cell, "joint", lambda: _joint(cell, spaces, responses, config, out))
        for name in PHASES:
            own = {k.partition("/")[2]: v for k, v in joint.items() if k.startswith(f"{name}/")}
            _write(file, f"joint_{name}", own)


def read_responses(subject: int | None, config: Config, out: Path) -> Responses:
    """A subject's prepared betas with the repeats of each training picture collapsed exactly."""
    pictures = read_pictures(subject, config, out)
    with open_artefact(out, Cell("prepare", subject)) as file:
        data = collapse(file["betas_train"], file["nsd_id_train"][:])  # read by blocks of voxels
        test, stream = file["betas_test"][:], file["stream"][:]
    rois = np.stack([inside(stream, roi) for roi in ROIS])
    return Responses(data, pictures.folds, data.ids, test, pictures.test_ids, rois)


def read_z_b(out: Path, subject: int | None, ids: np.ndarray, layer: int, phase: int) -> np.ndarray:
    """z_B (n, width) float64 of the given pictures at one BERT layer and phase."""
    with open_features(out, subject) as file:
        return file["z_B"][:, layer, phase, :][rows_of(file, ids)].astype(np.float64)


def z_v_cls(out: Path, subject: int | None, ids: np.ndarray) -> np.ndarray:
    """The CLS token of z_v (n, width) float64 of the given pictures."""
    with open_features(out, subject) as file:
        width = int(file["z_v"].attrs["shape"][1])
        return file["z_v"][:, :width][rows_of(file, ids)].astype(np.float64)


def solve_features(
    name: str, features: np.ndarray, test: np.ndarray, responses: Responses, config: Config
) -> Maps:
    """The maps of a model from few features (n, p), ``test`` (n_test, p) for the test pictures.

    From the features or from their kernel, whichever takes fewer operations.
    """
    space, space_test = varying(features, test, config)
    data, folds, alphas = responses.data, responses.folds, config.ridge.alphas
    (n, p), t = space.shape, data.deviation.shape[1]
    costs = encode_flops(n, p, len(space_test), t, config.ridge.folds, len(alphas))
    form = min(costs, key=costs.__getitem__)
    print(f"{name}: solved in the {form} form, {costs[form] / 1e9:.3g} GFLOP")
    if form == "primal":
        fit = encode_primal(space, data, folds, alphas, space_test, config.encode.block)
    else:
        mean = space.mean(0)  # else far from 0 a kernel has no digits left
        space, space_test = space - mean, space_test - mean
        kernel, kernel_test = space @ space.T, space_test @ space.T
        fit = encode_dual(kernel, data, folds, alphas, kernel_test, config.encode.block)
    return _maps(fit, responses, config)


def varying(features: np.ndarray, test: np.ndarray, config: Config) -> tuple[Any, Any]:
    """Both without the columns that are the same for every training picture, on ridge's device.

    Raises
    ------
    DataError
        No column differs between pictures.
    """
    keep = features.max(0) > features.min(0)
    if not keep.any():
        raise DataError(
            f"features {features.shape}: the same for every picture; expected ones that differ. Are the "
            "captions all the same? See caption in the features file"
        )
    if not keep.all():
        print(f"{(~keep).sum()} of {len(keep)} features are the same for every picture: left out")
    xp = array_library(config.ridge.device)
    return xp.asarray(features[:, keep]), xp.asarray(test[:, keep])


def _z_v(cell: Cell, responses: Responses, config: Config, out: Path) -> Maps:
    """The maps of the model from all of z_v."""
    basis = read_whole(cell.subject, config, out)
    fit = encode_basis(
        basis, responses.data, responses.folds, config.ridge.alphas, config.encode.block
    )
    return _maps(fit, responses, config)


def _joint(
    cell: Cell, spaces: list[tuple[Any, Any]], responses: Responses, config: Config, out: Path
) -> Maps:
    """The maps of z_v together with each phase's z_B, as "early/r", and what z_B adds to z_v."""
    single, *joint = encode_joint(
        read_bases(cell.subject, config, out), spaces, responses.data, responses.folds,
        config.ridge.alphas, config.encode.ratios, config.encode.block,
    )  # fmt: skip
    maps: Maps = {}
    for name, fit in zip(PHASES, joint, strict=True):
        own = _maps(fit, responses, config)
        own["ratio"] = np.asarray(config.encode.ratios, dtype="f4")[fit.ratio_index]
        xp = array_library(config.ridge.device)
        both, alone, measured = map(
            xp.asarray, (fit.predictions, single.predictions, responses.test)
        )
        gains = stats.gain_r2(both, alone, measured, config.encode.bootstraps, config.seed)
        for key, values in zip(("gain", "gain_low", "gain_high"), gains, strict=True):
            own[key] = to_host(values).astype("f4")
        own["gain_p"] = stats.gain_p(both, alone, measured).astype("f4")
        error = mean_gain_error(both, alone, measured, responses.rois)
        own["mean_gain_error"] = to_host(error).astype("f4")
        maps |= {f"{name}/{key}": values for key, values in own.items()}
    return maps


def _maps(fit: Fit, responses: Responses, config: Config) -> Maps:
    """r, its p by three rules, the chosen penalty, (n_voxels,) float32 each; ``edge_share`` (); and
    ``mean_r_error`` (ROIS,).

    r and its null are found on ridge's device.
    """
    xp = array_library(config.ridge.device)
    both = xp.asarray(fit.predictions), xp.asarray(responses.test)
    found = stats.pearson(*both), *stats.p_permutation(*both, config.encode.nulls, config.seed)
    r, p, p_fwe = (to_host(values) for values in found)
    error = to_host(mean_r_error(*both, responses.rois))
    maps = {"r": r, "p_permutation": p, "p_fwe": p_fwe, "mean_r_error": error,
            "p_gaussian": stats.p_gaussian(r, len(responses.test)),
            "alpha": np.asarray(config.ridge.alphas)[fit.alpha_index]}  # fmt: skip
    share = edge_share(fit.alpha_index, config.ridge.alphas, fit.cv_scores.max(0))
    return {name: values.astype("f4") for name, values in maps.items()} | {
        "edge_share": np.asarray(share)
    }


def _write(file: h5py.File, name: str, maps: Maps) -> None:
    """Write a model's maps, and say how it did."""
    group, maps = file.create_group(name), dict(maps)
    share = group.attrs["edge_share"] = float(maps.pop("edge_share"))
    for key, values in maps.items():
        group[key] = values
    print(
        f"{name}: mean r {np.nanmean(maps['r']):.3f}, penalty at the grid's edge for {share:.1%} of voxels"
        + edge_warning(share)
    )


def _both(subject: int | None, responses: Responses):
    """The training pictures lie with the subject's own features, the test pictures with the shared."""
    return ((subject, responses.train_ids), (None, responses.test_ids))
