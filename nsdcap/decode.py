"""Brain to latents: z_v, c and z of the test pictures predicted from voxels by ridge (paper 3.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from nsdcap.artefacts import Stored, damaged, open_artefact
from nsdcap.config import STREAMS, Config
from nsdcap.decode_bases import DecodeBases, decode_bases
from nsdcap.devices import array_library
from nsdcap.errors import DataError
from nsdcap.features import open_features, rows_of
from nsdcap.folds import grouped_folds
from nsdcap.parts import found, keep, kept
from nsdcap.paths import Cell, artefact
from nsdcap.ridge import edge_share, edge_warning
from nsdcap.ridge_decode import DecodedBlock, decode_cv

LATENTS = ("z_v", "c", "z")


def run(cell: Cell, config: Config, nsd: object, out: Path, target: Path) -> None:
    """Predict each latent of a subject's test pictures; write them to ``target``.

    HDF5, a group for each of z_v, c, z: ``predicted`` (n_test, n_targets) float32, ``mean``
    (n_targets,) float32 over the training pictures as the trials weigh them, ``alpha_index`` and
    ``cv_r2`` (n_targets,); attributes ``gain`` (see ``with_gain``), ``edge_share``, ``alphas``,
    ``shape``. And ``nsd_id`` (n_test,).

    Memory: voxels of the training trials, twice, and what ``decode_bases`` and ``decode_cv`` say; a part is
    kept of ``ridge.block`` targets. The gain is found whatever ``decode.gain`` says: the caption stage's arm
    ``brain_gain`` and the tables read it.
    """
    with open_artefact(out, Cell("prepare", cell.subject)) as prepared:
        stream = prepared["stream"][:]
        trial_ids = prepared["nsd_id_train"][:]
        test_ids = prepared["nsd_id_test"][:]
        train = prepared["betas_train"][:]  # (n_trials, n_voxels)
        test = prepared["betas_test"][:]  # (n_test, n_voxels)
    print(f"{cell}: (n_trials, n_voxels) = {train.shape}, (n_test, n_voxels) = {test.shape}")
    if config.ridge.group_folds:
        folds = grouped_folds(trial_ids, config.ridge.folds, config.seed)
    else:
        folds = np.arange(len(trial_ids)) * config.ridge.folds // len(trial_ids)
    xp = array_library(config.ridge.device)
    with h5py.File(target, "w") as file, open_features(out, cell.subject) as features:
        file["nsd_id"] = test_ids
        picture = rows_of(features, trial_ids)
        bases: dict[tuple[str, ...], DecodeBases] = {}

        def factorised(roi: tuple[str, ...], voxels: np.ndarray) -> DecodeBases:
            if roi not in bases:  # latents of one ROI share its factorisations
                bases.clear()  # before the next ones are there
                bases[roi] = decode_bases(
                    xp.asarray(train[:, voxels]), picture, xp.asarray(test[:, voxels]), folds,
                    len(features["nsd_id"]),
                )  # fmt: skip
            return bases[roi]

        for name in LATENTS:
            roi = getattr(config.roi, name)
            voxels = np.isin(stream, [STREAMS.index(part) + 1 for part in roi])
            if not voxels.any():
                raise DataError(
                    f"{artefact(out, Cell('prepare', cell.subject))}: no voxel of {' or '.join(roi)} is left, "
                    f"which setting roi.{name} asks for; choose other streams, or see what prepare left out"
                )
            group = file.create_group(name)
            alphas = getattr(config.decode, f"{name}_alphas") or config.ridge.alphas
            solved = _solved(
                cell, name, partial(factorised, roi, voxels), features[name], alphas, config, out
            )
            _write(group, solved, len(test_ids), features[name], alphas)
            print(
                f"{cell}: {name} from {voxels.sum()} voxels, {group.attrs['n_targets']} targets, gain "
                f"{group.attrs['gain']:.2f}, penalty at the grid's edge for "
                f"{group.attrs['edge_share']:.1%}" + edge_warning(group.attrs["edge_share"])
            )


def _solved(
    cell: Cell, name: str, factorised: Callable[[], DecodeBases], latents: Stored,
    alphas: tuple[float, ...], config: Config, out: Path,
) -> Iterator[DecodedBlock]:  # fmt: skip
    """Blocks of one latent, each kept as a part; where all are there, nothing is factorised."""

    def finished(part: slice) -> DecodedBlock | None:
        block = found(out, cell, f"{name}_{part.start}-{part.stop}")
        if block is None:
            return None
        return DecodedBlock(**{key: values[()] for key, values in block.items()})  # type: ignore

    whole = found(out, cell, f"{name}_whole")
    edges = [] if whole is None else [slice(*edge) for edge in pairwise(whole["edges"].tolist())]
    if edges and all(finished(part) for part in edges):  # read twice, not all held at once
        yield from filter(None, map(finished, edges))
        return
    bases, n_targets = factorised(), latents.shape[1]
    per_target = config.decode.alpha == "target"
    solved = decode_cv(
        bases, lambda start, stop: latents[:, start:stop], n_targets, alphas,
        block=config.ridge.block, per_target=per_target, relative=not config.ridge.absolute,
        log=lambda line: print(f"{name}: {line}"), finished=finished,
        recall=lambda what: (found(out, cell, f"{name}_{what}") or {}).get("array"),
        note=lambda what, array: keep(out, cell, f"{name}_{what}", {"array": array}),
    )  # fmt: skip
    stops = [0]
    for block in solved:
        stops.append(block.stop)
        kept(out, cell, f"{name}_{block.start}-{block.stop}", partial(vars, block))
        yield block
    keep(out, cell, f"{name}_whole", {"edges": stops})


def _write(
    group: h5py.Group, solved: Iterator[DecodedBlock], n_test: int, latents: Stored,
    alphas: tuple[float, ...],
) -> None:  # fmt: skip
    """Write one latent block by block, and the gain of all of them."""
    n_targets = latents.shape[1]
    predicted = group.create_dataset("predicted", (n_test, n_targets), "f4")
    mean = group.create_dataset("mean", n_targets, "f4")
    index = np.zeros(n_targets, dtype=int)
    cv_r2 = np.zeros(n_targets, dtype=np.float32)
    sums = np.zeros(2)
    for block in solved:
        columns = slice(block.start, block.stop)
        predicted[:, columns], mean[columns] = block.predictions, block.y_mean
        index[columns] = block.alpha_index
        cv_r2[columns] = block.cv_r2
        sums += block.truth, block.predicted
    group["alpha_index"], group["cv_r2"] = index, cv_r2
    group.attrs["gain"] = np.sqrt(sums[0] / sums[1])
    group.attrs["edge_share"] = edge_share(index, alphas, cv_r2)
    group.attrs["alphas"] = alphas
    group.attrs["n_targets"] = n_targets
    group.attrs["shape"] = latents.attrs["shape"]


def read_latent(out: Path, subject: int | None, name: str, config: Config, gain: str | None = None):
    """A subject's decoded latent of its test pictures, ready for the models.

    ``gain`` "cv" multiplies predictions about the training mean by one factor, which gives the
    cross-validated predictions of the training pictures the length of the truth: ridge shrinks them
    towards the mean, and the captioner knows no such latents. "none" leaves them; by default the
    setting decides. Without ``decode.intercept`` the training mean is taken off again, as the released
    code's predictions lack it.
    Returns (n_test, *axes of the latent) float32.
    """
    with open_artefact(out, Cell("decode", subject)) as file:
        group = file[name]
        predicted, mean = group["predicted"][:], group["mean"][:]
        factor = group.attrs["gain"] if (gain or config.decode.gain) == "cv" else 1.0
        shape = tuple(int(side) for side in group.attrs["shape"])
        if math.prod(shape) != len(mean):
            raise damaged(file.path, f"{name} has {len(mean)} targets, but its shape is {shape}")
    deviation = (predicted - mean) * np.float32(factor)
    whole = mean + deviation if config.decode.intercept else deviation
    return whole.reshape(-1, *shape).astype(np.float32)
