"""Latents to brain: encoding models of every voxel from z_v, z_B and both (paper 3.4)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nsdcap import stats
from nsdcap.config import PHASES, Config
from nsdcap.devices import array_library
from nsdcap.errors import DataError
from nsdcap.features import open_features, rows_of
from nsdcap.folds import Collapsed, collapse
from nsdcap.kernel import read_bases, read_pictures, read_whole
from nsdcap.paths import Cell, artefact
from nsdcap.ridge import Fit, edge_share, edge_warning
from nsdcap.ridge_encode import encode_basis, encode_primal
from nsdcap.ridge_joint import encode_joint


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
    mean eigenvalue. Maps: ``r`` with the test pictures' mean responses, ``p_permutation``, ``p_fwe``,
    ``p_gaussian``, ``alpha``; joint ones also ``ratio``, ``gain``, ``gain_low``, ``gain_high``.

    Memory: responses of the training pictures, twice, and with a layer the eigenbases of z_v's kernel,
    8 (folds + 1) n_pictures^2 bytes; voxels are solved ``encode.block`` at a time.
    """
    responses = read_responses(cell.subject, config, out)
    n_voxels = responses.test.shape[1]
    print(f"{cell}: (n_pictures, n_voxels) = ({len(responses.train_ids)}, {n_voxels})")
    with h5py.File(target, "w") as file:
        if cell.layer is None:
            basis = read_whole(cell.subject, config, out)
            fit = encode_basis(
                basis, responses.data, responses.folds, config.ridge.alphas, config.encode.block
            )
            _write_maps(file.create_group("z_v"), fit, responses, config)
            cls = [z_v_cls(out, subject, ids) for subject, ids in _both(cell.subject, responses)]
            solve_features(cls[0], cls[1], responses, config, file.create_group("z_v_cls"))
            return
        spaces = []
        for phase, name in enumerate(PHASES):
            z_b, z_b_test = (
                read_z_b(out, subject, ids, cell.layer, phase)
                for subject, ids in _both(cell.subject, responses)
            )
            solve_features(z_b, z_b_test, responses, config, file.create_group(f"z_B_{name}"))
            spaces.append(varying(z_b, z_b_test, config))
        single, *joint = encode_joint(
            read_bases(cell.subject, config, out), spaces, responses.data, responses.folds,
            config.ridge.alphas, config.encode.ratios, config.encode.block,
        )  # fmt: skip
        for name, fit in zip(PHASES, joint, strict=True):
            group = file.create_group(f"joint_{name}")
            _write_joint(group, fit, single.predictions, responses, config)


def read_responses(subject: int | None, config: Config, out: Path) -> Responses:
    """A subject's prepared betas with the repeats of each training picture collapsed exactly."""
    pictures = read_pictures(subject, config, out)
    with h5py.File(artefact(out, Cell("prepare", subject)), "r") as file:
        data = collapse(file["betas_train"], file["nsd_id_train"][:])  # read by blocks of voxels
        test = file["betas_test"][:]
    return Responses(data, pictures.folds, data.ids, test, pictures.test_ids)


def read_z_b(out: Path, subject: int | None, ids: np.ndarray, layer: int, phase: int) -> np.ndarray:
    """z_B (n, width) float64 of the given pictures at one BERT state and phase."""
    with open_features(out, subject) as file:
        return file["z_B"][:, layer, phase, :][rows_of(file, ids)].astype(np.float64)


def z_v_cls(out: Path, subject: int | None, ids: np.ndarray) -> np.ndarray:
    """The CLS token of z_v (n, width) float64 of the given pictures."""
    with open_features(out, subject) as file:
        width = int(file["z_v"].attrs["shape"][1])
        return file["z_v"][:, :width][rows_of(file, ids)].astype(np.float64)


def solve_features(
    features: np.ndarray, test: np.ndarray, responses: Responses, config: Config, group: h5py.Group
) -> None:
    """A model from few features (n, p), ``test`` (n_test, p) for the test pictures, and its maps."""
    space, space_test = varying(features, test, config)
    fit = encode_primal(
        space, responses.data, responses.folds, config.ridge.alphas, space_test, config.encode.block
    )
    _write_maps(group, fit, responses, config)


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


def _write_joint(
    group: h5py.Group, fit: Fit, single: np.ndarray, responses: Responses, config: Config
) -> None:
    """The maps of z_v and z_B together, and what z_B adds to z_v (``single``)."""
    _write_maps(group, fit, responses, config)
    group["ratio"] = np.asarray(config.encode.ratios, dtype="f4")[fit.ratio_index]
    gains = stats.gain_r2(
        fit.predictions, single, responses.test, config.encode.bootstraps, config.seed
    )
    for name, values in zip(("gain", "gain_low", "gain_high"), gains, strict=True):
        group[name] = values.astype("f4")


def _write_maps(group: h5py.Group, fit: Fit, responses: Responses, config: Config) -> None:
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
    share = edge_share(fit.alpha_index, config.ridge.alphas)
    group.attrs["edge_share"] = share
    print(
        f"{group.name[1:]}: mean r {np.nanmean(r):.3f}, penalty at the grid's edge for {share:.1%} of voxels"
        + edge_warning(share)
    )


def _both(subject: int | None, responses: Responses):
    """The training pictures lie with the subject's own features, the test pictures with the shared."""
    return ((subject, responses.train_ids), (None, responses.test_ids))
