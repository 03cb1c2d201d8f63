"""Pictures to latents: z, c, z_v and z_B of every picture that is needed, each computed once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nsdcap.artefacts import Artefact, damaged, open_artefact
from nsdcap.blip import Blip
from nsdcap.cells import sessions_of
from nsdcap.config import Config
from nsdcap.diffusion import Diffusion
from nsdcap.errors import DataError
from nsdcap.nsd import NSD
from nsdcap.paths import Cell
from nsdcap.progress import track
from nsdcap.ridge import blocks
from nsdcap.shards import in_order

ROWS, COLUMNS = 1024, 512  # a chunk: blocks of targets are read down all pictures


def needed_pictures(nsd: NSD, subject: int | None, sessions: list[int]) -> np.ndarray:
    """Sorted nsd_ids (n,) int64 that a features cell computes.

    With a subject: the pictures that only this subject saw; without one: the shared pictures.
    So no picture is computed twice, however many subjects saw it.
    """
    shared = nsd.shared_ids()
    if subject is not None:
        return np.setdiff1d(nsd.trials(subject, sessions).nsd_id, shared)
    return np.intersect1d(nsd.trials(1, sessions).nsd_id, shared)  # the order is every subject's


def run(cell: Cell, config: Config, nsd: NSD, out: Path, target: Path) -> None:
    """Write z_v, z_B, z, c and the captioner's own captions of a cell's pictures to ``target``.

    HDF5: ``nsd_id`` (n,), ``z_v`` (n, tokens * width), ``z_B`` (n, states, 3, width), ``z``
    (n, channels * s * s), ``c`` (n, positions * width), all float32; attribute ``shape`` keeps each
    one's own axes; ``caption`` (n,) strings. Memory: one batch of ``models.batch`` pictures, which is
    kept as a part.
    """
    sessions = sessions_of(config, nsd, cell.subject)
    ids = needed_pictures(nsd, cell.subject, sessions)
    if not len(ids):
        which = "shared pictures" if cell.subject is None else "pictures of the subject's own"
        raise DataError(
            f"{cell}: found no {which} in the first {len(sessions)} sessions; raise data.sessions"
        )
    references = nsd.captions(ids)

    @cache
    def load() -> tuple[Blip, Diffusion]:  # not where all parts are there
        models = config.models
        return Blip(models, config.caption), Diffusion(models, config.reconstruct)

    # no cache of chunks: where one cannot be emptied, on a full disk, HDF5 2.0 kills the process
    with h5py.File(target, "w", rdcc_nbytes=0) as file:
        file["nsd_id"] = ids
        captions = file.create_dataset("caption", len(ids), h5py.string_dtype())
        batches = list(blocks(len(ids), config.models.batch))
        work = {
            f"{rows.start}-{rows.stop}": partial(_batch, ids[rows], references, nsd, load, config)
            for rows in batches
        }
        parts = in_order(out, cell, work)
        for rows, found in zip(batches, track(parts, str(cell), len(work)), strict=True):
            captions[rows] = found.pop("caption").tolist()
            for name, values in found.items():
                _append(file, name, values, rows.start, len(ids))


def _batch(
    ids: np.ndarray, references: dict[int, list[str]], nsd: NSD,
    load: Callable[[], tuple[Blip, Diffusion]], config: Config,
) -> dict[str, Any]:  # fmt: skip
    """All that is computed of some pictures."""
    blip, diffusion = load()
    pictures = nsd.pictures(ids)  # (b, 425, 425, 3)
    z_v = blip.features(pictures)
    written = blip.write(z_v)
    return {
        "caption": blip.texts(written),
        "z_v": z_v,
        "z_B": blip.text_states(z_v, written),
        "z": diffusion.encode(
            pictures, config.reconstruct.coarse_size, posterior_noise(diffusion, ids, config)
        ),
        "c": mean_text_latents(diffusion, [references[int(i)] for i in ids]),
    }


def posterior_noise(diffusion: Diffusion, nsd_ids: np.ndarray, config: Config) -> np.ndarray | None:
    """With reconstruct.posterior = "sample" noise (n, channels, s, s) from (seed, nsd_id), else None."""
    if config.reconstruct.posterior == "mean":
        return None
    shape = diffusion.latent_shape(config.reconstruct.coarse_size)
    found = np.empty((len(nsd_ids), *shape), np.float32)
    for to, nsd_id in zip(found, nsd_ids, strict=True):
        np.random.default_rng([config.seed, nsd_id]).standard_normal(dtype=np.float32, out=to)
    return found


def mean_text_latents(diffusion: Diffusion, references: list[list[str]]) -> np.ndarray:
    """c (n, positions, width): the mean text latent over each picture's captions."""
    flat = diffusion.text_latents([text for texts in references for text in texts])
    ends = np.cumsum([len(texts) for texts in references])
    return np.stack([part.mean(0) for part in np.split(flat, ends[:-1])])


def _append(file: h5py.File, name: str, values: np.ndarray, start: int, total: int) -> None:
    """Put a batch's rows in place; the dataset is made at the first."""
    shape = values.shape[1:]
    flat = values if name == "z_B" else values.reshape(len(values), -1)
    if name not in file:
        inner = (1, 1, shape[-1]) if name == "z_B" else (min(COLUMNS, flat.shape[1]),)
        dataset = file.create_dataset(
            name, (total, *flat.shape[1:]), "f4", chunks=(min(ROWS, total), *inner)
        )
        dataset.attrs["shape"] = shape
    file[name][start : start + len(values)] = flat


def rows_of(file: Artefact, nsd_ids: np.ndarray) -> np.ndarray:
    """Row (n,) of each nsd_id in a features file, whose ids are sorted.

    Raises
    ------
    DataError
        An id that the file does not hold.
    """
    held = file["nsd_id"][:]
    rows = np.minimum(np.searchsorted(held, nsd_ids), len(held) - 1)
    if not np.array_equal(held[rows], nsd_ids):
        missing = np.asarray(nsd_ids)[held[rows] != nsd_ids]
        raise damaged(file.path, f"lacks {len(missing)} pictures, the first nsd_id {missing[0]}")
    return rows


def open_features(out: Path, subject: int | None) -> Artefact:
    """The features of a subject's own pictures, or (None) of the shared ones."""
    return open_artefact(out, Cell("features", subject))
