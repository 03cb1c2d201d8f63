"""Pictures from brain activity: the caption arm against the direct arm (paper 3.3, A.4)."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import cast

import h5py
import numpy as np

from nsdcap.artefacts import open_artefact
from nsdcap.config import Config
from nsdcap.decode import read_latent
from nsdcap.diffusion import Diffusion, resize
from nsdcap.errors import DataError
from nsdcap.nsd import NSD
from nsdcap.paths import Cell, artefact
from nsdcap.progress import track
from nsdcap.ridge import blocks
from nsdcap.score import Clip, name_of
from nsdcap.shards import in_order
from nsdcap.tables_captions import read_captions


def run(cell: Cell, config: Config, nsd: NSD, out: Path, target: Path) -> None:
    """Reconstruct a subject's test pictures by both arms; write them with their CLIP embeddings.

    HDF5, S = reconstruct.size: ``nsd_id`` (n,); ``shown`` and ``coarse`` (n, S, S, 3) uint8, coarse
    being decoded from z alone, where both arms start; ``caption`` and ``direct``
    (n, samples, S, S, 3) uint8, conditioned on the caption written from the brain and on c decoded
    from the brain; ``clip_*`` the embeddings of each, unit length, float32; attribute ``clip``: whose.
    Memory: c of the test pictures and one batch of ``reconstruct.batch`` pictures, which is kept as a part.
    """
    with open_artefact(out, Cell("decode", cell.subject)) as file:
        ids = file["nsd_id"][:]
    written = read_captions(out, cast(int, cell.subject))["captions"]
    if missing := [int(i) for i in ids if str(i) not in written]:
        raise DataError(
            f"{artefact(out, Cell('caption', cell.subject))}: found no caption of {len(missing)} of {len(ids)} "
            f"pictures, the first nsd_id {missing[0]}; run the caption stage again, with --force"
        )
    texts = [written[str(i)]["brain"] for i in ids]
    c_direct = read_latent(out, cell.subject, "c", config)
    z = read_latent(out, cell.subject, "z", config)
    settings = config.reconstruct

    @cache
    def load() -> tuple[Diffusion, Clip]:  # not where all parts are there
        return Diffusion(config.models, settings), Clip(config.models)

    def batch(rows: slice) -> dict[str, np.ndarray]:
        diffusion, clip = load()
        coarse = diffusion.coarse(z[rows])
        shown = resize(nsd.pictures(ids[rows]), settings.size)
        found = _embedded(clip, "shown", shown[:, None])
        found |= _embedded(clip, "coarse", coarse[:, None])
        arms = {"caption": diffusion.text_latents(texts[rows]), "direct": c_direct[rows]}
        for arm, c in arms.items():
            samples = [
                diffusion.reconstruct(
                    coarse, c, diffusion.noise(config.seed, cell.subject or 0, ids[rows], sample)
                )
                for sample in range(settings.samples)
            ]
            found |= _embedded(clip, arm, np.stack(samples, 1))
        return found

    with h5py.File(target, "w") as file:
        file["nsd_id"] = ids
        file.attrs["clip"] = name_of(config.models)
        batches = list(blocks(len(ids), settings.batch))
        work = {f"{rows.start}-{rows.stop}": partial(batch, rows) for rows in batches}
        parts = in_order(out, cell, work)
        for rows, found in zip(batches, track(parts, str(cell), len(work)), strict=True):
            for name, values in found.items():
                if name not in file:
                    file.create_dataset(name, (len(ids), *values.shape[1:]), values.dtype)
                file[name][rows] = values


def _embedded(clip: Clip, name: str, pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Pictures (b, samples, S, S, 3) and their embeddings by their names in the file; one sample has no
    axis there for the shown and the coarse pictures."""
    b, samples = pictures.shape[:2]
    embedded = clip.pictures(pictures.reshape(-1, *pictures.shape[2:])).reshape(b, samples, -1)
    found = {name: pictures, f"clip_{name}": embedded}
    return {k: v[:, 0] for k, v in found.items()} if name in ("shown", "coarse") else found
