"""Pictures from brain activity: the caption arm against the direct arm (paper 3.3, A.4)."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

from nsdcap.config import Config
from nsdcap.decode import read_latent
from nsdcap.diffusion import Diffusion, resize
from nsdcap.nsd import NSD
from nsdcap.paths import Cell, artefact
from nsdcap.progress import track
from nsdcap.ridge import blocks
from nsdcap.score import Clip


def run(cell: Cell, config: Config, nsd: NSD, out: Path, target: Path) -> None:
    """Reconstruct a subject's test pictures by both arms; write them with their CLIP embeddings.

    HDF5, S = reconstruct.size: ``nsd_id`` (n,); ``shown`` and ``coarse`` (n, S, S, 3) uint8, coarse
    being decoded from z alone, where both arms start; ``caption`` and ``direct``
    (n, samples, S, S, 3) uint8, conditioned on the caption written from the brain and on c decoded
    from the brain; ``clip_*`` the embeddings of each, unit length, float32.
    Memory: c of the test pictures and one batch of pictures.
    """
    with h5py.File(artefact(out, Cell("decode", cell.subject)), "r") as file:
        ids = file["nsd_id"][:]
    written = json.loads(artefact(out, Cell("caption", cell.subject)).read_text())["captions"]
    texts = [written[str(i)]["brain"] for i in ids]
    c_direct = read_latent(out, cell.subject, "c", config)
    z = read_latent(out, cell.subject, "z", config)
    diffusion = Diffusion(config.models, config.reconstruct)
    clip = Clip(config.models)
    settings = config.reconstruct
    with h5py.File(target, "w") as file:
        file["nsd_id"] = ids
        for rows in track(list(blocks(len(ids), settings.batch)), str(cell)):
            coarse = diffusion.coarse(z[rows])
            shown = resize(nsd.pictures(ids[rows]), settings.size)
            _put(file, clip, "shown", shown[:, None], rows, len(ids))
            _put(file, clip, "coarse", coarse[:, None], rows, len(ids))
            arms = {"caption": diffusion.text_latents(texts[rows]), "direct": c_direct[rows]}
            for arm, c in arms.items():
                samples = [
                    diffusion.reconstruct(
                        coarse,
                        c,
                        diffusion.noise(config.seed, cell.subject or 0, ids[rows], sample),
                    )
                    for sample in range(settings.samples)
                ]
                _put(file, clip, arm, np.stack(samples, 1), rows, len(ids))


def _put(file: h5py.File, clip: Clip, name: str, pictures: np.ndarray, rows: slice, n: int) -> None:
    """Write pictures (b, samples, S, S, 3) and their embeddings; one sample has no axis in the file
    for the shown and the coarse pictures."""
    b, samples = pictures.shape[:2]
    embedded = clip.pictures(pictures.reshape(-1, *pictures.shape[2:])).reshape(b, samples, -1)
    for key, values in ((name, pictures), (f"clip_{name}", embedded)):
        if name in ("shown", "coarse"):
            values = values[:, 0]
        if key not in file:
            file.create_dataset(key, (n, *values.shape[1:]), values.dtype)
        file[key][rows] = values
