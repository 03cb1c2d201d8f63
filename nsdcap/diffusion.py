"""Stable Diffusion, by diffusers' own classes: latents of pictures and texts, pictures from them."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from PIL import Image

from nsdcap.batches import joined
from nsdcap.config import Models, Reconstruct
from nsdcap.devices import choose_device, quiet
from nsdcap.limits import check_sizes
from nsdcap.loading import load_part, reading


class Diffusion:
    """Stable Diffusion 1.4 or a model of its layout, in eval mode, without gradients.

    The UNet computes in ``models.dtype``; latents are kept in float32 between its steps. The
    autoencoder and the text encoder stay in float32: z and c are fitted to; the autoencoder's share is a
    twentieth (3.6 of 68 TFLOP for 512 pixels and 40 steps); and in float16 an activation past 65,504
    would make a picture black. Weights are channels-last: on one CPU thread at the miniature's sizes
    that made the autoencoder 1.15 to 1.4 times as fast, the UNet 1.2 to 1.6 times in bfloat16, and left
    it as it was in float32; on a GPU it has not been measured. Attention is torch's
    scaled_dot_product_attention, the libraries' own default.

    The safety checker is not used: it replaces pictures by black ones, and its verdict on a
    reconstruction says nothing about the brain.

    Parameters
    ----------
    models : Models
        ``diffusion`` is a hub id or a local folder in diffusers' layout, safetensors only.
    settings : Reconstruct
        Sizes, steps, strength and guidance.

    Raises
    ------
    DataError
        The folder holds no such model, or tensors are missing or surplus.
    UsageError
        A size that is not a multiple of the autoencoder's reduction; a device that is not there.
    """

    def __init__(self, models: Models, settings: Reconstruct):
        quiet()
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        where, name = models.diffusion, "models.diffusion"
        self.device = choose_device(models.device)
        place = {"device": self.device, "memory_format": torch.channels_last}
        load = partial(load_part, setting=name, where=where, use_safetensors=True)
        self.unet = load(UNet2DConditionModel, part="unet", dtype=models.dtype).to(**place)
        self.vae = load(AutoencoderKL, part="vae").to(**place)
        self.text_encoder = load(CLIPTextModel, part="text_encoder").to(self.device)
        with reading(f"{name} = {where!r}", "tokenizer or scheduler of Stable Diffusion"):
            self.tokenizer = CLIPTokenizer.from_pretrained(where, subfolder="tokenizer")
            # whatever scheduler the folder names, with its betas; clipping is for models of pixels
            self.scheduler = DDIMScheduler.from_pretrained(
                where, subfolder="scheduler", clip_sample=False
            )
        self.reduction = check_sizes(settings, self.vae.config)
        self.settings = settings
        self.batches = {
            "z": models.batch,
            "pictures of z": min(models.batch, settings.batch),
            "c": models.batch,
            "reconstructions": settings.batch,
        }

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """(channels, s, s) of the latent of a picture of ``size`` pixels a side."""
        return (self.vae.config.latent_channels, size // self.reduction, size // self.reduction)

    @torch.inference_mode()
    def encode(
        self, pictures: np.ndarray, size: int, noise: np.ndarray | None = None
    ) -> np.ndarray:
        """z: the autoencoder's posterior mean times its scaling factor (paper 3.3).

        pictures (n, height, width, 3) uint8, first resized to ``size`` pixels a side; with standard
        normal ``noise`` (n, channels, s, s) the sample of the posterior that it names instead of the
        mean. Returns (n, channels, s, s) float32 with s = size / reduction.
        """

        def part(rows: slice) -> np.ndarray:
            posterior = self.vae.encode(self._to_tensor(resize(pictures[rows], size))).latent_dist
            code = posterior.mean
            if noise is not None:
                code = code + posterior.std * torch.as_tensor(noise[rows], device=self.device)
            return (code * self.vae.config.scaling_factor).cpu().numpy()

        return joined(part, len(pictures), self.batches, "z", self.latent_shape(size))

    @torch.inference_mode()
    def decode(self, z: np.ndarray) -> np.ndarray:
        """Pictures (n, size, size, 3) uint8 from latents (n, channels, s, s) float32."""

        def part(rows: slice) -> np.ndarray:
            code = torch.as_tensor(z[rows], device=self.device) / self.vae.config.scaling_factor
            return self._to_pictures(self.vae.decode(code).sample)

        height, width = (side * self.reduction for side in z.shape[2:])
        return joined(part, len(z), self.batches, "pictures of z", (height, width, 3), "u1")

    @torch.inference_mode()
    def text_latents(self, texts: list[str]) -> np.ndarray:
        """c: the text encoder's last hidden state, (n, positions, width) float32 (paper 3.3)."""

        def part(rows: slice) -> np.ndarray:
            ids = self.tokenizer(
                texts[rows],
                padding="max_length",
                truncation=True,
                max_length=self.tokenizer.model_max_length,
                return_tensors="pt",
            )["input_ids"].to(self.device)
            return self.text_encoder(ids).last_hidden_state.cpu().numpy()

        row = (self.tokenizer.model_max_length, self.text_encoder.config.hidden_size)
        return joined(part, len(texts), self.batches, "c", row)

    def coarse(self, z: np.ndarray) -> np.ndarray:
        """Pictures (n, size, size, 3) uint8 decoded from z at coarse size and resized: step 3's start."""
        return resize(self.decode(z), self.settings.size)

    def reconstruct(self, coarse: np.ndarray, c: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Image-to-image diffusion from coarse pictures under text latents (paper 3.3).

        coarse (n, size, size, 3) uint8; c (n, positions, width) float32; noise (n, channels, s, s)
        float32 standard normal, s = size / reduction. Returns (n, size, size, 3) uint8.

        Each picture depends on its own row alone. In another batch, order or process floating point
        adds up in another order: in float32 the latents move by less than 1e-4 and the picture by at most
        one grey level of 255.
        """
        return self.decode(self.latents(coarse, c, noise))

    @torch.inference_mode()
    def latents(self, coarse: np.ndarray, c: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """What ``reconstruct`` decodes: its last latents (n, channels, s, s) float32, same arguments.

        Steps: encode the coarse picture; noise it to the step that ``strength`` and ``start`` name;
        denoise by DDIM (eta 0) with classifier-free guidance against the empty text. Memory: the
        UNet's activations for twice ``reconstruct.batch`` pictures.
        """
        settings, scheduler = self.settings, self.scheduler
        scheduler.set_timesteps(settings.steps, device=self.device)
        steps = scheduler.timesteps[settings.steps - int(settings.steps * settings.strength) :]
        begin = steps[:1]
        if settings.start == "released":
            # CompVis' img2img: stochastic_encode(z, t_enc), then decode over timesteps[:t_enc]
            begin = begin + scheduler.config.num_train_timesteps // settings.steps
        empty = torch.as_tensor(self.text_latents([""]), device=self.device)

        def part(rows: slice) -> np.ndarray:
            # 1. the coarse picture's own latent
            z = torch.as_tensor(self.encode(coarse[rows], settings.size), device=self.device)
            # 2. noise it to the step where denoising begins
            z = scheduler.add_noise(z, torch.as_tensor(noise[rows], device=self.device), begin)
            # 3. denoise, guided away from the empty text
            text = torch.as_tensor(c[rows], device=self.device)
            both = torch.cat([empty.expand_as(text), text]).to(self.unet.dtype)
            for t in steps:
                pair = torch.cat([z, z]).to(self.unet.dtype)
                noisy = self.unet(pair, t, encoder_hidden_states=both).sample.float()
                plain, told = noisy.chunk(2)
                guided = plain + settings.guidance * (told - plain)
                z = scheduler.step(guided, t, z, eta=0.0).prev_sample
            return z.cpu().numpy()

        row = self.latent_shape(settings.size)
        return joined(part, len(coarse), self.batches, "reconstructions", row)

    def noise(self, seed: int, subject: int, nsd_ids: np.ndarray, sample: int) -> np.ndarray:
        """Starting noise (n, channels, s, s) float32, drawn on the CPU from its names alone.

        So the result depends neither on batch size nor on which process draws which picture. With
        ``reconstruct.noise = "same"`` all pictures get the noise of (seed, sample).
        """
        shape = self.latent_shape(self.settings.size)
        if self.settings.noise == "same":
            one = np.random.default_rng([seed, sample]).standard_normal(shape, np.float32)
            return np.repeat(one[None], len(nsd_ids), 0)
        found = np.empty((len(nsd_ids), *shape), np.float32)
        for to, nsd_id in zip(found, nsd_ids, strict=True):
            rng = np.random.default_rng([seed, subject, int(nsd_id), sample])
            rng.standard_normal(dtype=np.float32, out=to)
        return found

    def _to_tensor(self, pictures: np.ndarray) -> torch.Tensor:
        """(n, h, w, 3) uint8 -> (n, 3, h, w) float32 in -1..1 on the device."""
        chw = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)
        return chw.to(self.device, torch.float32) / 127.5 - 1

    @staticmethod
    def _to_pictures(pixels: torch.Tensor) -> np.ndarray:
        """(n, 3, h, w) float in -1..1 -> (n, h, w, 3) uint8."""
        scaled = ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return scaled.permute(0, 2, 3, 1).cpu().numpy()


def resize(pictures: np.ndarray, size: int) -> np.ndarray:
    """Pictures (n, h, w, 3) uint8 resized to (n, size, size, 3) by antialiased bicubic filtering."""
    if pictures.shape[1:3] == (size, size):
        return pictures
    found = np.empty((len(pictures), size, size, 3), np.uint8)
    for to, picture in zip(found, pictures, strict=True):
        small = Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC)
        to[:] = np.asarray(small)
    return found
