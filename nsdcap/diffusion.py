"""Stable Diffusion, by diffusers' own classes: latents of pictures and texts, pictures from them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from nsdcap.config import Models, Reconstruct
from nsdcap.devices import choose_device, quiet
from nsdcap.errors import DataError


class Diffusion:
    """Stable Diffusion 1.4 or a model of its layout, in float32, without gradients.

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
        The folder holds no such model; a size is not a multiple of the autoencoder's reduction.
    """

    def __init__(self, models: Models, settings: Reconstruct):
        quiet()
        from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline

        where = models.diffusion
        self.device = choose_device(models.device)
        try:
            pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(
                where,
                dtype=torch.float32,
                safety_checker=None,
                requires_safety_checker=False,
                use_safetensors=True,
            )
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            raise DataError(
                f"models.diffusion = {where!r}: no Stable Diffusion model could be read there "
                f"({str(error).strip().splitlines()[0][:200]}); give a diffusers folder or a hub id"
            ) from error
        pipeline.to(self.device)
        self.vae, self.unet = pipeline.vae, pipeline.unet
        self.text_encoder, self.tokenizer = pipeline.text_encoder, pipeline.tokenizer
        self.schedule = pipeline.scheduler.config
        self.scheduler_class = DDIMScheduler
        self.reduction = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.settings, self.batch = settings, models.batch
        for name in ("coarse_size", "size"):
            if getattr(settings, name) % self.reduction:
                raise DataError(
                    f"reconstruct.{name}: found {getattr(settings, name)}, expected a multiple of "
                    f"{self.reduction}, by which the autoencoder of {where!r} reduces"
                )

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
        parts = []
        for start in range(0, len(pictures), self.batch):
            rows = slice(start, start + self.batch)
            posterior = self.vae.encode(self._to_tensor(resize(pictures[rows], size))).latent_dist
            code = posterior.mean
            if noise is not None:
                code = code + posterior.std * torch.as_tensor(noise[rows], device=self.device)
            parts.append((code * self.vae.config.scaling_factor).cpu().numpy())
        return np.concatenate(parts)

    @torch.inference_mode()
    def decode(self, z: np.ndarray) -> np.ndarray:
        """Pictures (n, size, size, 3) uint8 from latents (n, channels, s, s) float32."""
        parts = []
        for start in range(0, len(z), self.batch):
            code = torch.as_tensor(z[start : start + self.batch], device=self.device)
            pixels = self.vae.decode(code / self.vae.config.scaling_factor).sample
            parts.append(self._to_pictures(pixels))
        return np.concatenate(parts)

    @torch.inference_mode()
    def text_latents(self, texts: list[str]) -> np.ndarray:
        """c: the text encoder's last hidden state, (n, positions, width) float32 (paper 3.3)."""
        parts = []
        for start in range(0, len(texts), self.batch):
            ids = self.tokenizer(
                texts[start : start + self.batch],
                padding="max_length",
                truncation=True,
                max_length=self.tokenizer.model_max_length,
                return_tensors="pt",
            )["input_ids"].to(self.device)
            parts.append(self.text_encoder(ids).last_hidden_state.float().cpu().numpy())
        return np.concatenate(parts)

    def coarse(self, z: np.ndarray) -> np.ndarray:
        """Pictures (n, size, size, 3) uint8 decoded from z at coarse size and resized: step 3's start."""
        return resize(self.decode(z), self.settings.size)

    @torch.inference_mode()
    def reconstruct(self, coarse: np.ndarray, c: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Image-to-image diffusion from coarse pictures under text latents (paper 3.3).

        coarse (n, size, size, 3) uint8; c (n, positions, width) float32; noise (n, channels, s, s)
        float32 standard normal, s = size / reduction. Returns (n, size, size, 3) uint8.

        Steps: encode the coarse picture; noise it to the step that ``strength`` names; denoise by
        DDIM (eta 0) with classifier-free guidance against the empty text; decode. Memory: the
        UNet's activations for twice ``reconstruct.batch`` pictures.
        """
        settings = self.settings
        empty = torch.as_tensor(self.text_latents([""]), device=self.device)
        parts = []
        for start in range(0, len(coarse), settings.batch):
            rows = slice(start, start + settings.batch)
            # 1. the coarse picture's own latent
            z = torch.as_tensor(self.encode(coarse[rows], settings.size), device=self.device)
            # 2. noise it to the step where denoising begins
            scheduler = self.scheduler_class.from_config(self.schedule)
            scheduler.set_timesteps(settings.steps, device=self.device)
            first = settings.steps - min(int(settings.steps * settings.strength), settings.steps)
            steps = scheduler.timesteps[first:]
            start_noise = torch.as_tensor(noise[rows], device=self.device)
            z = scheduler.add_noise(z, start_noise, steps[:1])
            # 3. denoise, guided away from the empty text
            text = torch.as_tensor(c[rows], device=self.device)
            both = torch.cat([empty.expand_as(text), text])
            for t in steps:
                pair = scheduler.scale_model_input(torch.cat([z, z]), t)
                plain, told = self.unet(pair, t, encoder_hidden_states=both).sample.chunk(2)
                z = scheduler.step(
                    plain + settings.guidance * (told - plain), t, z, eta=0.0
                ).prev_sample
            # 4. decode
            pixels = self.vae.decode(z / self.vae.config.scaling_factor).sample
            parts.append(self._to_pictures(pixels))
        return np.concatenate(parts)

    def noise(self, seed: int, subject: int, nsd_ids: np.ndarray, sample: int) -> np.ndarray:
        """Starting noise (n, channels, s, s) float32, drawn on the CPU from its names alone.

        So the result depends neither on batch size nor on which process draws which picture. With
        ``reconstruct.noise = "same"`` all pictures get the noise of (seed, sample).
        """
        shape = self.latent_shape(self.settings.size)
        if self.settings.noise == "same":
            one = np.random.default_rng([seed, sample]).standard_normal(shape, np.float32)
            return np.repeat(one[None], len(nsd_ids), 0)
        return np.stack(
            [
                np.random.default_rng([seed, subject, int(i), sample]).standard_normal(
                    shape, np.float32
                )
                for i in nsd_ids
            ]
        )

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
    return np.stack(
        [
            np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BICUBIC))
            for p in pictures
        ]
    )
