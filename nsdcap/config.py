"""Every setting, its default, and the two presets; read from TOML and written beside the results."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nsdcap.errors import UsageError
from nsdcap.ranges import CHOICES, STREAMS, check
from nsdcap.typed_toml import named, read_toml, shown, to_toml, typed

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["CHOICES", "STREAMS", "Config", "dump", "load"]

MODEL_NAMES = ("blip", "diffusion", "clip")
PHASES = ("early", "mid", "late")  # of writing a caption
SPEED = ("batch", "block", "device")  # keys of any section that change speed alone
ARMS = ("caption", "direct", "coarse")  # of pictures; coarse: where the other two start


@dataclass(frozen=True)
class Data:
    """What is read of NSD. ``sessions`` 0 means all that the folder holds."""

    nsd_root: str = ""
    annotations: str = ""  # COCO's captions; empty: annotations/ beside nsddata_stimuli/
    subjects: tuple[int, ...] = (1, 2, 5, 7)
    sessions: int = 37
    betas: str = "betas_fithrf_GLMdenoise_RR"
    space: str = "func1pt8mm"
    scale: bool = True  # int16 / 300 = percent signal change
    zscore_sessions: bool = False


@dataclass(frozen=True)
class Roi:
    """Streams whose voxels predict each latent."""

    z_v: tuple[str, ...] = STREAMS
    c: tuple[str, ...] = STREAMS
    z: tuple[str, ...] = ("early",)


@dataclass(frozen=True)
class Models:
    """Weights: a hub id or a Hugging Face folder each; of BLIP also a checkpoint of its own code, .pth.

    ``device`` auto takes a GPU where there is one. ``dtype`` is what BLIP, CLIP and Stable Diffusion's UNet
    compute in; the autoencoder and the text encoder, whose results z and c are fitted to, stay in float32.
    """

    blip: str = ""
    blip_tokenizer: str = "bert-base-uncased"  # a .pth holds no vocabulary; unused with a folder
    diffusion: str = "CompVis/stable-diffusion-v1-4"
    clip: str = "openai/clip-vit-base-patch32"
    backbones: str = (
        ""  # a folder of weights of the networks that score pictures; empty: not computed
    )
    device: str = "auto"
    dtype: str = "float32"  # bfloat16 or float16 on GPUs: half the memory
    picture_size: int = 0  # BLIP's; 0: the size in its own configuration
    normalise: bool = True  # BLIP's pixel mean and spread
    batch: int = 32


@dataclass(frozen=True)
class Ridge:
    """Penalties are multiples of the mean eigenvalue of the trials' Gram matrix, unless ``absolute``."""

    folds: int = 5
    group_folds: bool = True  # repeats of a picture never straddle a fold
    alphas: tuple[float, ...] = tuple(float(f"{10 ** (2 * k / 3 - 5):.4g}") for k in range(16))
    absolute: bool = False
    block: int = 4096  # targets held in memory at once
    device: str = "auto"  # cpu, cuda, or auto: CuPy's GPU where there is one


@dataclass(frozen=True)
class Decode:
    """``alpha``: one penalty a target, or one a feature. ``gain``: none, or cv. See docs in decode.py."""

    alpha: str = "target"
    gain: str = "none"
    intercept: bool = True
    z_alphas: tuple[float, ...] = ()  # empty: those of ridge, likewise for the next two
    c_alphas: tuple[float, ...] = ()
    z_v_alphas: tuple[float, ...] = ()


@dataclass(frozen=True)
class Caption:
    """How BLIP writes, by ``generate`` of transformers 5.23; lengths count tokens, the prompt and its
    [DEC] included.

    ``repetition_penalty`` multiplies the log-probability of each token that a sequence holds already, be it
    in the prompt; with one beam it divides the token's logit if above 0, else multiplies it. So does
    transformers 4.15, which BLIP's own code runs on, by its source. They differ in what a finished caption's
    sum is divided by: the tokens written, there with the prompt's and without the end. Of 200 captions of the
    miniature that changes 4; a penalty that spares the prompt would change 120, none at all 145
    (``pytest -m byhand tests/test_blip_writing.py``).
    """

    prompt: str = "a picture of"
    beams: int = 3
    min_length: int = 5
    max_length: int = 20
    repetition_penalty: float = 1.5


@dataclass(frozen=True)
class Reconstruct:
    """Image-to-image diffusion; sizes in pixels.

    ``start``: noised to the step where denoising begins (diffusers), or one step beyond it (released,
    as the original's img2img script does).
    """

    coarse_size: int = 320
    size: int = 512
    steps: int = 50
    strength: float = 0.8
    guidance: float = 5.0
    samples: int = 5
    posterior: str = "mean"  # of the autoencoder: mean or sample
    noise: str = "picture"  # picture: from (seed, subject, nsd_id, sample); same: one for all
    start: str = "diffusers"
    batch: int = 8


@dataclass(frozen=True)
class Encode:
    """``layers`` of BERT: 0 the embeddings, then one a layer; empty: all that the captioner has."""

    layers: tuple[int, ...] = ()
    ratios: tuple[float, ...] = (0.1, 1.0, 10.0)  # z_B's weight in the joint model
    nulls: int = 1000
    bootstraps: int = 1000
    block: int = 2048  # voxels held in memory at once


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    preset: str = "paper"
    seed: int = 0
    no_stimuli: bool = False  # leave NSD's pictures out of the report
    data: Data = field(default_factory=Data)
    roi: Roi = field(default_factory=Roi)
    models: Models = field(default_factory=Models)
    ridge: Ridge = field(default_factory=Ridge)
    decode: Decode = field(default_factory=Decode)
    caption: Caption = field(default_factory=Caption)
    reconstruct: Reconstruct = field(default_factory=Reconstruct)
    encode: Encode = field(default_factory=Encode)


RELEASED: dict[str, Any] = {
    "data": {"scale": False},
    "roi": {
        "z_v": ["early", "midventral", "midlateral", "ventral", "lateral", "parietal"],
        "c": ["ventral"],
    },
    "models": {"picture_size": 240, "normalise": False},
    "ridge": {"group_folds": False, "absolute": True},
    "decode": {
        "intercept": False,
        "z_alphas": [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0],
        "c_alphas": [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0],
        "z_v_alphas": [10000.0, 20000.0, 40000.0],
    },
    "reconstruct": {"posterior": "sample", "noise": "same", "start": "released"},
}
PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "released": RELEASED}


def load(
    file: Path | None = None, preset: str | None = None, settings: tuple[str, ...] = ()
) -> Config:
    """The preset, then the file, then ``settings`` ("section.key=value"), each over the one before.

    Raises
    ------
    UsageError
        An unknown preset, section or key (the nearest known one is named), a value of another type
        or out of range, a file that is missing or is not TOML.
    """
    given: dict[str, Any] = {}
    if file is not None:
        given = read_toml(file, "--config", "compare with a run's config.toml")
    for setting in settings:
        _assign(given, setting)
    preset = given.get("preset", "paper") if preset is None else preset
    if not isinstance(preset, str) or preset not in PRESETS:
        raise UsageError(f"preset: found {shown(preset)}, expected one of {', '.join(PRESETS)}")
    merged = _merge(PRESETS[preset], given)
    merged["preset"] = preset
    config = Config(**typed(Config, merged))
    check(config)
    return config


def dump(config: Config) -> str:
    """The settings as TOML that ``load`` reads back."""
    top, sections = [], []
    for key, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            lines = [f"{name} = {to_toml(item)}" for name, item in value.items()]
            sections.append("\n".join([f"\n[{key}]", *lines]))
        else:
            top.append(f"{key} = {to_toml(value)}")
    return "\n".join([*top, *sections]) + "\n"


def _assign(given: dict[str, Any], setting: str) -> None:
    """Put "section.key=value" into ``given``; the value is TOML, or else a bare word."""
    name, equals, text = setting.partition("=")
    *path, key = name.strip().split(".")
    if not equals or not all((*path, key)):
        raise UsageError(f"--set {named(setting)}: expected section.key=value")
    place = given
    for part in path:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise UsageError(f"setting {named(part)}: found {shown(place)}, expected a section")
    place[key] = _of_option(text)


def _of_option(text: str) -> Any:
    try:
        found = tomllib.loads(f"x = {text}")
    except (ValueError, RecursionError):  # ValueError: also of a number of thousands of digits
        return text
    return found["x"] if found.keys() == {"x"} else text  # text of several lines is no value


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
