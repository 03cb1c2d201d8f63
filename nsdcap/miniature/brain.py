"""The miniature's brain: responses built from what a picture shows, never from a model's features.

Early voxels see the picture itself through a receptive field: contrast at an orientation,
luminance, or opponent colours. The others follow what is in the scene: kinds of object, colours,
places, number. Each voxel's truth is kept, so that a later analysis can be held against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nsdcap.miniature.cortex import STREAMS
from nsdcap.miniature.world import COLOUR_NAMES, COLOURS, KINDS, PLACES, SIZE, Scene

GROUPS = {
    "natural": ("tree", "bird", "fish", "flower"),
    "vehicle": ("car", "boat"),
    "thing": ("ball", "house", "kite", "umbrella"),
}
GROUP_OF_KIND = np.array([[k in members for members in GROUPS.values()].index(True) for k in KINDS])

# share of each class among a stream's voxels; "noise" voxels answer to no picture
CLASSES_OF_STREAM = {
    "early": {"early": 0.92, "noise": 0.08},
    "midventral": {"middle": 0.9, "noise": 0.1},
    "midlateral": {"middle": 0.9, "noise": 0.1},
    "midparietal": {"middle": 0.9, "noise": 0.1},
    "ventral": {"object": 0.5, "object_colour": 0.26, "colour": 0.14, "noise": 0.1},
    "lateral": {"object_place": 0.42, "count": 0.34, "object": 0.14, "noise": 0.1},
    "parietal": {
        "place": 0.32,
        "colour": 0.18,
        "object": 0.16,
        "count": 0.14,
        "object_place": 0.1,
        "noise": 0.1,
    },
}
CLASSES = (
    "early",
    "middle",
    "place",
    "object",
    "colour",
    "object_place",
    "object_colour",
    "count",
    "noise",
)

ATTRIBUTES = (
    *(f"place:{p}" for p in PLACES),
    *(f"kind:{k}" for k in KINDS),
    *(f"colour:{c}" for c in COLOUR_NAMES),
    *(f"group_place:{g}:{p}" for g in GROUPS for p in PLACES),
    *(f"group_colour:{g}:{c}" for g in GROUPS for c in COLOUR_NAMES),
    "count",
    "area",
)
_BLOCK = {
    name: np.array([i for i, a in enumerate(ATTRIBUTES) if a.split(":")[0] == name])
    for name in ("place", "kind", "colour", "group_place", "group_colour", "count", "area")
}

_WAVELENGTHS = (6.0, 10.0)  # px
_ORIENTATIONS = 4
GABORS = tuple(f"gabor:{w:g}px:{45 * o}deg" for w in _WAVELENGTHS for o in range(_ORIENTATIONS))
CHANNELS = (*GABORS, "luminance", "red_green", "blue_yellow")


@dataclass(frozen=True)
class Brain:
    """The planted truth of n voxels."""

    kind: np.ndarray  # (n,) str, one of CLASSES
    weights: np.ndarray  # (n, len(ATTRIBUTES)) float32, up to the voxel's scale; 0 unused
    channel: np.ndarray  # (n,) int, index into CHANNELS, -1 where unused
    field: np.ndarray  # (n, 3) x, y, sigma of the receptive field in px of 64, NaN where unused
    ncsnr: np.ndarray  # (n,) 0 for noise voxels
    noise_sd: np.ndarray  # (n,) psc, of one trial


def attributes(scenes: Sequence[Scene]) -> np.ndarray:
    """What is in each scene: (n_scenes, len(ATTRIBUTES)) float64 in the order of ATTRIBUTES."""
    found = np.zeros((len(scenes), len(ATTRIBUTES)))
    for row, scene in zip(found, scenes, strict=True):
        row[_BLOCK["place"][scene.place]] = 1
        row[_BLOCK["count"]] = len(scene.items)
        for item in scene.items:
            group = GROUP_OF_KIND[item.kind]
            row[_BLOCK["kind"][item.kind]] += 1
            row[_BLOCK["colour"][item.colour]] += 1
            row[_BLOCK["group_place"][group * len(PLACES) + scene.place]] += 1
            row[_BLOCK["group_colour"][group * len(COLOURS) + item.colour]] += 1
            row[_BLOCK["area"]] += (item.size / SIZE) ** 2
    return found


def channels(pictures: np.ndarray) -> np.ndarray:
    """Maps of early vision: pictures (n, 64, 64, 3) uint8 -> (len(CHANNELS), n, 64, 64) float32.

    Gabor channels are the amplitude of a quadrature pair, so they do not depend on phase.
    Memory: 11 maps, 0.18 MB a picture.
    """
    n = len(pictures)
    maps = np.empty((len(CHANNELS), n, SIZE, SIZE), dtype=np.float32)
    margin = 16
    side = SIZE + 2 * margin
    around = np.minimum(np.arange(side), side - np.arange(side))
    yy, xx = np.meshgrid(around, around, indexing="ij")
    signed = np.where(np.arange(side) < side / 2, np.arange(side), np.arange(side) - side)
    sy, sx = np.meshgrid(signed, signed, indexing="ij")
    filters = []
    for wavelength in _WAVELENGTHS:
        envelope = np.exp(-(xx**2 + yy**2) / (2 * (0.5 * wavelength) ** 2))
        for o in range(_ORIENTATIONS):
            angle = np.pi * o / _ORIENTATIONS
            wave = np.exp(2j * np.pi * (sx * np.cos(angle) + sy * np.sin(angle)) / wavelength)
            gabor = envelope * wave
            gabor -= envelope * (gabor.sum() / envelope.sum())  # blind to mean luminance
            filters.append(np.fft.fft2(gabor / envelope.sum()))
    inner = slice(margin, margin + SIZE)
    for start in range(0, n, 64):
        part = slice(start, start + 64)
        rgb = pictures[part].astype(np.float32) / 255
        grey = rgb.mean(-1)
        padded = np.pad(grey, ((0, 0), (margin, margin), (margin, margin)), mode="edge")
        spectrum = np.fft.fft2(padded)
        for c, gabor in enumerate(filters):
            maps[c, part] = np.abs(np.fft.ifft2(spectrum * gabor))[:, inner, inner]
        maps[-3, part] = grey
        maps[-2, part] = rgb[..., 0] - rgb[..., 1]
        maps[-1, part] = rgb[..., 2] - (rgb[..., 0] + rgb[..., 1]) / 2
    return maps


def plant(
    rng: np.random.Generator,
    xyz: np.ndarray,
    stream: np.ndarray,
    hemi: np.ndarray,
    upper: np.ndarray,
) -> Brain:
    """Draw each voxel's class, weights, receptive field and noise.

    xyz (n, 3) voxels; stream (n,) 1 to 7; hemi (n,) 0 left, 1 right; upper (n,) bool: sees the
    upper visual field. A class forms patches on the cortex; receptive fields lie in the opposite
    half of the picture, as in the retinotopic areas.
    """
    n = len(xyz)
    kind = _classes(rng, xyz, stream)
    weights = np.zeros((n, len(ATTRIBUTES)))
    channel = np.full(n, -1)
    field = np.full((n, 3), np.nan)
    rgb = np.array(list(COLOURS.values())) / 255 - 0.5  # (10, 3)
    for i, name in enumerate(kind):
        if name in ("early", "middle"):
            is_gabor = rng.random() < 0.65
            channel[i] = rng.integers(0, 8) if is_gabor else rng.integers(8, 11)
            x = SIZE / 2 + (1 if hemi[i] == 0 else -1) * rng.uniform(-3, 27)
            y = SIZE / 2 + (-1 if upper[i] else 1) * rng.uniform(-3, 27)
            sigma = rng.uniform(3.5, 8) if name == "early" else rng.uniform(7, 12)
            field[i] = x, y, sigma
        if name in ("middle", "object"):
            by_group = rng.normal(0, 0.6, len(GROUPS))[GROUP_OF_KIND]
            weights[i, _BLOCK["kind"]] = _centred(by_group + rng.normal(0, 0.8, len(KINDS)))
        elif name == "place":
            weights[i, _BLOCK["place"]] = _centred(rng.normal(0, 1, len(PLACES)))
        elif name == "colour":
            smooth = rgb @ rng.normal(0, 1.2, 3)
            weights[i, _BLOCK["colour"]] = _centred(smooth + rng.normal(0, 0.6, len(COLOURS)))
        elif name in ("object_place", "object_colour"):
            block = _BLOCK["group_place" if name == "object_place" else "group_colour"]
            weights[i, block] = _centred(rng.normal(0, 1, len(block)))
        elif name == "count":
            angle, sign = rng.uniform(0, np.pi / 2), rng.choice((-1, 1))
            weights[i, _BLOCK["count"]] = sign * np.cos(angle)
            weights[i, _BLOCK["area"]] = sign * np.sin(angle) / 0.15  # sd of area, about
    ncsnr = np.exp(rng.uniform(np.log(0.5), np.log(1.5), n))
    return Brain(
        kind,
        weights.astype(np.float32),
        channel,
        field.astype(np.float32),
        np.where(kind == "noise", 0.0, ncsnr).astype(np.float32),
        (1 / ncsnr).astype(np.float32),
    )


def _classes(rng: np.random.Generator, xyz: np.ndarray, stream: np.ndarray) -> np.ndarray:
    """(n,) class names in the shares of CLASSES_OF_STREAM: patches by a wave, noise at random."""
    kind = np.full(len(xyz), "noise", dtype="U16")
    wave = np.zeros(len(xyz))
    for _ in range(3):
        direction = rng.normal(0, 1, 3)
        direction *= 2 * np.pi / (rng.uniform(9, 14) * np.linalg.norm(direction))
        wave += np.sin(xyz @ direction + rng.uniform(0, 2 * np.pi))
    wave += rng.normal(0, 0.3, len(xyz))
    for name, label in STREAMS.items():
        shares = CLASSES_OF_STREAM[name]
        voxels = rng.permutation(np.flatnonzero(stream == label))
        quiet = round(shares["noise"] * len(voxels))
        voxels = voxels[quiet:]
        voxels = voxels[np.argsort(wave[voxels], kind="stable")]
        others = [c for c in shares if c != "noise"]
        ends = np.cumsum([shares[c] for c in others]) / (1 - shares["noise"]) * len(voxels)
        for c, part in zip(others, np.split(voxels, np.rint(ends[:-1]).astype(int)), strict=True):
            kind[part] = c
    return kind


def _centred(weights: np.ndarray) -> np.ndarray:
    """Without its mean, or the number of objects would leak into every object voxel."""
    return weights - weights.mean()


def respond(brain: Brain, pictures: np.ndarray, scenes: Sequence[Scene]) -> np.ndarray:
    """Responses without noise: (n_pictures, n_voxels) float32, each voxel with mean 0 and sd 1.

    pictures (n, 64, 64, 3) uint8 and their scenes. Noise voxels are 0 throughout.
    """
    by_scene = attributes(scenes)
    signal = by_scene @ brain.weights.T  # (n_pictures, n_voxels)
    middle = np.flatnonzero(brain.kind == "middle")
    signal[:, middle] = _standard(_windowed(brain, middle, scenes))
    maps = channels(pictures)
    yy, xx = np.mgrid[0:SIZE, 0:SIZE]
    for c in range(len(CHANNELS)):
        seen = np.flatnonzero(brain.channel == c)
        x, y, sigma = brain.field[seen].T
        away = (xx.ravel()[:, None] - x) ** 2 + (yy.ravel()[:, None] - y) ** 2
        window = np.exp(-away / (2 * sigma**2))
        window /= window.sum(0)
        pooled = maps[c].reshape(len(pictures), -1) @ window.astype(np.float32)
        signal[:, seen] += _standard(pooled.astype(np.float64))
    return _standard(signal).astype(np.float32)


def _windowed(brain: Brain, voxels: np.ndarray, scenes: Sequence[Scene]) -> np.ndarray:
    """Object tuning weighted by the object's nearness to the receptive field: (n_scenes, n)."""
    tuning = brain.weights[np.ix_(voxels, _BLOCK["kind"])]  # (n, kinds)
    x, y, sigma = brain.field[voxels].T
    found = np.zeros((len(scenes), len(voxels)))
    for row, scene in zip(found, scenes, strict=True):
        for item in scene.items:
            away = (item.x - x) ** 2 + (item.y - y) ** 2
            row += tuning[:, item.kind] * np.exp(-away / (2 * (1.5 * sigma) ** 2))
    return found


def _standard(values: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and sd 1; constant columns become 0."""
    sd = values.std(0)
    return (values - values.mean(0)) / np.where(sd > 1e-12, sd, 1.0)
