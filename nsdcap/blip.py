"""BLIP, by transformers' own classes: features of pictures, captions from features, text states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from nsdcap import blip_original
from nsdcap.batches import end_to_end, in_batches
from nsdcap.config import PHASES, Caption, Models
from nsdcap.devices import choose_device, quiet
from nsdcap.errors import DataError
from nsdcap.limits import check_lengths, check_picture_size
from nsdcap.loading import load_part, reading
from nsdcap.model_files import is_checkpoint
from nsdcap.pixels import Pixels

Part = TypeVar("Part")


class Blip:
    """A pre-trained captioner, without gradients.

    A batch that does not fit into memory is halved; ``batch`` keeps the one that did. Attention is
    transformers' own of these classes, written out: they have none by SDPA.

    Parameters
    ----------
    models : Models
        ``blip`` is a hub id, a local Hugging Face folder or a checkpoint file of BLIP's own code (see
        ``blip_original``); ``picture_size`` in pixels (0: the configuration's own), other sizes
        interpolate the position embeddings as BLIP does; ``dtype`` that of weights and products.
    caption : Caption
        How captions are written.

    Raises
    ------
    DataError
        The folder, hub id or file holds no BLIP captioner, or tensors that are missing, of another shape
        or none of a captioner's.
    UsageError
        A picture size that is no multiple of the ViT's patch; a length of captions that leaves no room
        after the prompt, or is above the text decoder's positions; a device that is not there.
    """

    def __init__(self, models: Models, caption: Caption):
        quiet()
        if is_checkpoint(models.blip):
            from transformers import BlipImageProcessorPil

            self.model, self.tokenizer = blip_original.load(
                Path(models.blip), models.blip_tokenizer
            )
            images = (
                BlipImageProcessorPil()
            )  # its defaults are BLIP's: bicubic, CLIP's mean and spread
        else:
            self.model, self.tokenizer, images = _from_folder(models.blip)
        self.size = self._set_picture_size(models.picture_size)
        self.device, self.dtype = choose_device(models.device), getattr(torch, models.dtype)
        self.model.eval().requires_grad_(False).to(self.device, self.dtype)
        images.size = {"height": self.size, "width": self.size}
        images.do_normalize = models.normalise
        self.images, self.batch, self.caption = images, models.batch, caption
        self.pixels = Pixels(images, f"models.blip = {models.blip!r}")
        text = self.model.config.text_config
        self.prompt = [text.bos_token_id, *self.tokens(caption.prompt)]
        self.end, self.pad = text.sep_token_id, text.pad_token_id
        check_lengths(caption, len(self.prompt), text.max_position_embeddings)

    @property
    def states(self) -> int:
        """How many text states there are: the embeddings and one for each layer."""
        return self.model.config.text_config.num_hidden_layers + 1

    @torch.inference_mode()
    def features(self, pictures: np.ndarray) -> np.ndarray:
        """z_v: the ViT's whole output sequence after its final LayerNorm (paper 3.2).

        pictures (n, height, width, 3) uint8; returns (n, tokens, width) float32, token 0 is CLS.
        """

        def see(rows: slice) -> np.ndarray:
            output = self.model.vision_model(pixels(rows).to(self.device, self.dtype))
            return output.last_hidden_state.float().cpu().numpy()

        vision = self.model.config.vision_config
        tokens = (self.size // vision.patch_size) ** 2 + 1
        with self.pixels.ahead(pictures) as pixels:
            parts = self._in_batches(see, len(pictures))
        return end_to_end(parts, (tokens, vision.hidden_size))

    def captions(self, z_v: np.ndarray) -> list[str]:
        """Captions written from z_v (n, tokens, width) float32 by the text decoder (paper 3.3).

        The same words as ``BlipForConditionalGeneration.generate`` gives for the picture itself.
        """
        return self.texts(self.write(z_v))

    def texts(self, written: list[list[int]]) -> list[str]:
        """What ``write`` gives as text, without special tokens."""
        decoded = (self.tokenizer.decode(row, skip_special_tokens=True) for row in written)
        return [" ".join(text.split()) for text in decoded]

    @torch.inference_mode()
    def write(self, z_v: np.ndarray) -> list[list[int]]:
        """The tokens of a caption for each of z_v (n, tokens, width), between the prompt and the end."""

        def generate(rows: slice) -> list[list[int]]:
            z = torch.as_tensor(z_v[rows]).to(self.device, self.dtype)
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
            new = written[:, len(self.prompt) :].tolist()
            return [row[: row.index(self.end)] if self.end in row else row for row in new]

        return [row for part in self._in_batches(generate, len(z_v)) for row in part]

    @torch.inference_mode()
    def text_states(self, z_v: np.ndarray, written: list[list[int]]) -> np.ndarray:
        """z_B: hidden states while a caption is written, by teacher forcing (paper 3.4).

        z_v (n, tokens, width) float32 of the pictures, for each the tokens that ``write`` gave; ``tokens``
        are those of a text, which may be cut into others than were written. The positions of the
        written tokens (neither the prompt nor padding) are cut into three equal parts and averaged; of one
        or two tokens, which the paper's shortest length allows, parts share a position. A caption in which
        nothing was written has the state of the prompt's last token, at which that was decided, in all
        three. Returns (n, 1 + layers, 3, width) float32: embeddings and layers; early, mid, late.
        """

        def read(rows: slice) -> np.ndarray:
            z, words = torch.as_tensor(z_v[rows]).to(self.device, self.dtype), written[rows]
            longest = max(map(len, words))
            padded = [self.prompt + row + [self.pad] * (longest - len(row)) for row in words]
            real = [
                [1] * (len(self.prompt) + len(row)) + [0] * (longest - len(row)) for row in words
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
            hidden = torch.stack(output.hidden_states, 1).float()  # (n, states, length, width)
            weights = torch.stack([self._thirds(len(row), longest) for row in words])
            z_b = torch.einsum("npl,nslw->nspw", weights.to(hidden), hidden)
            return z_b.cpu().numpy()

        width = self.model.config.text_config.hidden_size
        return end_to_end(self._in_batches(read, len(z_v)), (self.states, len(PHASES), width))

    def tokens(self, text: str) -> list[int]:
        """A text's tokens, without special ones."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _in_batches(self, compute: Callable[[slice], Part], total: int) -> list[Part]:
        parts, self.batch = in_batches(compute, total, self.batch, "BLIP")
        return parts

    def _set_picture_size(self, wanted: int) -> int:
        """Positions for pictures of ``wanted`` pixels, once and in float32; returns the size that holds.

        transformers' bicubic interpolation is BLIP's own.
        """
        vision = self.model.config.vision_config
        check_picture_size(wanted, vision.patch_size)
        if wanted in (0, vision.image_size):
            return vision.image_size
        embeddings = self.model.vision_model.embeddings
        tokens = (wanted // vision.patch_size) ** 2 + 1
        shape = torch.empty(1, tokens, vision.hidden_size)
        with torch.no_grad():
            positions = embeddings.interpolate_pos_encoding(shape, wanted, wanted)
        embeddings.position_embedding = torch.nn.Parameter(positions)
        return wanted

    def _thirds(self, written: int, longest: int) -> torch.Tensor:
        """Averaging weights (3, prompt + longest) over three equal parts of the written positions.

        Where the count is no multiple of three a position on the border counts in part to each side.
        """
        before = len(self.prompt)
        if not written:
            alone = torch.zeros(len(PHASES), before + longest, dtype=torch.float64)
            alone[:, before - 1] = 1
            return alone
        edges = np.linspace(0, written, len(PHASES) + 1)
        left, right = np.arange(longest), np.arange(longest) + 1
        overlap = np.minimum(right, edges[1:, None]) - np.maximum(left, edges[:-1, None])
        weights = np.clip(overlap, 0, None)
        weights /= weights.sum(1, keepdims=True)
        return torch.from_numpy(np.pad(weights, ((0, 0), (before, 0))))


def _from_folder(where: str) -> tuple[Any, Any, Any]:
    """Model, tokenizer and image processor of a Hugging Face folder or hub id."""
    from transformers import AutoTokenizer, BlipForConditionalGeneration, BlipImageProcessorPil

    place = f"models.blip = {where!r}"
    model = load_part(BlipForConditionalGeneration, "models.blip", where)
    with reading(place, "BLIP's tokenizer and image processor"):
        tokenizer = AutoTokenizer.from_pretrained(where)
        # PIL whatever else is installed: another resize gives other features
        images = BlipImageProcessorPil.from_pretrained(where)
    tokens = model.config.text_config.vocab_size
    if len(tokenizer) + 2 < tokens:  # BLIP adds two; where no vocabulary is found one is made up
        raise DataError(
            f"{place}: a tokenizer of {len(tokenizer)} tokens, and the model has {tokens}; fetch the folder "
            "again"
        )
    return model, tokenizer, images
