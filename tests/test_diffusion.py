"""Stable Diffusion: ours against diffusers' own pipeline, and that batches change nothing."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline

from nsdcap import config, miniature
from nsdcap.diffusion import Diffusion, resize
from nsdcap.errors import DataError, UsageError
from nsdcap.miniature import world

MODELS = config.Models(diffusion=str(miniature.MODELS / "diffusion"), device="cpu", batch=5)
SETTINGS = config.load(miniature.SETTINGS).reconstruct


@pytest.fixture(scope="module")
def diffusion():
    return Diffusion(MODELS, dataclasses.replace(SETTINGS, steps=10, batch=4))


@pytest.fixture(scope="module")
def pictures():
    rng, textures = np.random.default_rng(4), world.Textures(4)
    return np.stack([world.render(world.draw_scene(rng), textures, rng)[0] for _ in range(6)])


def test_reconstruct_equals_the_image_to_image_pipeline(diffusion, pictures, monkeypatch):
    """The same start, text latents and noise: the pipeline's result, to a grey level of 255.

    The pipeline samples the posterior; here it is given the mean, as ours takes it.
    """
    texts = ["a red ball in a field", "a blue boat on the water", "a black bird in the snow"]
    c = diffusion.text_latents(texts)
    noise = diffusion.noise(0, 1, np.arange(3), 0)
    ours = diffusion.reconstruct(pictures[:3], c, noise)
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(
        MODELS.diffusion, safety_checker=None, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    module = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img"
    monkeypatch.setattr(
        f"{module}.retrieve_latents", lambda encoded, generator=None: encoded.latent_dist.mean
    )
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *args, **kwargs: torch.from_numpy(noise))
    theirs = pipeline(
        prompt_embeds=torch.from_numpy(c),
        negative_prompt_embeds=torch.from_numpy(diffusion.text_latents([""] * 3)),
        image=torch.from_numpy(pictures[:3]).permute(0, 3, 1, 2).float() / 255,
        strength=diffusion.settings.strength,
        guidance_scale=diffusion.settings.guidance,
        num_inference_steps=diffusion.settings.steps,
        output_type="np",
    ).images
    np.testing.assert_allclose(ours / 255, theirs, atol=1.01 / 255)
    assert np.abs(ours.astype(int) - pictures[:3]).mean() > 2


def test_text_latents_equal_the_pipelines(diffusion):
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(
        MODELS.diffusion, safety_checker=None, dtype=torch.float32
    )
    text = "a green house on the street"
    theirs = pipeline.encode_prompt(text, "cpu", 1, False)[0].detach().numpy()
    np.testing.assert_allclose(diffusion.text_latents([text]), theirs, atol=1e-5)


def test_batch_size_changes_nothing(diffusion, pictures):
    c = diffusion.text_latents(["a red ball in a field"] * 6)
    ids = np.array([3, 70, 512, 9, 100, 72999])
    together = diffusion.reconstruct(pictures, c, diffusion.noise(0, 2, ids, 1))
    for row in (0, 5):
        noise = diffusion.noise(0, 2, ids[row : row + 1], 1)
        alone = diffusion.reconstruct(pictures[row : row + 1], c[:1], noise)
        assert np.abs(alone[0].astype(int) - together[row]).max() <= 1


def test_noise_is_named_by_seed_subject_picture_and_sample(diffusion):
    base = diffusion.noise(0, 1, np.array([5, 6]), 0)
    np.testing.assert_array_equal(diffusion.noise(0, 1, np.array([6, 5]), 0), base[::-1])
    others = [(1, 1, 5, 0), (0, 2, 5, 0), (0, 1, 7, 0), (0, 1, 5, 1)]
    for seed, subject, nsd_id, sample in others:
        assert not np.array_equal(
            diffusion.noise(seed, subject, np.array([nsd_id]), sample)[0], base[0]
        )
    same = Diffusion(MODELS, dataclasses.replace(SETTINGS, noise="same"))
    one = same.noise(0, 1, np.array([5, 6]), 0)
    np.testing.assert_array_equal(one[0], one[1])


def test_encode_is_the_scaled_posterior_mean_and_decodes_back(diffusion, pictures):
    z = diffusion.encode(pictures, 64)
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        mean = diffusion.vae.encode(pixels).latent_dist.mean * diffusion.vae.config.scaling_factor
    np.testing.assert_allclose(z, mean.numpy(), atol=1e-4)
    error = diffusion.decode(z).astype(float) - pictures
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 22  # dB
    assert diffusion.encode(pictures, 40).shape == (6, 4, 10, 10)
    assert diffusion.encode(pictures, 40).shape[1:] == diffusion.latent_shape(40)
    noise = np.ones((6, *diffusion.latent_shape(64)), np.float32)
    with torch.no_grad():
        spread = diffusion.vae.encode(pixels).latent_dist.std * diffusion.vae.config.scaling_factor
    np.testing.assert_allclose(diffusion.encode(pictures, 64, noise), z + spread.numpy(), atol=1e-4)


def test_resize_keeps_a_flat_picture_flat():
    flat = np.full((2, 425, 425, 3), 77, np.uint8)
    assert (resize(flat, 64) == 77).all()
    assert resize(flat, 64).shape == (2, 64, 64, 3)


def test_what_is_no_model_or_no_size_is_refused():
    with pytest.raises(DataError, match=r"models\.diffusion"):
        Diffusion(dataclasses.replace(MODELS, diffusion=str(miniature.MODELS / "blip")), SETTINGS)
    with pytest.raises(UsageError, match=r"coarse_size: found 42, expected a multiple of 4"):
        Diffusion(MODELS, dataclasses.replace(SETTINGS, coarse_size=42))
