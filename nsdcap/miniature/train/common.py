"""What the training scripts share: pictures to learn from, words, a log and the saving of weights."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nsdcap.miniature import world

MODELS = Path(__file__).resolve().parents[1] / "models"


def options(name: str, steps: int) -> argparse.Namespace:
    """The options that every training script has."""
    parser = argparse.ArgumentParser(prog=f"python -m nsdcap.miniature.train.{name}")
    parser.add_argument("--out", type=Path, default=MODELS, help="folder of the models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--pictures", type=int, default=30_000, help="pictures to learn from")
    chosen = parser.parse_args()
    torch.manual_seed(chosen.seed)
    torch.set_num_threads(1)
    return chosen


class Log:
    """Lines on the screen and in ``train.log``, each with the CPU seconds so far."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.start = path.open("a"), time.process_time()

    def __call__(self, *words: object) -> None:
        line = f"{time.process_time() - self.start:7.0f} s  " + " ".join(str(w) for w in words)
        print(line, flush=True)
        print(line, file=self.file, flush=True)


class Pool:
    """Scenes drawn once, handed out in random batches, mirrored half of the time.

    ``pictures`` (n, 64, 64, 3) uint8 and ``owners`` (n, 64, 64) int8: 0.5 GB for 30,000.
    Texture seeds from 1000 up are kept for training: no picture of a tree has them.
    """

    def __init__(self, n: int, seed: int, one_object: float = 0.65):
        rng = np.random.default_rng([seed, 5])
        textures = world.Textures(1000 + seed)
        self.scenes = [world.draw_scene(rng, one_object) for _ in range(n)]
        drawn = [world.render(scene, textures, rng) for scene in self.scenes]
        self.pictures = np.stack([picture for picture, _ in drawn])
        self.owners = np.stack([owner for _, owner in drawn])

    def scene(self, row: int, flip: bool) -> world.Scene:
        """One scene, as it is or mirrored."""
        return mirrored(self.scenes[row]) if flip else self.scenes[row]

    def batch(self, n: int, rng: np.random.Generator) -> tuple[torch.Tensor, np.ndarray, list]:
        """Pictures (n, 3, 64, 64) float32 in 0..1, owners (n, 64, 64), and the scenes."""
        rows = rng.integers(0, len(self.scenes), n)
        flip = rng.random(n) < 0.5
        pictures, owners = self.pictures[rows], self.owners[rows]
        pictures[flip], owners[flip] = pictures[flip, :, ::-1], owners[flip, :, ::-1]
        scenes = [self.scene(row, f) for row, f in zip(rows, flip, strict=True)]
        chw = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        seen = torch.from_numpy(rng.random(n) < 0.5)
        through = SEEN @ chw @ SEEN.T
        return torch.where(seen[:, None, None, None], through.clamp(0, 1), chw), owners, scenes


def mirrored(scene: world.Scene) -> world.Scene:
    """The scene with left and right exchanged."""
    items = tuple(world.Item(i.kind, i.colour, world.SIZE - i.x, i.y, i.size) for i in scene.items)
    swap = {"left": "right", "right": "left"}
    relation = scene.relation and swap.get(scene.relation, scene.relation)
    return world.Scene(scene.place, items, relation)


def forget_paths(folder: Path) -> None:
    """Take out of the saved configurations where the weights lay when they were loaded."""
    for file in folder.rglob("*.json"):
        content = json.loads(file.read_text())
        if isinstance(content, dict) and content.pop("_name_or_path", None):
            file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _seen() -> torch.Tensor:
    """What storing a picture at NSD's 425 pixels and reducing it again does to its rows (64, 64)."""
    eye = Image.fromarray(np.eye(world.SIZE, dtype=np.float32), mode="F")
    stored = eye.resize((world.SIZE, 425), Image.Resampling.NEAREST)
    small = stored.resize((world.SIZE, world.SIZE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(small))


SEEN = _seen()


def captions(scenes: list[world.Scene], rng: np.random.Generator) -> list[str]:
    """One caption for each scene."""
    return [world.write_captions(scene, rng, 1)[0] for scene in scenes]


def schedule(step: int, steps: int, warm: int = 150, decay: float = 0.3) -> float:
    """Share of the learning rate: up over ``warm`` steps, flat, then down over the last ``decay``."""
    tail = (steps - step) / (decay * steps)
    return max(min((step + 1) / warm, 1.0, tail), 0.01)
