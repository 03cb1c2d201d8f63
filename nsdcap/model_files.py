"""Where models are read from, and the SHA-256 of their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from nsdcap.config import MODEL_NAMES, Models

# a folder's weights: the first of these that it holds, as transformers and diffusers choose
WEIGHTS = ("*.safetensors", "*pytorch_model*.bin", "*.pth*")
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


def weights_sha256(models: Models, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the weights of some models, by "model/file".

    Of a hub id those that the Hugging Face cache holds. About a second a gigabyte, once in a process.
    """
    return {
        f"{name}/{label}": _sha256(path, path.stat().st_size, path.stat().st_mtime_ns)
        for name in names
        if getattr(models, name)
        for label, path in _weights(getattr(models, name))
    }


def _weights(where: str) -> Iterator[tuple[str, Path]]:
    path = Path(where)
    if path.is_file():
        yield path.name, path
        return
    if not path.is_dir():
        from huggingface_hub import snapshot_download

        path = Path(snapshot_download(where, local_files_only=True))
    for folder in sorted({path, *(inner for inner in path.rglob("*") if inner.is_dir())}):
        found = (sorted(folder.glob(pattern)) for pattern in WEIGHTS)
        for file in next(filter(None, found), []):
            yield str(file.relative_to(path)), file


@lru_cache
def _sha256(path: Path, size: int, changed: int) -> str:
    """``size`` and ``changed`` only tell one state of a file from another."""
    return sha256(path)


def sha256(path: Path) -> str:
    """SHA-256 of a file in hex, read in pieces of 4 MB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()
