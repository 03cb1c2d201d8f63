"""The range of every setting that its type does not tell."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsdcap.errors import UsageError

if TYPE_CHECKING:
    from nsdcap.config import Config

STREAMS = ("early", "midventral", "midlateral", "midparietal", "ventral", "lateral", "parietal")
CHOICES: dict[str, tuple[str, ...]] = {
    "models.dtype": ("float32", "bfloat16", "float16"),
    "decode.alpha": ("target", "feature"),
    "decode.gain": ("none", "cv"),
    "reconstruct.posterior": ("mean", "sample"),
    "reconstruct.noise": ("picture", "same"),
    "reconstruct.start": ("diffusers", "released"),
}
# least and most of each number, ends included; of lists each of their numbers
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "data.subjects": (1, 8),
    "data.sessions": (0, 40),
    "models.picture_size": (0, 4096),
    "models.batch": (1, 65_536),
    "ridge.folds": (2, 1000),
    "ridge.alphas": (1e-20, 1e20),
    "ridge.block": (1, 10_000_000),
    "decode.z_alphas": (1e-20, 1e20),
    "decode.c_alphas": (1e-20, 1e20),
    "decode.z_v_alphas": (1e-20, 1e20),
    "caption.beams": (1, 100),
    "caption.min_length": (0, 10_000),
    "caption.max_length": (1, 10_000),
    "caption.repetition_penalty": (0.01, 100),
    "reconstruct.coarse_size": (8, 4096),
    "reconstruct.size": (8, 4096),
    "reconstruct.steps": (1, 1000),  # that Stable Diffusion was trained with
    "reconstruct.strength": (1e-3, 1),
    "reconstruct.guidance": (-1000, 1000),
    "reconstruct.samples": (1, 1000),
    "reconstruct.batch": (1, 65_536),
    "encode.layers": (0, 10_000),
    "encode.ratios": (1e-10, 1e10),
    "encode.nulls": (1, 1_000_000),
    "encode.bootstraps": (1, 1_000_000),
    "encode.block": (1, 10_000_000),
}
MAY_BE_EMPTY = ("decode.z_alphas", "decode.c_alphas", "decode.z_v_alphas", "encode.layers")
LONGEST_LIST, LONGEST_TEXT, LONGEST_NAME = (
    1000,
    4096,
    255,
)  # values, letters, bytes of a file's name
DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?|mps")
RIDGE_DEVICES = ("auto", "cpu", "cuda")


def check(config: Config) -> None:
    """Raise UsageError, which names the setting, for the first value out of its range."""
    from dataclasses import fields, is_dataclass

    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            for inner in fields(value):
                _check_value(f"{field.name}.{inner.name}", getattr(value, inner.name))
        else:
            _check_value(field.name, value)
    _check_device("models.device", config.models.device, DEVICE.fullmatch(config.models.device))
    _check_device("ridge.device", config.ridge.device, config.ridge.device in RIDGE_DEVICES)
    _check_together(config)


def _check_value(name: str, value: Any) -> None:
    if isinstance(value, tuple):
        _check_list(name, value)
    for item in value if isinstance(value, tuple) else (value,):
        if isinstance(item, str):
            check_text(f"setting {name}", item)
        elif name in RANGES and not in_range(item, *RANGES[name]):
            each = "numbers" if isinstance(value, tuple) else "a number"
            raise UsageError(f"setting {name}: found {item}, expected {each} {told(*RANGES[name])}")
    if name in CHOICES and value not in CHOICES[name]:
        raise UsageError(
            f"setting {name}: found {value!r}, expected one of {', '.join(CHOICES[name])}"
        )


def in_range(value: float, least: float, most: float) -> bool:
    """Whether a number is finite and between two others, these included."""
    return math.isfinite(value) and least <= value <= most


def told(least: float, most: float) -> str:
    """A range in words: "from 2 to 1000"."""
    return f"from {least:.10g} to {most:.10g}"


def _check_list(name: str, values: tuple) -> None:
    streams = f"some of {', '.join(STREAMS)}, each once" if name.startswith("roi.") else ""
    wanted = streams or (f"numbers {told(*RANGES[name])}, each once" if name in RANGES else "")
    if not values and name not in MAY_BE_EMPTY:
        raise UsageError(f"setting {name}: found an empty list, expected {wanted}")
    if len(values) > LONGEST_LIST:
        raise UsageError(
            f"setting {name}: found {len(values)} values, expected at most {LONGEST_LIST}"
        )
    twice = sorted({str(value) for value in values if values.count(value) > 1})
    if twice:
        raise UsageError(f"setting {name}: found {twice[0]} twice, expected {wanted}")
    unknown = [value for value in values if streams and value not in STREAMS]
    if unknown:
        raise UsageError(f"setting {name}: found {unknown[0][:100]!r}, expected {wanted}")


def check_text(what: str, text: str, lines: bool = False) -> None:
    """Refuse text that no file's name and no line of a script can hold; ``lines``: it may be of several.

    Raises
    ------
    UsageError
        Control characters, half of a UTF-16 pair (from bytes that are no UTF-8), too long a text, or a
        home that is not there.
    """
    allowed = "\n\t" if lines else ""
    for sign in text:
        if sign not in allowed and (
            unicodedata.category(sign) in ("Cc", "Cs") or sign in "\u2028\u2029"
        ):
            raise UsageError(
                f"{what}: found {text[:100]!r}, which holds {sign!r}; expected one line of text without "
                "control characters"
            )
    if len(text) > LONGEST_TEXT:
        raise UsageError(
            f"{what}: found {len(text)} letters, expected at most {LONGEST_TEXT} of them"
        )


def check_path(what: str, where: str) -> None:
    """Raise UsageError for text that cannot be a path or hub id: too long a name, no such home."""
    check_text(what, where)
    long = [part for part in where.split("/") if len(part.encode()) > LONGEST_NAME]
    if long:
        raise UsageError(
            f"{what}: found a name of {len(long[0].encode())} bytes, {long[0][:40]!r}..., expected at most "
            f"{LONGEST_NAME}"
        )
    try:
        Path(where).expanduser()
    except RuntimeError:
        raise UsageError(
            f"{what}: found {where!r}, of which there is no such home; write the path out"
        ) from None


def _check_device(name: str, found: str, known: Any) -> None:
    if not known:
        more = ", cuda:1 or the like" if name.startswith("models") else ""
        raise UsageError(f"setting {name}: found {found!r}, expected auto, cpu, cuda{more}")


def _paths(config: Config) -> Iterable[tuple[str, str]]:
    yield "data.nsd_root", config.data.nsd_root
    yield "data.annotations", config.data.annotations
    for name in ("blip", "blip_tokenizer", "diffusion", "clip", "backbones"):
        yield f"models.{name}", getattr(config.models, name)


def _check_together(config: Config) -> None:
    """What depends on more than one setting, and names of files."""
    for name, where in _paths(config):
        check_path(f"setting {name}", where)
    for name in ("betas", "space"):
        found = getattr(config.data, name)
        if not re.fullmatch(r"[\w][\w.-]*", found):
            raise UsageError(
                f"setting data.{name}: found {found!r}, expected the name of a folder of NSD, as "
                f"{'betas_fithrf_GLMdenoise_RR' if name == 'betas' else 'func1pt8mm'}"
            )
        check_path(f"setting data.{name}", found)
    words = config.caption
    if words.max_length < words.min_length:
        raise UsageError(
            f"setting caption.max_length: found {words.max_length}, expected at least min_length, "
            f"{words.min_length}"
        )
    painted = config.reconstruct
    taken, most = int(painted.steps * painted.strength), painted.steps
    if painted.start == "released":
        most -= 1  # there has to be a step beyond
    if not 1 <= taken <= most:
        raise UsageError(
            f"setting reconstruct.strength: found {painted.strength}, which of {painted.steps} steps takes "
            f"{taken}; expected 1 to {most} with reconstruct.start = {painted.start!r}"
        )
