"""Betas of NSD -> one HDF5 of trials x voxels for training, pictures x voxels for the test.

Test pictures are those that every subject saw; their repeats are averaged. Training trials stay
single trials. Voxels are standardised by the mean and sd of the training trials alone.

Memory: one session of the ROI (750 x n_voxels, as int16, float32 and float64) and the test
pictures' sums (1,000 x n_voxels float64); for 12,000 voxels about 0.6 GB however many sessions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np

from nsdcap.cells import sessions_of
from nsdcap.config import Config
from nsdcap.errors import DataError
from nsdcap.nsd import BETAS_SCALE, NSD, TRIALS_PER_SESSION
from nsdcap.nsd_checks import all_zero, check_subject, has_ncsnr
from nsdcap.parts import kept
from nsdcap.paths import Cell
from nsdcap.stats import noise_ceiling

# why a voxel is left out, by the attribute that counts it; the first that holds counts
DROPPED = {
    "dropped_zero": "0 throughout some session",
    "dropped_constant": "constant over the training trials of some session",
    "dropped_constant_test": "constant over all test trials",
    "dropped_no_ncsnr": "without ncsnr",
}
SATURATED = 32767  # NSD's betas go no further
CHUNK = (TRIALS_PER_SESSION, 512)  # a session by a block of voxels: 1.5 MB


def run(cell: Cell, config: Config, nsd: NSD, out: Path, target: Path) -> None:
    """The stage's cell: ``prepare`` for a subject, by the settings of the run; a session is a part."""
    prepare(
        nsd,
        cast(int, cell.subject),
        sessions_of(config, nsd, cell.subject),
        target,
        scale=config.data.scale,
        zscore_sessions=config.data.zscore_sessions,
        keep_part=partial(kept, out, cell),
    )


def prepare(
    nsd: NSD,
    subject: int,
    sessions: Sequence[int],
    out: Path,
    *,
    roi_labels: Sequence[str] | None = None,
    scale: bool = True,
    zscore_sessions: bool = False,
    log: Callable[[str], object] = print,
    keep_part: Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]] = lambda name, part: (
        part()
    ),
) -> dict[str, int]:
    """Write ``out`` (HDF5) for one subject; returns counts of trials, pictures and voxels.

    roi_labels: names of streams; None takes all of them (labels 1 to 7).
    scale: betas / 300, percent signal change; otherwise the raw int16 numbers.
    zscore_sessions: first z-score each session by the mean and sd of its own training trials;
    ``voxel_mean`` and ``voxel_sd`` are then in these units.
    keep_part: called with a session's name and what reads it; gives what that gives, or gave before.

    Datasets, voxels in C order of (x, y, z):
    betas_train (n_trials, n_voxels) float32, z-scored; nsd_id_train (n_trials,) int64;
    session_train (n_trials,) int64, 1-based; trial_train (n_trials,) int64, 0-based over all of the
    subject's sessions; betas_test (n_pictures, n_voxels) float32, mean over repeats, then
    standardised by the training trials' mean and sd; nsd_id_test (n_pictures,) int64, increasing;
    repeats_test (n_pictures,) int64; voxel_mean, voxel_sd (n_voxels,) float64; xyz (n_voxels, 3)
    int32; affine (4, 4); stream (n_voxels,) int8; ncsnr, noise_ceiling (n_voxels,) float32, the
    latter the share of variance ncsnr^2 / (ncsnr^2 + mean(1 / repeats)) (NSD Data Manual).
    Attributes: subject, sessions, shape (X, Y, Z), stream_names (JSON, name -> label), what ``DROPPED``
    names, saturated_betas, saturated_voxels.

    Voxels that ``DROPPED`` tells of are left out and counted, each once. Betas at the ends of int16 are
    counted among the voxels that stay. Raises DataError before any long work when files are missing or
    disagree.
    """
    sessions = sorted(int(s) for s in sessions)
    found = check_subject(nsd, subject, sessions, roi_labels)
    trials, is_test, xyz, stream = found.trials, found.is_test, found.xyz, found.stream
    n_voxels = len(xyz)
    n_train = int((~is_test).sum())
    test_ids, picture, repeats = np.unique(
        trials.nsd_id[is_test], return_inverse=True, return_counts=True
    )
    test_row = np.full(len(is_test), -1)  # (n_trials,) row of betas_test
    test_row[is_test] = picture
    log(f"subject {subject}: (n_trials, n_voxels) = ({len(is_test)}, {n_voxels}) to read")

    # 1. one pass over the sessions: training rows to disk, test repeats summed
    ncsnr = found.ncsnr
    varies, zero = np.ones(n_voxels, dtype=bool), np.zeros(n_voxels, dtype=bool)
    saturated = np.zeros(n_voxels, dtype=np.int64)
    low, high = np.full(n_voxels, 2**15), np.full(n_voxels, -(2**15))  # of test trials
    total = np.zeros(n_voxels)
    squares = np.zeros(n_voxels)
    test_sum = np.zeros((len(test_ids), n_voxels))  # (n_pictures, n_voxels)
    with h5py.File(out, "w", rdcc_nbytes=0) as file:  # see ``features``
        rows = file.create_dataset(
            "betas_train",
            (n_train, n_voxels),
            "f4",
            chunks=(min(CHUNK[0], n_train), min(CHUNK[1], n_voxels)),
            maxshape=(n_train, n_voxels),
        )
        row = 0
        for number, session in enumerate(sessions):
            here = slice(number * TRIALS_PER_SESSION, (number + 1) * TRIALS_PER_SESSION)
            of_test = is_test[here]
            read = partial(_session, nsd, subject, session, xyz, of_test, scale, zscore_sessions)
            part = keep_part(f"session_{session}", read)
            train, varies, zero = part["train"], varies & part["varies"], zero | part["zero"]
            saturated += part["saturated"]
            low, high = np.minimum(low, part["test_low"]), np.maximum(high, part["test_high"])
            rows[row : row + len(train)] = train
            row += len(train)
            total += train.sum(0, dtype=np.float64)
            squares += np.einsum("ij,ij->j", train, train, dtype=np.float64)
            np.add.at(test_sum, test_row[here][of_test], part["test"])
            log(f"subject {subject} session {session}: {len(train)} training trials of 750")

        # 2. voxels to keep; the same rows again, standardised, moved left over the dropped ones
        unheard = ~has_ncsnr(ncsnr)
        reasons = dict(zip(DROPPED, (zero, ~varies, low == high, unheard), strict=True))
        keep = np.ones(n_voxels, dtype=bool)
        dropped = {}
        for name, where in reasons.items():
            dropped[name] = int((keep & where).sum())
            keep &= ~where
        told = ", ".join(f"{count} {DROPPED[name]}" for name, count in dropped.items() if count)
        if not keep.any():
            raise DataError(
                f"subject {subject}: of {n_voxels} voxels of the ROI none is left ({told}); check the files in "
                f"{nsd.betas_dir(subject)}."
            )
        ends = {
            "saturated_betas": int(saturated[keep].sum()),
            "saturated_voxels": int((saturated[keep] > 0).sum()),
        }
        mean = total[keep] / n_train
        sd = np.sqrt(np.maximum(squares[keep] / n_train - mean**2, np.finfo(np.float64).tiny))
        n_kept = int(keep.sum())
        for start in range(0, n_train, TRIALS_PER_SESSION):
            block = slice(start, min(start + TRIALS_PER_SESSION, n_train))
            rows[block, :n_kept] = (rows[block][:, keep] - mean) / sd
        rows.resize((n_train, n_kept))
        test = (test_sum[:, keep] / repeats[:, None] - mean) / sd

        # 3. what each row and column is
        file["betas_test"] = test.astype(np.float32)
        file["nsd_id_train"] = trials.nsd_id[~is_test]
        file["session_train"] = trials.session[~is_test]
        file["trial_train"] = trials.number[~is_test]
        file["nsd_id_test"] = test_ids
        file["repeats_test"] = repeats.astype(np.int64)
        file["voxel_mean"] = mean
        file["voxel_sd"] = sd
        file["xyz"] = xyz[keep].astype(np.int32)
        file["affine"] = found.affine
        file["stream"] = stream[keep].astype(np.int8)
        file["ncsnr"] = ncsnr[keep].astype(np.float32)
        file["noise_ceiling"] = noise_ceiling(ncsnr[keep], repeats).astype(np.float32)
        names = nsd.stream_labels(subject)
        counts = {
            "train_trials": n_train,
            "train_pictures": len(np.unique(trials.nsd_id[~is_test])),
            "test_trials": int(is_test.sum()),
            "test_pictures": len(test_ids),
            "voxels": n_kept,
            **dropped,
            **ends,
        }
        file.attrs.update(
            subject=subject,
            sessions=np.asarray(sessions),
            shape=np.asarray(found.shape),
            stream_names=json.dumps(names),
            **dropped,
            **ends,
            scaled=scale,
            zscored_sessions=zscore_sessions,
        )
    log(f"subject {subject}: (n_trials_train, n_voxels) = ({n_train}, {n_kept})")
    log(
        f"subject {subject}: (n_pictures_test, n_voxels) = ({len(test_ids)}, {n_kept}),"
        f" {repeats.mean():.2f} repeats on average"
    )
    if n_kept < n_voxels:
        log(f"subject {subject}: {n_voxels - n_kept} of {n_voxels} voxels dropped: {told}")
    if ends["saturated_betas"]:
        log(
            f"subject {subject}: {ends['saturated_betas']} betas of {ends['saturated_voxels']} voxels are at "
            f"the ends of what NSD stores, +/-{SATURATED}; they are kept"
        )
    return counts


def _session(
    nsd: NSD, subject: int, session: int, xyz: np.ndarray, of_test: np.ndarray, scale: bool,
    zscore: bool,
) -> dict[str, np.ndarray]:  # fmt: skip
    """A session's ``train`` and ``test`` trials (n, n_voxels) float32, and of each voxel (n_voxels,)
    whether its training trials vary, whether all are 0, how many are saturated, and the test trials' range."""
    raw = nsd.betas(subject, session, xyz)  # (750, n_voxels) int16
    if not raw.any():
        raise DataError(all_zero(nsd.betas_file(subject, session)))
    betas = raw.astype(np.float32)
    if scale:
        betas /= np.float32(BETAS_SCALE)
    first = raw[~of_test][:1]
    about = {
        "varies": (raw[~of_test] != first).any(0) | of_test.all(),
        "zero": ~raw.any(0),
        "saturated": ((raw >= SATURATED) | (raw <= -SATURATED)).sum(0),
        "test_low": raw[of_test].min(0, initial=2**15 - 1),
        "test_high": raw[of_test].max(0, initial=-(2**15)),
    }
    if zscore:
        mean = betas[~of_test].mean(0, dtype=np.float64)
        sd = betas[~of_test].std(0, dtype=np.float64)
        betas = ((betas - mean) / np.where(sd > 0, sd, 1)).astype(np.float32)
    return {"train": betas[~of_test], "test": betas[of_test], **about}
