"""All cells' files -> tables and maps in one folder; a gap anywhere is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from nsdcap.config import PHASES, STREAMS, Config
from nsdcap.errors import DataError
from nsdcap.paths import Cell, artefact
from nsdcap.stats import fdr
from nsdcap.tables import (
    BOOTSTRAPS,
    DECODING_COLUMNS,
    SCORE_COLUMNS,
    SHUFFLES,
    decoding_rows,
    open_hdf5,
    write_table,
)
from nsdcap.tables_captions import caption_rows, read_captions
from nsdcap.tables_pictures import picture_rows

ROIS = (*STREAMS, "all")
MAPS = ("r", "p_permutation", "p_gaussian", "alpha")
JOINT_MAPS = (*MAPS, "ratio", "gain", "gain_low", "gain_high")
ALPHA = 0.05  # of the false discovery rate
FSAVERAGE5 = 10242  # vertices a hemisphere: the first of fsaverage's
ENCODING_COLUMNS = (
    "subject", "roi", "feature", "state", "phase", "n_voxels", "n_nan", "n_significant",
    "n_significant_gaussian", "mean_r", "ci_low", "ci_high", "mean_r_over_ceiling", "mean_gain",
    "alpha_median", "edge_share",
)  # fmt: skip
LAYER_COLUMNS = ("subject", "roi", "n_voxels", "n_significant", "mean_state", "ci_low", "ci_high")


@dataclass(frozen=True)
class Voxels:
    """A subject's voxels in the order of all its maps."""

    xyz: np.ndarray  # (n_voxels, 3) int
    affine: np.ndarray  # (4, 4)
    stream: np.ndarray  # (n_voxels,) 1 to 7
    ceiling: np.ndarray  # (n_voxels,) highest r there can be
    shape: tuple[int, ...]  # (X, Y, Z)
    n_trials: int

    def volume(self, values: np.ndarray) -> np.ndarray:
        """Values (n_voxels,) as (X, Y, Z) float32, NaN elsewhere."""
        volume = np.full(self.shape, np.nan, dtype=np.float32)
        volume[tuple(self.xyz.T)] = values
        return volume


@dataclass(frozen=True)
class Model:
    """One encoding model's maps, each (n_voxels,); ``state`` and ``phase`` None for z_v."""

    feature: str
    state: int | None
    phase: str | None
    maps: dict[str, np.ndarray]
    edge_share: float


def run(cell: Cell, config: Config, nsd: Any, out: Path, target: Path) -> None:
    """The stage: tables, maps, figures and the report, into the folder ``target``."""
    from nsdcap import plots, report
    from nsdcap.stages import encode_states

    subjects, states = list(config.data.subjects), list(encode_states(config))
    aggregate(out, target, subjects, states, surfaces=nsd, no_stimuli=config.no_stimuli)
    plots.draw(out, target)
    report.write(out, target, log=lambda line: None)  # the launcher names the place it ends in


def aggregate(
    out: Path,
    target: Path,
    subjects: list[int],
    states: list[int],
    *,
    surfaces: Any = None,
    no_stimuli: bool = False,
    log: Callable[[str], object] = print,
) -> None:
    """Read every result of the run in ``out``; write tables, maps and run.json into ``target``.

    Significance is Benjamini-Hochberg at 0.05 over all voxels of a map; voxels whose p is NaN (they
    never varied) are left out and counted. ``states``: BERT states from 0, the embeddings.
    ``surfaces``: an ``nsd.NSD``, whose transforms take maps to fsaverage; without them, or where a
    subject lacks them, maps stay in the volume. ``target`` is made; the caller renames it.

    Raises
    ------
    DataError
        Files are missing (all are named), or one is broken or does not agree with another.
    """
    _refuse_gaps(out, subjects, states)
    for folder in ("tables", "maps"):
        (target / folder).mkdir(parents=True, exist_ok=True)
    encoding: list[dict] = []
    layers: list[dict] = []
    captions: list[dict] = []
    pictures: list[dict] = []
    decoding: list[dict] = []
    counts, on_surface = {}, []
    for subject in subjects:
        voxels = read_voxels(out, subject)
        models = []
        for model in read_models(out, subject, states, len(voxels.stream)):
            encoding += encoding_rows(subject, model, voxels)
            models.append(model)
        best, adds = best_state(models)
        layers += layer_rows(subject, best, adds, voxels)
        volumes = _volumes(models, states, np.where(adds, best, np.nan))
        for name, values in volumes.items():
            image = nib.Nifti1Image(voxels.volume(values), voxels.affine)
            nib.save(image, target / "maps" / f"subj{subject:02d}_{name}.nii.gz")
        if surfaces is not None and _to_surface(
            surfaces, subject, volumes, voxels, target / "maps", log
        ):
            on_surface.append(subject)
        written = read_captions(out, subject)
        captions += caption_rows(subject, written)
        rows = picture_rows(out, subject, {int(i) for i in written["captions"]})
        pictures += rows
        decoding += decoding_rows(out, subject)
        counts[subject] = {
            "n_voxels": len(voxels.stream),
            "n_trials_train": voxels.n_trials,
            "n_test": len(written["captions"]),
        }
        log(f"aggregate subj{subject:02d}: {counts[subject]}")
    for name, columns, table in (
        ("encoding", ENCODING_COLUMNS, encoding), ("layers", LAYER_COLUMNS, layers),
        ("captions", SCORE_COLUMNS, captions), ("pictures", SCORE_COLUMNS, pictures),
        ("decoding", DECODING_COLUMNS, decoding),
    ):  # fmt: skip
        write_table(target / "tables" / f"{name}.csv", columns, table)
    summary = {
        "subjects": subjects, "states": states, "no_stimuli": no_stimuli, "counts": counts,
        "on_surface": on_surface, "z_B_map": {"state": max(states), "phase": "mid"},
        "shuffles": SHUFFLES, "bootstraps": BOOTSTRAPS,
    }  # fmt: skip
    (target / "run.json").write_text(json.dumps(summary, indent=1) + "\n")


def read_voxels(out: Path, subject: int) -> Voxels:
    """Where a subject's voxels are and what they can reach."""
    with open_hdf5(artefact(out, Cell("prepare", subject)), ()) as file:
        ceiling = np.sqrt(np.clip(file["noise_ceiling"][:], 0, 1))
        shape = tuple(int(side) for side in file.attrs["shape"])
        n_trials = len(file["nsd_id_train"])
        return Voxels(
            file["xyz"][:], file["affine"][:], file["stream"][:], ceiling, shape, n_trials
        )


def read_models(out: Path, subject: int, states: list[int], n_voxels: int) -> Iterator[Model]:
    """Every encoding model of a subject, one at a time."""
    for state in (None, *states):
        names = ["z_v", "z_v_cls"]
        if state is not None:
            names = [f"{feature}_{phase}" for feature in ("z_B", "joint") for phase in PHASES]
        path = artefact(out, Cell("encode", subject, state))
        with open_hdf5(path, names) as file:
            for name in names:
                feature, phase = name, None
                if state is not None:
                    feature, phase = name.rsplit("_", 1)
                wanted = JOINT_MAPS if feature == "joint" else MAPS
                maps = {key: _map(file[name], key, n_voxels, path) for key in wanted}
                yield Model(feature, state, phase, maps, float(file[name].attrs["edge_share"]))


def encoding_rows(subject: int, model: Model, voxels: Voxels) -> list[dict]:
    """A row for each stream and one for all voxels. r over ceiling: mean r / mean highest r.

    Intervals of means are over voxels, as if these were independent.
    """
    r, p = model.maps["r"], model.maps["p_permutation"]
    significant = fdr(p)[0]
    gaussian = fdr(model.maps["p_gaussian"])[0]
    known = np.isfinite(p) & np.isfinite(r)
    rows = []
    for roi in ROIS:
        inside = _inside(voxels.stream, roi)
        use = inside & known
        row: dict[str, Any] = {
            "subject": subject, "roi": roi, "feature": model.feature, "state": model.state,
            "phase": model.phase, "n_voxels": int(use.sum()), "n_nan": int((inside & ~known).sum()),
        }  # fmt: skip
        if use.any():
            mean, low, high = _mean_interval(r[use])
            row |= {
                "n_significant": int(significant[use].sum()),
                "n_significant_gaussian": int(gaussian[use].sum()),
                "mean_r": mean, "ci_low": low, "ci_high": high,
                "mean_r_over_ceiling": mean / np.nanmean(voxels.ceiling[use]),
                "alpha_median": np.nanmedian(model.maps["alpha"][use]),
            }  # fmt: skip
            if "gain" in model.maps:
                row["mean_gain"] = np.nanmean(model.maps["gain"][use])
        else:
            row |= {"n_significant": 0, "n_significant_gaussian": 0}
        rows.append(row | ({"edge_share": model.edge_share} if roi == "all" else {}))
    return rows


def best_state(models: list[Model]) -> tuple[np.ndarray, np.ndarray]:
    """The BERT state of each voxel's highest gain over z_v, and where that gain is significant.

    Returns state (n_voxels,) float64, NaN where no gain is known, and significant (n_voxels,) bool.
    The best of many gains flatters itself: its p, normal with the width of its bootstrap interval
    and one-sided, is multiplied by the number of models (Bonferroni), then Benjamini-Hochberg over
    the voxels.
    """
    from scipy.stats import norm

    joint = [model for model in models if model.feature == "joint"]
    gains = np.stack([model.maps["gain"] for model in joint])  # (models, n_voxels)
    width = np.stack([model.maps["gain_high"] - model.maps["gain_low"] for model in joint])
    at = np.where(np.isfinite(gains), gains, -np.inf).argmax(0)
    voxel = np.arange(gains.shape[1])
    known = np.isfinite(gains).any(0)
    state = np.array([float(model.state or 0) for model in joint])[at]
    with np.errstate(invalid="ignore", divide="ignore"):
        z = gains[at, voxel] / (width[at, voxel] / (2 * norm.ppf(0.975)))
    p = np.minimum(norm.sf(z) * len(joint), 1.0)
    return np.where(known, state, np.nan), fdr(np.where(known, p, np.nan))[0]


def layer_rows(subject: int, best: np.ndarray, adds: np.ndarray, voxels: Voxels) -> list[dict]:
    """Mean best state of each stream over voxels whose gain is significant."""
    rows = []
    for roi in ROIS:
        inside = _inside(voxels.stream, roi)
        use = inside & adds
        row: dict[str, Any] = {"subject": subject, "roi": roi, "n_voxels": int(inside.sum())}
        row["n_significant"] = int(use.sum())
        if use.any():
            mean, low, high = _mean_interval(best[use])
            row |= {"mean_state": mean, "ci_low": low, "ci_high": high}
        rows.append(row)
    return rows


def _volumes(models: list[Model], states: list[int], best: np.ndarray) -> dict[str, np.ndarray]:
    """Maps by name, (n_voxels,) each. z_B's is the last state's midway, chosen before any look."""
    maps = {}
    for name, wanted in (("z_v", ("z_v", None, None)), ("z_B", ("z_B", max(states), "mid"))):
        model = next(m for m in models if (m.feature, m.state, m.phase) == wanted)
        maps[f"{name}_r"] = model.maps["r"]
        maps[f"{name}_q"] = fdr(model.maps["p_permutation"])[1]
    maps["best_layer"] = best
    return maps


def _to_surface(
    surfaces: Any,
    subject: int,
    maps: dict[str, np.ndarray],
    voxels: Voxels,
    folder: Path,
    log: Callable[[str], object],
) -> bool:
    """Write significant voxels' maps on fsaverage5 as GIfTI; False where transforms are missing."""
    shown = {
        name: np.where(maps[f"{name[:3]}_q"] < ALPHA, maps[name], np.nan)
        for name in ("z_v_r", "z_B_r")
    }
    shown["best_layer"] = maps["best_layer"]
    written = {}
    try:
        for name, values in shown.items():
            for hemi in ("lh", "rh"):
                own = surfaces.to_surface(subject, hemi, voxels.volume(values), "nearest")
                written[f"{name}.{hemi}"] = surfaces.to_fsaverage(subject, hemi, own)[:FSAVERAGE5]
    except DataError as error:
        log(f"aggregate subj{subject:02d}: not on the cortex, {error}")
        return False
    for name, values in written.items():
        array = nib.gifti.GiftiDataArray(values.astype(np.float32), intent="NIFTI_INTENT_ESTIMATE")
        image = nib.gifti.GiftiImage(darrays=[array])
        nib.save(image, folder / f"subj{subject:02d}_{name}.fsaverage5.func.gii")
    return True


def _refuse_gaps(out: Path, subjects: list[int], states: list[int]) -> None:
    cells = [
        Cell(stage, subject)
        for stage in ("prepare", "decode", "caption", "reconstruct", "compare")
        for subject in subjects
    ]
    cells += [Cell("encode", subject, state) for subject in subjects for state in (None, *states)]
    missing = [path for path in (artefact(out, cell) for cell in cells) if not path.is_file()]
    if missing:
        names = ", ".join(str(path.relative_to(out)) for path in missing)
        raise DataError(
            f"{out}: {len(missing)} of {len(cells)} results are missing: {names}; run their stages"
        )


def _map(group: Any, key: str, n_voxels: int, path: Path) -> np.ndarray:
    if key not in group or group[key].shape != (n_voxels,):
        found = group[key].shape if key in group else "nothing"
        raise DataError(
            f"{path}: {group.name}/{key}: found {found}, expected ({n_voxels},), the voxels of the "
            "prepare stage; run the encode stage again"
        )
    return group[key][:]


def _mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and normal 95 % interval of values (n,) over voxels."""
    mean, half = float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5
    return mean, mean - half, mean + half


def _inside(stream: np.ndarray, roi: str) -> np.ndarray:
    return np.isin(stream, range(1, 8)) if roi == "all" else stream == STREAMS.index(roi) + 1
