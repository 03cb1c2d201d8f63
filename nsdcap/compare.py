"""Reconstructions against the shown pictures, by the measures that peers report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from nsdcap.artefacts import Artefact, open_artefact
from nsdcap.backbones import Extractor, NotComputed, Reader, compare
from nsdcap.config import ARMS, Config
from nsdcap.devices import choose_device
from nsdcap.metrics.peers import BACKBONE_METRICS, BACKBONES, PIXELS
from nsdcap.metrics.pictures import pixcorr, squared, ssim, why_no_ssim
from nsdcap.nsd import NSD
from nsdcap.parts import kept
from nsdcap.paths import Cell
from nsdcap.progress import track
from nsdcap.ridge import blocks

BLOCK = 64  # pictures whose pixels are kept as one part
CHANCE = ":chance"  # ends the name of what other pictures give
Scores = dict[str, dict[str, np.ndarray]]  # by prediction, then by the key of a metric


def run(cell: Cell, config: Config, nsd: NSD, out: Path, target: Path) -> None:
    """Score each arm's pictures of a subject against those shown.

    HDF5: ``nsd_id`` (n,); for each arm and metric of ``metrics.peers`` ``ARM/KEY`` (n, samples) float32,
    NaN where it is not defined, with the attribute ``chance`` where other pictures tell it. What cannot be
    computed here stands with its reason, by metric, in the attribute ``not_computed``, JSON. Each network,
    and the pixels of every ``BLOCK`` pictures, are kept as parts. Memory: as ``backbones.compare``.
    """
    with (
        open_artefact(out, Cell("reconstruct", cell.subject)) as file,
        h5py.File(target, "w") as result,
    ):
        n = len(file["nsd_id"])
        shown, made = partial(_rows, file["shown"]), dict(_predictions(file))
        first = [name for name in made if name.endswith("/0")]
        why = why_no_ssim()
        reasons = {"ssim": why} if why else {}
        kind = (
            "pixcorr" if why else "pixels"
        )  # a part is not gone on with where the other is wanted
        work = {
            f"{kind}-{rows.start}-{rows.stop}": partial(
                pixel_scores, shown, made, rows, n, first, not why
            )
            for rows in blocks(n, BLOCK)
        }
        found: dict[str, list] = {}
        for name, compute in track(work.items(), f"{cell}, pixels"):
            part = kept(out, cell, name, partial(_flat, compute))
            for key, values in part.items():
                found.setdefault(key, []).append(values)
        scores = {key: np.concatenate(values) for key, values in found.items()}
        for key in track(BACKBONES, f"{cell}, networks"):
            one = partial(_network, key, config, shown, made, n)
            try:
                scores |= kept(out, cell, key, one)
            except NotComputed as error:
                reasons |= {metric.key: str(error) for metric in BACKBONE_METRICS[key]}
        result["nsd_id"] = file["nsd_id"][:]
        result.attrs["not_computed"] = json.dumps(reasons)
        _write(result, scores)


def pixel_scores(
    shown: Reader,
    made: Mapping[str, Reader],
    rows: slice,
    n: int,
    chance: Sequence[str],
    with_ssim: bool,
) -> Scores:
    """PixCorr and SSIM (b,) of some rows of n pictures, at ``peers.PIXELS``.

    For predictions named in ``chance``, under ``KEY:chance``, also those of every third picture with the next
    one that was shown. In as many threads as torch has.
    """
    measures = {"pixcorr": pixcorr} | ({"ssim": ssim} if with_ssim else {})
    follows = rows.stop % n
    truth = _squared([*shown(rows), *shown(slice(follows, follows + 1))])
    thirds = slice(-rows.start % 3, None, 3) if n > 1 else slice(0)
    scores: Scores = {}

    def one(a: np.ndarray, b: np.ndarray) -> list[float]:
        return [float(measure(a[None], b[None])[0]) for measure in measures.values()]

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for name, read in made.items():
            made_here = _squared(read(rows))
            own = np.array(list(pool.map(one, truth[:-1], made_here)))
            scores[name] = {key: own[:, k] for k, key in enumerate(measures)}
            if name in chance:
                others = list(pool.map(one, truth[1:][thirds], made_here[thirds]))
                found = np.array(others).reshape(-1, len(measures))
                scores[name] |= {f"{key}{CHANCE}": found[:, k] for k, key in enumerate(measures)}
    return scores


def _network(
    key: str, config: Config, shown: Reader, made: dict[str, Reader], n: int
) -> dict[str, np.ndarray]:
    models = config.models
    extractor = Extractor(key, models.backbones, choose_device(models.device), models.batch)
    return _flat(partial(compare, extractor, shown, made, n))


def _predictions(file: Artefact) -> Iterator[tuple[str, Reader]]:
    """Readers of each arm's samples, by "arm/sample"."""
    for arm in ARMS:
        pictures = file[arm]
        if pictures.ndim == 4:
            yield f"{arm}/0", partial(_rows, pictures)
            continue
        for sample in range(pictures.shape[1]):
            yield f"{arm}/{sample}", partial(_rows, pictures, sample=sample)


def _rows(pictures: Any, rows: slice, sample: int | None = None) -> Sequence[np.ndarray]:
    return pictures[rows] if sample is None else pictures[rows, sample]


def _flat(compute: Any) -> dict[str, np.ndarray]:
    """Scores under one name each, "arm/sample/key", as parts hold them."""
    return {
        f"{name}/{key}": np.atleast_1d(values)
        for name, scores in compute().items()
        for key, values in scores.items()
    }


def _write(result: h5py.File, scores: Mapping[str, np.ndarray]) -> None:
    """Samples side by side, and of what other pictures give the mean."""
    samples: dict[str, list[np.ndarray]] = {}
    for name, values in scores.items():
        arm, _, key = name.split("/")
        samples.setdefault(f"{arm}/{key}", []).append(values)
    for name in sorted(name for name in samples if not name.endswith(CHANCE)):
        result[name] = np.stack(samples[name], 1).astype(np.float32)
        if others := samples.get(name + CHANCE):
            together = np.concatenate(others)
            known = together[np.isfinite(together)]
            result[name].attrs["chance"] = known.mean() if known.size else np.nan


def _squared(pictures: Iterable[np.ndarray]) -> Sequence[np.ndarray]:
    return [squared(picture, PIXELS) for picture in pictures]
