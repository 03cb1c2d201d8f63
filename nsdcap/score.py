"""CLIP, by transformers' own classes, as the common measure of pictures and captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nsdcap.batches import joined
from nsdcap.config import Models
from nsdcap.devices import choose_device, quiet
from nsdcap.loading import load_part, reading
from nsdcap.weights import is_path


class Clip:
    """A CLIP model whose embeddings score results, in ``models.dtype``, without gradients.

    ``name`` says which: its kind and its hub id, or its folder's own name, as in "CLIP ViT-B/32 (my-clip)".

    Raises
    ------
    DataError
        ``models.clip`` is neither a hub id nor a folder of a CLIP model, or tensors are missing,
        surplus or of another shape.
    """

    def __init__(self, models: Models):
        quiet()
        from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

        where = models.clip
        self.device = choose_device(models.device)
        model = load_part(CLIPModel, "models.clip", where, dtype=models.dtype)
        self.model = model.to(self.device)
        with reading(f"models.clip = {where!r}", "tokenizer or image processor of CLIP"):
            self.tokenizer = AutoTokenizer.from_pretrained(where)
            # PIL whatever else is installed: another resize gives other embeddings
            self.images = CLIPImageProcessorPil.from_pretrained(where)
        self.name = name_of(models)
        self._row = (model.config.projection_dim,)
        self.batches = {"CLIP of pictures": models.batch, "CLIP of texts": models.batch}

    @torch.inference_mode()
    def pictures(self, pictures: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """Embeddings (n, d) float32 of unit length for pictures, each (h, w, 3) uint8."""

        def part(rows: slice) -> np.ndarray:
            pixels = self.images(list(pictures[rows]), return_tensors="pt")["pixel_values"]
            seen = self.model.vision_model(pixels.to(self.device, self.model.dtype))
            return self._unit(self.model.visual_projection(seen.pooler_output))

        return joined(part, len(pictures), self.batches, "CLIP of pictures", self._row)

    @torch.inference_mode()
    def texts(self, texts: list[str]) -> np.ndarray:
        """Embeddings (n, d) float32 of unit length for texts, cut to the model's positions."""

        def part(rows: slice) -> np.ndarray:
            tokens = self.tokenizer(
                texts[rows],
                padding="max_length",
                truncation=True,
                max_length=self.model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            ).to(self.device)
            return self._unit(
                self.model.text_projection(self.model.text_model(**tokens).pooler_output)
            )

        return joined(part, len(texts), self.batches, "CLIP of texts", self._row)

    @staticmethod
    def _unit(embedding: torch.Tensor) -> np.ndarray:
        return torch.nn.functional.normalize(embedding.float(), dim=-1).cpu().numpy()


def name_of(models: Models) -> str:
    """``Clip.name``, from the model's configuration alone; DataError as there."""
    from transformers import CLIPConfig

    where = models.clip
    with reading(f"models.clip = {where!r}", "configuration of CLIP"):
        vision: Any = CLIPConfig.from_pretrained(where).vision_config
    letters = {(12, 768): "B", (24, 1024): "L", (32, 1280): "H"}  # OpenAI's
    size = (vision.num_hidden_layers, vision.hidden_size)
    kind = f"ViT-{letters.get(size, f'{size[0]}x{size[1]}')}/{vision.patch_size}"
    if is_path(where):
        folder = Path(where).expanduser().absolute()
        place, _, repository = folder.parent.parent.name.partition("models--")
        # of the hub's cache, where folders are named by commits
        cached = folder.parent.name == "snapshots" and repository and not place
        where = repository.replace("--", "/") if cached else folder.name
    return f"CLIP {kind} ({where})"
