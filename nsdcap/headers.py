"""Models' files by their headers alone: whether they hold what the configuration beside them asks for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nsdcap import architectures, checkpoints, weights
from nsdcap.architectures import Shapes
from nsdcap.errors import DataError, first_line
from nsdcap.metrics.peers import BACKBONES
from nsdcap.model_files import is_checkpoint, loaded, read_configuration

MOST = 100 << 20  # bytes that safetensors allows a header
# part of the folder, the word for its kind and what it is in config.json, and its tensors
KINDS: dict[str, tuple[tuple[str, str, tuple[str, ...], Callable[[dict[str, Any]], Shapes]], ...]] = {
    "blip": (("", "model_type", ("blip",), architectures.blip),),
    "clip": (("", "model_type", ("clip",), architectures.clip),),
    "diffusion": (
        ("unet", "_class_name", ("UNet2DConditionModel",), architectures.unet),
        ("vae", "_class_name", ("AutoencoderKL",), architectures.vae),
        ("text_encoder", "model_type", ("clip_text_model", "clip"), architectures.clip_text),
    ),
}  # fmt: skip
# of each network that scores pictures a first and a last tensor
ENDS: dict[str, Shapes] = {
    "alexnet": {"features.0.weight": (64, 3, 11, 11), "classifier.6.weight": (1000, 4096)},
    "inception": {"Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3), "fc.weight": (1000, 2048)},
    "efficientnet": {"features.0.0.weight": (32, 3, 3, 3), "classifier.1.weight": (1000, 1280)},
    "swav": {"conv1.weight": (64, 3, 7, 7), "layer4.2.conv3.weight": (2048, 512, 1, 1)},
}  # fmt: skip
# how older releases name what is the same tensor
RENAMED = (
    (r"(.*mid_block\.attentions\.\d+)\.query\.(.*)", r"\1.to_q.\2"),
    (r"(.*mid_block\.attentions\.\d+)\.key\.(.*)", r"\1.to_k.\2"),
    (r"(.*mid_block\.attentions\.\d+)\.value\.(.*)", r"\1.to_v.\2"),
    (r"(.*mid_block\.attentions\.\d+)\.proj_attn\.(.*)", r"\1.to_out.0.\2"),
    (r"(.*LayerNorm)\.gamma", r"\1.weight"),
    (r"(.*LayerNorm)\.beta", r"\1.bias"),
)


def check(model: str, where: str) -> None:
    """Refuse a model of another architecture, or whose tensors are not those of its configuration.

    ``model`` is "blip", "clip", "diffusion", "blip_tokenizer" or "backbones"; ``where`` a folder, a file or a
    hub id, of which the cache's folder is looked at, if it is there. Headers are read, no tensors; PyTorch's
    own files (.bin) must be such, but their tensors are not compared.

    Raises
    ------
    DataError
        Names the setting and file, what was found and what was expected.
    """
    place = Path(where).expanduser() if weights.is_path(where) else weights.snapshot(where)
    if place is None or not where:
        return
    setting = f"models.{model} = {where!r}"
    if model == "backbones":
        _check_backbones(setting, place)
    elif model == "blip" and is_checkpoint(str(place)):
        from nsdcap.blip_original import check as check_original

        check_original(place)
    for part, key, kinds, shapes in KINDS.get(model, ()) if place.is_dir() else ():
        folder = place / part
        config = read_configuration(setting, folder / "config.json")
        found = config.get(key)
        if found is not None and found not in kinds:
            raise DataError(
                f"{setting}: {folder / 'config.json'} is of {key} {_short(found)}, expected {kinds[0]}; give "
                f"the folder of a {model} model"
            )
        _check_tensors(setting, folder, shapes(config), _tensors(setting, model, place, part))


def _tensors(setting: str, model: str, place: Path, part: str) -> dict[str, tuple] | None:
    """All tensors of a part by name; None where a file is not safetensors."""
    found: dict[str, tuple] = {}
    other = False
    for name, file in loaded(model, str(place)).items():
        if name.split("/")[1] == part or not part:
            if file.suffix != ".safetensors":
                checkpoints.check(file, f"{setting}: {file}", "fetch the model again")
                other = True
                continue
            found |= {_today(name): shape for name, shape in header(setting, file).items()}
    return None if other else found


def header(setting: str, file: Path) -> Shapes:
    """Names and shapes of a safetensors file's tensors.

    Raises
    ------
    DataError
        It is no such file, or cut short.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            text = opened.read(min(length, MOST))
        rows = {k: v for k, v in json.loads(text).items() if k != "__metadata__"}
        found = {name: tuple(int(n) for n in row["shape"]) for name, row in rows.items()}
        ends = max((int(row["data_offsets"][1]) for row in rows.values()), default=0)
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        RecursionError,
    ) as error:
        raise DataError(
            f"{setting}: {file} is no safetensors file, or damaged ({first_line(error)}); fetch the model again"
        ) from None
    if size != 8 + length + ends:
        raise DataError(
            f"{setting}: {file} has {size} bytes, its header tells of {8 + length + ends}; fetch the "
            "model again"
        )
    return found


def _today(name: str) -> str:
    for old, new in RENAMED:
        name = re.sub(f"^{old}$", new, name)
    return name


def _check_tensors(
    setting: str, folder: Path, wanted: Shapes, found: dict[str, tuple] | None
) -> None:
    if found is None:
        return
    # some releases save CLIP's text model without this
    top = "text_model."
    plain = {name.removeprefix(top): shape for name, shape in found.items()}
    expected = {name.removeprefix(top): (name, shape) for name, shape in wanted.items()}
    missing = [name for key, (name, _) in expected.items() if key not in plain]
    other = [
        f"{name} {plain[key]} and not {shape}"
        for key, (name, shape) in expected.items()
        if key in plain and plain[key] != shape
    ]
    wrong = [
        f"{len(some)} {what}: {_few(some)}"
        for what, some in (("missing", missing), ("of another shape", other))
        if some
    ]
    if wrong:
        raise DataError(
            f"{setting}: the weights in {folder} are not those of the config.json beside them, tensors "
            f"{'; '.join(wrong)}; fetch the model again, or give another"
        )


def _check_backbones(setting: str, folder: Path) -> None:
    """The file of each network that is there; that others are not there is told in the tables."""
    for key, ends in ENDS.items():
        file = folder / BACKBONES[key].file
        if not file.is_file():
            continue
        advice = f"fetch it again from {BACKBONES[key].url}"
        tensors = checkpoints.read(file, f"{setting}: {file}", advice, "meta")
        names = tensors if isinstance(tensors, dict) else {}
        shapes = {
            str(name).removeprefix("module."): tuple(getattr(value, "shape", ()))
            for name, value in names.items()
        }
        wrong = [name for name, shape in ends.items() if shapes.get(name) != shape]
        if wrong:
            held = shapes.get(wrong[0], "no such tensor")
            raise DataError(
                f"{setting}: {file} holds {held} as {wrong[0]}, expected {ends[wrong[0]]} of "
                f"{BACKBONES[key].title}; fetch it again from {BACKBONES[key].url}"
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 and text.isprintable() else repr(text[:60])


def _few(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
