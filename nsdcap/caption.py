"""Captions from decoded z_v, and those they are held against (paper 3.3)."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import numpy as np

from nsdcap.artefacts import Stored, open_artefact
from nsdcap.blip import Blip
from nsdcap.config import Config
from nsdcap.decode import read_latent
from nsdcap.features import open_features, rows_of
from nsdcap.metrics.clip import METRICS, clip_pairs
from nsdcap.metrics.similarity import shuffled
from nsdcap.nsd import NSD
from nsdcap.paths import Cell, json_text
from nsdcap.ridge import blocks
from nsdcap.score import Clip
from nsdcap.shards import in_order
from nsdcap.tables import SHUFFLES

ARMS = ("brain", "brain_gain", "picture", "nearest")


def run(cell: Cell, config: Config, nsd: NSD, out: Path, target: Path) -> None:
    """Write captions of a subject's test pictures, with references and CLIP scores, as JSON.

    Arms: ``brain`` from z_v decoded from activity; ``brain_gain`` the same with decode.gain = "cv";
    ``picture`` from the picture's own z_v, the captioner's best; ``nearest`` the first human caption
    of the training picture whose z_v is nearest to the decoded one, which train and test
    pictures that resemble each other flatter. ``clip`` are each caption's scores by the metrics of
    ``nsdcap.metrics.clip``, ``clip_chance`` the mean and sd of their means over ``clip_shuffles``
    shuffles of the pictures, ``clip_model`` the name of ``models.clip``.

    A part is kept of each ``models.batch`` captions from the brain.
    Memory: the test pictures' z_v three times and ``ridge.block`` of their targets.
    """
    with open_artefact(out, Cell("decode", cell.subject)) as file:
        ids = file["nsd_id"][:]
    decoded = read_latent(out, cell.subject, "z_v", config)
    with_gain = read_latent(out, cell.subject, "z_v", config, gain="cv")
    captions = _written({"brain": decoded, "brain_gain": with_gain}, config, cell, out)
    del with_gain
    with open_features(out, None) as shared:
        captions["picture"] = list(shared["caption"].asstr()[:][rows_of(shared, ids)])
    with open_features(out, cell.subject) as own:
        nearest = nearest_rows(decoded.reshape(len(ids), -1), own["z_v"], config.ridge.block)
        nearest_ids = own["nsd_id"][:][nearest]
    human = nsd.captions(np.concatenate([ids, nearest_ids]))
    captions["nearest"] = [human[int(i)][0] for i in nearest_ids]
    clip = Clip(config.models)
    references = [human[int(i)] for i in ids]
    pairs = clip_pairs(clip.texts, captions, clip.pictures(nsd.pictures(ids)), references)
    content = {
        "subject": cell.subject,
        "arms": list(ARMS),
        "clip_model": clip.name,
        "clip_shuffles": SHUFFLES,
        "clip_chance": {
            metric: {arm: shuffled_mean(pairs[arm][metric], config.seed) for arm in ARMS}
            for metric in METRICS
        },
        "captions": {
            str(i): {
                **{arm: captions[arm][row] for arm in ARMS},
                "references": references[row],
                "clip": {
                    metric: {arm: round(float(pairs[arm][metric][row, row]), 7) for arm in ARMS}
                    for metric in METRICS
                },
            }
            for row, i in enumerate(ids)
        },
    }
    target.write_text(json_text(content))


def _written(
    latents: dict[str, np.ndarray], config: Config, cell: Cell, out: Path
) -> dict[str, list[str]]:
    """Captions from each arm's latents (n, tokens, width), kept batch by batch."""

    @cache
    def load() -> Blip:  # not where all parts are there
        return Blip(config.models, config.caption)

    def batch(own: np.ndarray) -> dict[str, list[str]]:
        return {"texts": load().captions(own)}

    work = {
        f"{arm}_{rows.start}-{rows.stop}": partial(batch, own[rows])
        for arm, own in latents.items()
        for rows in blocks(len(own), config.models.batch)
    }
    texts: dict[str, list[str]] = {arm: [] for arm in latents}
    for name, found in zip(work, in_order(out, cell, work), strict=True):
        texts[name.rpartition("_")[0]] += found["texts"].tolist()
    return texts


def shuffled_mean(pairs: np.ndarray, seed: int, n_shuffles: int = SHUFFLES) -> tuple[float, float]:
    """Mean and sd over shuffles of the pictures of the mean score; pairs (n captions, n pictures)."""
    rows = np.arange(len(pairs))
    return shuffled(lambda order: float(pairs[rows, order].mean()), len(pairs), n_shuffles, seed)


def nearest_rows(decoded: np.ndarray, training: Stored, block: int) -> np.ndarray:
    """Row (n_test,) of the training picture whose latent points most as each decoded one does.

    Cosine of the deviations from the training pictures' mean: what all pictures share says nothing of
    which is near. decoded (n_test, n_targets) float32; training (n_pictures, n_targets), read in
    column blocks.
    """
    dot, squares = np.zeros((len(decoded), len(training))), np.zeros(len(training))
    for columns in blocks(training.shape[1], block):
        part = training[:, columns]  # (n_pictures, b)
        mean = part.mean(0)
        part -= mean
        dot += (decoded[:, columns] - mean) @ part.T
        squares += np.square(part, dtype=np.float64).sum(1)
    return (dot / np.sqrt(squares)).argmax(1)
