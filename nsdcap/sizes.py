"""The sizes that costs follow from: of a subject's data, and of the models by their configurations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nsdcap.cells import sessions_of
from nsdcap.config import STREAMS, Config
from nsdcap.model_files import read_configuration
from nsdcap.nsd import NSD
from nsdcap.stages import blip_config

# operations of Stable Diffusion 1.4 at 512 pixels, 0.8e12 a pass of the UNet, 1.1e12 to encode a picture
# and 2.5e12 to decode one, shared out over sum(channels^2 x positions) of the levels
UNET, ENCODER, DECODER = 590.0, 79.0, 180.0
HUB_WEIGHTS = {
    "blip": 1.0e9,
    "diffusion": 4.3e9,
    "clip": 0.6e9,
}  # bytes of the usual ones in float32


@dataclass(frozen=True)
class DataSizes:
    """Of one subject: single ``trials`` of training, the ``pictures`` that they show, ``tests`` shared
    pictures, ``sessions``, and ``streams`` (7,) voxels of each stream."""

    trials: int
    pictures: int
    tests: int
    sessions: int
    streams: tuple[int, ...]

    def voxels(self, roi: Sequence[str] = STREAMS) -> int:
        """Voxels of some streams, before constant ones are left out."""
        return sum(self.streams[STREAMS.index(name)] for name in roi)


@dataclass(frozen=True)
class ModelSizes:
    """``z_v``, ``c``, ``z`` numbers of a picture's latents; ``width``, ``layers`` of BLIP's text decoder;
    ``weights`` bytes in memory of each model. The rest are floating-point operations: ``see`` a picture
    by BLIP, ``write`` a token (with what it looks up in z_v), ``text`` a text latent, ``encode`` and
    ``coarse`` a picture to and from z, ``noise`` a pass of the UNet, ``start`` and ``paint`` a picture to
    and from the UNet's latent."""

    z_v: int
    c: int
    z: int
    width: int
    layers: int
    see: float
    write: float
    text: float
    encode: float
    coarse: float
    noise: float
    start: float
    paint: float
    weights: dict[str, float]


def data_sizes(config: Config, nsd: NSD, subject: int) -> DataSizes:
    """Counted in the design and the streams' volume; betas are not opened.

    Raises
    ------
    DataError
        A file that is missing or broken, a session that NSD does not have.
    """
    sessions = sessions_of(config, nsd, subject)
    ids = nsd.trials(subject, sessions).nsd_id
    shared = np.isin(ids, nsd.shared_ids())
    labels = nsd.roi(subject, "streams")[0]
    counts = np.bincount(labels[labels > 0], minlength=len(STREAMS) + 1)[1 : len(STREAMS) + 1]
    return DataSizes(
        int((~shared).sum()), len(np.unique(ids[~shared])), len(np.unique(ids[shared])),
        len(sessions), tuple(counts.tolist()),
    )  # fmt: skip


def model_sizes(config: Config) -> ModelSizes:
    """From the models' config.json; of a diffusion model at a hub those of Stable Diffusion 1.4.

    Raises
    ------
    DataError
        ``models.blip`` is neither a folder with config.json, nor a hub id that can be reached, nor a
        checkpoint of BLIP; or a configuration is damaged.
    """
    models, settings = config.models, config.reconstruct
    blip = blip_config(models.blip)
    vision, text = blip.get("vision_config", {}), blip.get("text_config", {})
    width, layers = text.get("hidden_size", 768), text.get("num_hidden_layers", 12)
    seen, size = (
        vision.get("hidden_size", 768),
        models.picture_size or vision.get("image_size", 384),
    )
    tokens = (size // vision.get("patch_size", 16)) ** 2 + 1
    unet, vae, clip = (_parts(models.diffusion, part) for part in ("unet", "vae", "text_encoder"))
    reduction = 2 ** (len(vae.get("block_out_channels", (128, 256, 512, 512))) - 1)
    latent = settings.size // reduction
    positions = clip.get("max_position_embeddings", 77)

    def vae_levels(pixels: int) -> float:
        return _levels(vae.get("block_out_channels", (128, 256, 512, 512)), pixels)

    return ModelSizes(
        z_v=tokens * seen,
        c=positions * clip.get("hidden_size", 768),
        z=vae.get("latent_channels", 4) * (settings.coarse_size // reduction) ** 2,
        width=width,
        layers=layers,
        see=_transformer(tokens, seen, vision.get("num_hidden_layers", 12)),
        write=layers * (32.0 * width**2 + 4 * tokens * width),
        text=_transformer(
            positions, clip.get("hidden_size", 768), clip.get("num_hidden_layers", 12)
        ),
        encode=ENCODER * vae_levels(settings.coarse_size),
        coarse=DECODER * vae_levels(settings.coarse_size),
        noise=UNET * _levels(unet.get("block_out_channels", (320, 640, 1280, 1280)), latent),
        start=ENCODER * vae_levels(settings.size),
        paint=DECODER * vae_levels(settings.size),
        weights={name: _weights(name, getattr(models, name)) for name in HUB_WEIGHTS},
    )


def _transformer(tokens: int, width: int, layers: int) -> float:
    """Operations of a transformer's layers on one sequence."""
    return layers * (24.0 * tokens * width**2 + 4.0 * tokens**2 * width)


def _levels(channels: Sequence[int], side: int) -> float:
    return sum(float(c * side / 2**level) ** 2 for level, c in enumerate(channels))


def _parts(where: str, part: str) -> dict[str, Any]:
    """A part's configuration of a diffusers folder; empty where it is not at hand."""
    file = Path(where) / part / "config.json"
    return read_configuration(f"models.diffusion = {where!r}", file) if file.is_file() else {}


def _weights(name: str, where: str) -> float:
    """Bytes of a model in float32, twice those of its files, which may be in half precision.

    A checkpoint of BLIP's own is in float32, with more in it than is used.
    """
    folder = Path(where)
    if folder.is_file():
        return float(folder.stat().st_size)
    if not folder.is_dir():
        return HUB_WEIGHTS[name]
    endings = (".safetensors", ".bin")
    return 2.0 * sum(p.stat().st_size for p in folder.rglob("*") if p.suffix in endings)
