"""Networks of torchvision whose features tell pictures apart, read from files on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nsdcap import checkpoints
from nsdcap.batches import in_batches
from nsdcap.errors import DataError, bound, first_line
from nsdcap.metrics.peers import BACKBONES, MEAN, SPREAD
from nsdcap.metrics.pictures import two_way
from nsdcap.ridge import blocks

Reader = Callable[[slice], Sequence[np.ndarray]]  # pictures (h, w, 3) uint8 of some rows
HELD = 1024  # shown pictures whose features are held at once
# what SwAV's file holds beside a ResNet-50, and what that has beside: SwAV's own hub code skips the same
_HEADS, _NO_CLASSES = ("projection_head.", "prototypes."), {"fc.weight", "fc.bias"}


class NotComputed(Exception):
    """Why a network cannot be used here, in words for a table."""


class Extractor:
    """One network of ``peers.BACKBONES`` in eval mode, float32, cut off after the last layer asked of.

    Parameters
    ----------
    key : str
        Of ``peers.BACKBONES``.
    folder : str
        Where the file of its weights lies, under its publisher's name.
    device : torch.device
    batch : int
        Pictures at a time; halved, for good, where so many do not fit.

    Raises
    ------
    NotComputed
        No folder is given, it holds no such file, or torchvision cannot be imported.
    DataError
        There is no such folder, or the file is damaged, or its tensors are not the network's.
    """

    def __init__(self, key: str, folder: str, device: Any, batch: int):
        self.backbone, self.device, self.batch = BACKBONES[key], device, batch
        file = _file(key, folder)
        models, create = _torchvision()
        network = _build(key, models)
        _fill(network, key, file)
        nodes = {node: layer for layer, node in self.backbone.layers.items()}
        network.eval().requires_grad_(False)
        self.network = create(network, return_nodes=nodes).eval().to(device)
        self.mean, self.spread = (
            torch.tensor(x, device=device)[:, None, None] for x in (MEAN, SPREAD)
        )

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """Features (b, d) float32 of each layer, centred and of unit length over d: their products are
        Pearson's r. Pictures (h, w, 3) uint8, each of a size of its own; NaN where nothing varies."""
        seen = self.network(torch.cat([self._prepared(picture) for picture in pictures]))
        found = {}
        for layer, values in seen.items():
            flat = values.flatten(1)
            flat = flat - flat.mean(1, keepdim=True)
            found[layer] = flat / flat.norm(dim=1, keepdim=True)
        return found

    def _prepared(self, picture: np.ndarray) -> torch.Tensor:
        x = torch.tensor(picture, device=self.device).permute(2, 0, 1)[None].float() / 255
        side = self.backbone.size
        x = torch.nn.functional.interpolate(
            x, (side, side), mode="bilinear", align_corners=False, antialias=True
        )
        return (x - self.mean) / self.spread


def compare(
    extractor: Extractor, shown: Reader, made: dict[str, Reader], n: int, held: int = HELD
) -> dict[str, dict[str, np.ndarray]]:
    """Scores (n,) of the predictions that each reader of ``made`` gives, by its name and metric's key.

    Beside a distance's ``key`` stands ``key:chance`` (), the mean distance of other pairs. Memory: features
    of at most ``held`` shown pictures and of one batch, float32 (0.95 MB a picture for AlexNet's two
    layers), and an n x n float32 matrix for each reader and layer. With more than ``held`` pictures the
    predictions go through the network once for each ``held`` of them.
    """
    layers, title = extractor.backbone.layers, extractor.backbone.title
    similarity = {(name, layer): np.empty((n, n), np.float32) for name in made for layer in layers}
    for block in blocks(n, held):
        reference = _features(extractor, shown, block)
        for name, read in made.items():

            def part(
                rows: slice, read: Reader = read, reference=reference
            ) -> dict[str, np.ndarray]:
                found = extractor(read(rows))
                return {layer: (x @ reference[layer].T).cpu().numpy() for layer, x in found.items()}

            parts, extractor.batch = in_batches(part, n, extractor.batch, title)
            for layer in layers:
                similarity[name, layer][:, block] = np.concatenate([one[layer] for one in parts])
        del reference
    scores: dict[str, dict[str, np.ndarray]] = {name: {} for name in made}
    for (name, layer), matrix in similarity.items():
        if extractor.backbone.two_way:
            for direction, share in two_way(matrix)._asdict().items():
                scores[name][f"{layer}_{direction}"] = share
        else:
            distance = 1 - matrix.astype(np.float64)
            scores[name][layer] = np.diag(distance)
            others = distance[~np.eye(n, dtype=bool) & np.isfinite(distance)]
            scores[name][f"{layer}:chance"] = np.array(others.mean() if others.size else np.nan)
    return scores


def _features(extractor: Extractor, read: Reader, block: slice) -> dict[str, torch.Tensor]:
    """The extractor's of a block of rows, written into one tensor a layer."""
    whole: dict[str, torch.Tensor] = {}
    size = block.stop - block.start

    def part(rows: slice) -> None:
        for layer, x in extractor(
            read(slice(block.start + rows.start, block.start + rows.stop))
        ).items():
            if layer not in whole:
                whole[layer] = x.new_empty((size, x.shape[1]))
            whole[layer][rows] = x

    _, extractor.batch = in_batches(part, size, extractor.batch, extractor.backbone.title)
    return whole


def _file(key: str, folder: str) -> Path:
    if not folder:
        raise NotComputed("no folder of weights was given (models.backbones)")
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise DataError(
            f"models.backbones = {folder!r}: there is no such folder{bound()}; give the one that holds "
            f"{BACKBONES[key].file} and the like, or leave it empty"
        )
    file = place / BACKBONES[key].file
    if not file.is_file():
        raise NotComputed(f"no {file.name} in the folder of weights; it is at {BACKBONES[key].url}")
    return file


def _torchvision() -> tuple[Any, Any]:
    """torchvision's models and its ``create_feature_extractor``."""
    try:
        from torchvision import models
        from torchvision.models.feature_extraction import create_feature_extractor
    except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: made for another torch
        raise NotComputed(f"torchvision cannot be imported ({first_line(error)})") from error
    return models, create_feature_extractor


def _build(key: str, models: Any) -> torch.nn.Module:
    """The architecture, as torchvision builds it for its own weights."""
    if key == "inception":
        return models.inception_v3(weights=None, init_weights=False, transform_input=True)
    name = {"alexnet": "alexnet", "efficientnet": "efficientnet_b1", "swav": "resnet50"}[key]
    return getattr(models, name)(weights=None)


def _fill(network: torch.nn.Module, key: str, file: Path) -> None:
    """Put a file's tensors into a network, every one accounted for."""
    advice = f"fetch it again from {BACKBONES[key].url}"
    tensors = checkpoints.read(file, str(file), advice)
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise DataError(
            f"{file}: found {type(tensors).__name__}, expected tensors by name; {advice}"
        )
    if key == "swav":
        own = network.state_dict()
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
        tensors = {name: x for name, x in tensors.items() if not name.startswith(_HEADS)}
        tensors |= {name: own[name] for name in _NO_CLASSES if name not in tensors}
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise DataError(
            f"{file}: not the weights of {BACKBONES[key].title}: {' '.join(lines)[:300]}; {advice}"
        ) from error
