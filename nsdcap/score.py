"""CLIP, by transformers' own classes, as the common measure of pictures and captions."""

from __future__ import annotations

import numpy as np
import torch

from nsdcap.config import Models
from nsdcap.devices import choose_device, quiet
from nsdcap.errors import DataError


class Clip:
    """A CLIP model whose embeddings score results.

    Raises
    ------
    DataError
        ``models.clip`` is neither a hub id nor a folder of a CLIP model.
    """

    def __init__(self, models: Models):
        quiet()
        from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

        try:
            self.model = CLIPModel.from_pretrained(models.clip, dtype=torch.float32)
            self.tokenizer = AutoTokenizer.from_pretrained(models.clip)
            # PIL whatever else is installed: another resize gives other embeddings
            self.images = CLIPImageProcessorPil.from_pretrained(models.clip)
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(
                f"models.clip = {models.clip!r}: no CLIP model could be read there "
                f"({str(error).strip().splitlines()[0][:200]}); give a folder or a hub id"
            ) from error
        self.device = choose_device(models.device)
        self.model.eval().requires_grad_(False).to(self.device)
        self.batch = models.batch

    @torch.inference_mode()
    def pictures(self, pictures: np.ndarray) -> np.ndarray:
        """Embeddings (n, d) float32 of unit length for pictures (n, h, w, 3) uint8."""
        parts = []
        for start in range(0, len(pictures), self.batch):
            batch = list(pictures[start : start + self.batch])
            pixels = self.images(batch, return_tensors="pt")["pixel_values"]
            pooled = self.model.vision_model(pixels.to(self.device)).pooler_output
            parts.append(self._unit(self.model.visual_projection(pooled)))
        return np.concatenate(parts)

    @torch.inference_mode()
    def texts(self, texts: list[str]) -> np.ndarray:
        """Embeddings (n, d) float32 of unit length for texts, cut to the model's positions."""
        parts = []
        for start in range(0, len(texts), self.batch):
            tokens = self.tokenizer(
                texts[start : start + self.batch],
                padding="max_length",
                truncation=True,
                max_length=self.model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            ).to(self.device)
            pooled = self.model.text_model(**tokens).pooler_output
            parts.append(self._unit(self.model.text_projection(pooled)))
        return np.concatenate(parts)

    @staticmethod
    def _unit(embedding: torch.Tensor) -> np.ndarray:
        return torch.nn.functional.normalize(embedding.float(), dim=-1).cpu().numpy()
