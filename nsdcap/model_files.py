"""Where models are read from, which files of theirs are, and the SHA-256 of a file."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from nsdcap.config import MODEL_NAMES, Models
from nsdcap.errors import DataError, first_line
from nsdcap.metrics.peers import BACKBONES

PARTS = ("unet", "vae", "text_encoder")  # of a diffusion model that hold weights
# a folder's weights: the first of these that it holds. diffusers looks for its index first, transformers last.
WEIGHTS = (
    "diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors",
    "model.safetensors", "model.safetensors.index.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
ORIGINALS = (".pth", ".pt")  # of BLIP's own code


def is_checkpoint(where: str) -> bool:
    """Whether ``models.blip`` names a file, a checkpoint of BLIP's own code, there or not."""
    path = Path(where)
    return path.is_file() or (path.suffix in ORIGINALS and not path.is_dir())


def sources(models: Models) -> dict[str, str]:
    """Folders, files or hub ids that models are read from, by the name of their setting.

    BLIP's tokenizer is one only beside a checkpoint file, which holds no vocabulary; the folder of
    backbones only where one is given.
    """
    found = {name: getattr(models, name) for name in MODEL_NAMES}
    if is_checkpoint(models.blip):
        found["blip_tokenizer"] = models.blip_tokenizer
    if models.backbones:
        found["backbones"] = models.backbones
    return found


def local(models: Models) -> dict[str, Path]:
    """Those of ``sources`` that lie on this host: folders, and a checkpoint file of BLIP."""
    paths = {name: Path(where) for name, where in sources(models).items() if where}
    return {
        name: path
        for name, path in paths.items()
        if path.is_dir() or (name == "blip" and path.is_file())
    }


def loaded(name: str, where: str) -> dict[str, Path]:
    """The files of weights that the classes read of a model in a folder or file, by "name/file".

    Neither variants, such as half precision, nor other formats that lie beside them.
    """
    path = Path(where)
    if path.is_file():
        return {f"{name}/{path.name}": path}
    if name == "backbones":
        files = [path / backbone.file for backbone in BACKBONES.values()]
        return {f"{name}/{file.name}": file for file in files if file.is_file()}
    places = (path / part for part in PARTS) if name == "diffusion" else (path,)
    files = [file for place in places for file in _chosen(place)]
    return {f"{name}/{file.relative_to(path)}": file for file in files}


def _chosen(folder: Path) -> list[Path]:
    """A folder's weights, or the shards of its index, as transformers and diffusers choose."""
    for name in WEIGHTS:
        file = folder / name
        if file.is_file():
            if file.suffix != ".json":
                return [file]
            try:
                shards = set(json.loads(file.read_text())["weight_map"].values())
            except (ValueError, KeyError, TypeError, AttributeError):
                return []  # what is broken or missing they tell best, as they load
            return [shard for name in sorted(shards) if (shard := folder / name).is_file()]
    return []


# numbers of configurations that sizes follow from, and the most of each
NUMBERS = {
    "hidden_size": 65_536, "intermediate_size": 1 << 20, "num_hidden_layers": 10_000, "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 20, "image_size": 65_536, "patch_size": 65_536, "num_channels": 1024,
    "projection_dim": 65_536, "in_channels": 1024, "out_channels": 1024, "latent_channels": 1024,
}  # fmt: skip
PER_BLOCK = {  # either a number or one for each block
    "layers_per_block": 100, "cross_attention_dim": 65_536, "block_out_channels": 65_536,
}  # fmt: skip


def read_configuration(setting: str, file: Path) -> dict[str, Any]:
    """A configuration of a model, as its config.json.

    Raises
    ------
    DataError
        Names ``setting``: it holds no JSON object, or a size in it is no size.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = first_line(error)
    else:
        if isinstance(found, dict):
            _check_sizes(f"{setting}: {file}", found)
            return found
        why = f"found {type(found).__name__}, expected an object"
    raise DataError(f"{setting}: {file} cannot be read as JSON ({why}); fetch the model again")


def _check_sizes(place: str, config: dict[str, Any]) -> None:
    """Refuse a configuration's sizes that are no numbers above 0, or sections that are none."""

    def whole(value: Any, most: int) -> bool:
        return type(value) is int and 0 < value <= most

    def refuse(key: str, value: Any, expected: str) -> None:
        raise DataError(
            f"{place}: {key} is {repr(value)[:60]}, expected {expected}; fetch the model again"
        )

    for section in ("", "text_config", "vision_config", "text_config_dict", "vision_config_dict"):
        part = config.get(section, {}) if section else config
        if part is None and section.endswith("_dict"):
            continue
        if not isinstance(part, dict):
            refuse(section, part, "an object")
        for key, value in part.items():
            most = NUMBERS.get(key, 0)
            if most and not whole(value, most):
                refuse(key, value, f"a whole number from 1 to {most}")
            if most := PER_BLOCK.get(key, 0):
                many = isinstance(value, list) and 0 < len(value) <= 16
                if not all(whole(item, most) for item in (value if many else [value])):
                    refuse(key, value, f"whole numbers from 1 to {most}")
            if key == "block_out_channels" and not isinstance(value, list):
                refuse(key, value, "a list of whole numbers")
            if key.endswith("block_types") and not (
                isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
            ):
                refuse(key, value, "a list of names")
        size, patch = part.get("image_size", 1 << 16), part.get("patch_size", 1)
        if size < patch:
            refuse("patch_size", patch, f"at most image_size, {size}")


def known_sha256(path: Path) -> str:
    """``sha256``, computed once in a process for each state of a file by size, time of writing and time
    of change."""
    stat = path.stat()
    return _known(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@cache
def _known(path: Path, *state: int) -> str:
    return sha256(path)


def sha256(path: Path) -> str:
    """SHA-256 of a file in hex, read in pieces of 4 MB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()
