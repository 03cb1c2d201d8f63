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


def read_configuration(setting: str, file: Path) -> dict[str, Any]:
    """A configuration of a model, as its config.json; DataError, which names ``setting``, where it holds no
    JSON object."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        why = first_line(error)
    else:
        if isinstance(found, dict):
            return found
        why = f"found {type(found).__name__}, expected an object"
    raise DataError(f"{setting}: {file} cannot be read as JSON ({why}); fetch the model again")


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
