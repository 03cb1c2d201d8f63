"""BLIP, by transformers' own classes: features of pictures, captions from features, text states."""

from __future__ import annotations

import numpy as np
import torch

from nsdcap.config import PHASES, Caption, Models
from nsdcap.devices import choose_device, quiet
from nsdcap.errors import DataError


class Blip:
    """A pre-trained captioner, in float32, without gradients.

    Parameters
    ----------
    models : Models
        ``blip`` is a hub id or a local Hugging Face folder; ``picture_size`` in pixels (0: the
        configuration's own), other sizes interpolate the position embeddings as BLIP does.
    caption : Caption
        How captions are written.

    Raises
    ------
    DataError
        The folder or hub id holds no BLIP captioner, or its weights do not fit its configuration.
    """

    def __init__(self, models: Models, caption: Caption):
        quiet()
        from transformers import (
            AutoTokenizer,
            BlipForConditionalGeneration,
            BlipImageProcessorPil,
        )

        where = models.blip
        try:
            self.model, report = BlipForConditionalGeneration.from_pretrained(
                where, dtype=torch.float32, output_loading_info=True
            )
            self.tokenizer = AutoTokenizer.from_pretrained(where)
            # PIL whatever else is installed: another resize gives other features
            images = BlipImageProcessorPil.from_pretrained(where)
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(
                f"models.blip = {where!r}: no BLIP captioner could be read there ({_first(error)}); "
                "give a Hugging Face folder or a hub id"
            ) from error
        wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        if wrong:
            raise DataError(
                f"models.blip = {where!r}: {len(wrong)} tensors are missing or of another shape, "
                f"among them {', '.join(wrong[:5])}; expected the weights of a BLIP captioner"
            )
        self.device = choose_device(models.device)
        self.model.eval().requires_grad_(False).to(self.device)
        self.size = models.picture_size or self.model.config.vision_config.image_size
        images.size = {"height": self.size, "width": self.size}
        images.do_normalize = models.normalise
        self.images, self.batch, self.caption = images, models.batch, caption
        text = self.model.config.text_config
        self.prompt = [
            text.bos_token_id,
            *self.tokenizer(caption.prompt, add_special_tokens=False)["input_ids"],
        ]
        self.end, self.pad = text.sep_token_id, text.pad_token_id

    @property
    def states(self) -> int:
        """How many text states there are: the embeddings and one for each layer."""
        return self.model.config.text_config.num_hidden_layers + 1

    @torch.inference_mode()
    def features(self, pictures: np.ndarray) -> np.ndarray:
        """z_v: the ViT's whole output sequence after its final LayerNorm (paper 3.2).

        pictures (n, height, width, 3) uint8; returns (n, tokens, width) float32, token 0 is CLS.
        """
        parts = []
        for start in range(0, len(pictures), self.batch):
            pixels = self.images(list(pictures[start : start + self.batch]), return_tensors="pt")
            output = self.model.vision_model(
                pixels["pixel_values"].to(self.device), interpolate_pos_encoding=True
            )
            parts.append(output.last_hidden_state.cpu().numpy())
        return np.concatenate(parts)

    @torch.inference_mode()
    def captions(self, z_v: np.ndarray) -> list[str]:
        """Captions written from z_v (n, tokens, width) float32 by the text decoder (paper 3.3).

        The same words as ``BlipForConditionalGeneration.generate`` gives for the picture itself.
        """
        texts: list[str] = []
        for start in range(0, len(z_v), self.batch):
            z = torch.as_tensor(z_v[start : start + self.batch], device=self.device)
            prompt = torch.tensor([self.prompt] * len(z), device=self.device)
            written = self.model.text_decoder.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                encoder_hidden_states=z,
                encoder_attention_mask=torch.ones(
                    z.shape[:2], dtype=torch.long, device=self.device
                ),
                eos_token_id=self.end,
                pad_token_id=self.pad,
                num_beams=self.caption.beams,
                min_length=self.caption.min_length,
                max_length=self.caption.max_length,
                repetition_penalty=self.caption.repetition_penalty,
                do_sample=False,
            )
            rows = written[:, len(self.prompt) :]
            decoded = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
            texts += [" ".join(text.split()) for text in decoded]
        return texts

    @torch.inference_mode()
    def text_states(self, z_v: np.ndarray, captions: list[str]) -> np.ndarray:
        """z_B: hidden states while a caption is written, by teacher forcing (paper 3.4).

        z_v (n, tokens, width) float32 of the pictures, one caption each. The positions of the
        written tokens (neither the prompt nor padding) are cut into three equal parts and averaged.
        Returns (n, 1 + layers, 3, width) float32: embeddings and layers; early, mid, late.

        Raises
        ------
        DataError
            A caption of fewer than three tokens, which has no early, mid and late.
        """
        parts = []
        for start in range(0, len(z_v), self.batch):
            z = torch.as_tensor(z_v[start : start + self.batch], device=self.device)
            texts = captions[start : start + self.batch]
            rows = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
            short = [text for text, row in zip(texts, rows, strict=True) if len(row) < len(PHASES)]
            if short:
                raise DataError(
                    f"caption {short[0]!r} has fewer than {len(PHASES)} tokens, so it has no early, mid "
                    "and late part; raise caption.min_length"
                )
            longest = max(map(len, rows))
            padded = [self.prompt + row + [self.pad] * (longest - len(row)) for row in rows]
            real = [
                [1] * (len(self.prompt) + len(row)) + [0] * (longest - len(row)) for row in rows
            ]
            output = self.model.text_decoder(
                input_ids=torch.tensor(padded, device=self.device),
                attention_mask=torch.tensor(real, device=self.device),
                encoder_hidden_states=z,
                encoder_attention_mask=torch.ones(
                    z.shape[:2], dtype=torch.long, device=self.device
                ),
                output_hidden_states=True,
            )
            hidden = torch.stack(output.hidden_states, 1)  # (n, states, length, width)
            weights = torch.stack([self._thirds(len(row), longest) for row in rows])
            z_b = torch.einsum("npl,nslw->nspw", weights.to(hidden), hidden)
            parts.append(z_b.float().cpu().numpy())
        return np.concatenate(parts)

    def _thirds(self, written: int, longest: int) -> torch.Tensor:
        """Averaging weights (3, prompt + longest) over three equal parts of the written positions.

        Where the count is no multiple of three a position on the border counts in part to each side.
        """
        edges = np.linspace(0, written, len(PHASES) + 1)
        left, right = np.arange(longest), np.arange(longest) + 1
        overlap = np.minimum(right, edges[1:, None]) - np.maximum(left, edges[:-1, None])
        weights = np.clip(overlap, 0, None)
        weights /= weights.sum(1, keepdims=True)
        return torch.from_numpy(np.pad(weights, ((0, 0), (len(self.prompt), 0))))


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
