"""An independent eye: what a picture of the miniature's world shows, by a network that made none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nsdcap.diffusion import resize
from nsdcap.miniature import MODELS, world


@dataclass(frozen=True)
class Verdict:
    """Scores per picture: ``place`` (n, places), ``kind`` (n, kinds), ``colour`` (n, colours)."""

    place: np.ndarray
    kind: np.ndarray
    colour: np.ndarray

    def agree(self, scenes: list[world.Scene]) -> dict[str, float]:
        """Shares of pictures whose likeliest place, kind and colour are the scene's (or one of its)."""
        hits = {
            "place": [self.place[i].argmax() == s.place for i, s in enumerate(scenes)],
            "kind": [
                self.kind[i].argmax() in {o.kind for o in s.items} for i, s in enumerate(scenes)
            ],
            "colour": [
                self.colour[i].argmax() in {o.colour for o in s.items} for i, s in enumerate(scenes)
            ],
        }
        return {name: float(np.mean(found)) for name, found in hits.items()}


def judge(pictures: np.ndarray) -> Verdict:
    """Look at pictures (n, h, w, 3) uint8."""
    import torch
    from transformers import ResNetForImageClassification

    model = ResNetForImageClassification.from_pretrained(MODELS / "judge", dtype=torch.float32)
    pixels = torch.from_numpy(resize(pictures, world.SIZE).copy()).permute(0, 3, 1, 2)
    with torch.inference_mode():
        logits = model.eval()(pixels.float() / 127.5 - 1).logits.numpy()
    edges = np.cumsum([len(world.PLACES), len(world.KINDS)])
    return Verdict(*np.split(logits, edges, axis=1))
