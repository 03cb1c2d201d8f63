"""Where denoising begins: as diffusers' own pipeline, or as CompVis' img2img script, to 1e-4 in latents."""

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from nsdcap import config
from nsdcap.diffusion import Diffusion

sys.path.insert(0, str(Path(__file__).parents[1] / "hpc/bench"))
from base_models import write_diffusion

SETTINGS = config.Reconstruct(coarse_size=32, size=64, steps=50, batch=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Stable Diffusion's layout with random weights, narrow, with PNDM as its scheduler, as at the hub."""
    place = tmp_path_factory.mktemp("random")
    channels = (32, 64, 64, 64)
    # two numbers a group, as 32 groups would leave, are normed to their sign: no tolerance holds then
    write_diffusion(place, unet=channels, vae=channels, width=64, layers=2, groups=4)
    return place


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(8)
    coarse = rng.integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    c = rng.standard_normal((3, 77, 64)).astype(np.float32)
    return coarse, c, rng.standard_normal((3, 4, 8, 8)).astype(np.float32)


def ours(folder, **settings):
    models = config.Models(diffusion=str(folder), device="cpu", batch=3)
    return Diffusion(models, dataclasses.replace(SETTINGS, **settings))


def pipeline_of(diffusion, folder):
    """diffusers' own, of the same parts."""
    names = ("vae", "unet", "text_encoder", "tokenizer")
    pipeline = StableDiffusionImg2ImgPipeline(
        **{name: getattr(diffusion, name) for name in names},
        scheduler=DDIMScheduler.from_pretrained(folder / "scheduler", clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(("steps", "strength"), [(25, 0.8), (7, 1.0), (30, 0.29)])
def test_diffusers_start_equals_the_pipeline(folder, inputs, monkeypatch, steps, strength):
    coarse, c, noise = inputs
    diffusion = ours(folder, steps=steps, strength=strength)
    pipeline = pipeline_of(diffusion, folder)
    module = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img"
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *args, **kwargs: torch.from_numpy(noise))
    theirs = pipeline(
        prompt_embeds=torch.from_numpy(c),
        negative_prompt_embeds=torch.from_numpy(diffusion.text_latents([""] * 3)),
        image=torch.from_numpy(diffusion.encode(coarse, 64)),  # four channels: taken as latents
        strength=strength,
        guidance_scale=SETTINGS.guidance,
        num_inference_steps=steps,
        output_type="latent",
    ).images.numpy()
    found = diffusion.latents(coarse, c, noise)
    np.testing.assert_allclose(found, theirs, atol=1e-4)
    assert np.abs(found - diffusion.encode(coarse, 64)).mean() > 0.01
    np.testing.assert_array_equal(diffusion.reconstruct(coarse, c, noise), diffusion.decode(found))


def compvis(diffusion, z0, c, noise, steps, strength, guidance):
    """CompVis' scripts/img2img.py with its DDIMSampler, in NumPy; the UNet alone is torch's.

    Returns the latents and the time steps that the UNet was asked for.
    """
    # ldm/modules/diffusionmodules/util.py: make_beta_schedule("linear"), v1-inference.yaml's ends
    betas = np.linspace(0.00085**0.5, 0.0120**0.5, 1000) ** 2
    alphas_cumprod = np.cumprod(1 - betas)
    # make_ddim_timesteps("uniform"), make_ddim_sampling_parameters(eta=0)
    timesteps = np.arange(0, 1000, 1000 // steps) + 1
    alphas = alphas_cumprod[timesteps]
    alphas_prev = np.append(alphas_cumprod[0], alphas_cumprod[timesteps[:-1]])
    # stochastic_encode(init_latent, t_enc)
    t_enc = int(strength * steps)
    x = np.sqrt(alphas[t_enc]) * z0 + np.sqrt(1 - alphas[t_enc]) * noise
    empty = np.repeat(diffusion.text_latents([""]), len(z0), 0)
    asked = []
    # decode(z_enc, c, t_enc), p_sample_ddim
    for index in range(t_enc - 1, -1, -1):
        asked.append(int(timesteps[index]))
        plain, told = (eps(diffusion.unet, x, asked[-1], text) for text in (empty, c))
        e = plain + guidance * (told - plain)
        x0 = (x - np.sqrt(1 - alphas[index]) * e) / np.sqrt(alphas[index])
        x = np.sqrt(alphas_prev[index]) * x0 + np.sqrt(1 - alphas_prev[index]) * e
    return x, asked


def eps(unet, x, t, text):
    with torch.no_grad():
        sample = torch.from_numpy(x.astype(np.float32))
        return unet(sample, t, torch.from_numpy(text)).sample.numpy().astype(float)


@pytest.mark.parametrize(("steps", "strength"), [(50, 0.8), (10, 0.8), (7, 0.9)])
def test_released_start_equals_compvis_script(folder, inputs, steps, strength):
    coarse, c, noise = inputs
    diffusion = ours(folder, steps=steps, strength=strength, start="released")
    asked: list[int] = []
    hook = diffusion.unet.register_forward_pre_hook(lambda unet, args: asked.append(int(args[1])))
    found = diffusion.latents(coarse[:2], c[:2], noise[:2])  # one batch
    hook.remove()
    z0 = diffusion.encode(coarse[:2], 64).astype(float)
    theirs, wanted = compvis(
        diffusion, z0, c[:2], noise[:2].astype(float), steps, strength, SETTINGS.guidance
    )
    assert asked == wanted
    assert steps != 50 or (asked[0] == 781 and len(asked) == 40)  # index 39; noised at 801
    np.testing.assert_allclose(found, theirs, atol=1e-4)
    plain = ours(folder, steps=steps, strength=strength).latents(coarse[:2], c[:2], noise[:2])
    assert np.abs(plain - theirs).max() > 1e-2  # the other start is told apart


def test_batch_and_order_change_nothing(folder, inputs):
    """Rows in other batches and another order: latents to 1e-4, as ``reconstruct`` promises."""
    coarse, c, noise = inputs
    diffusion = ours(folder, steps=15)
    together = diffusion.latents(coarse, c, noise)
    one = ours(folder, steps=15, batch=1)
    order = [2, 0, 1]
    alone = np.concatenate([one.latents(coarse[[row]], c[[row]], noise[[row]]) for row in order])
    np.testing.assert_allclose(alone, together[order], atol=1e-4)


def test_presets_name_their_start():
    assert config.load().reconstruct.start == "diffusers"
    assert config.load(preset="released").reconstruct.start == "released"


def test_a_picture_by_the_pipelines_own_encoding(folder, inputs, tmp_path):
    """Nothing of the pipeline is replaced. It starts from a sample of the posterior, ours from its mean: here
    the autoencoder is sure of its code, with a spread of 3e-7, so that both are the same."""
    sure = shutil.copytree(folder, tmp_path / "sure")
    file = sure / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["quant_conv.weight"][4:] = 0
    tensors["quant_conv.bias"][4:] = -30  # log variance
    save_file(tensors, file, {"format": "pt"})
    coarse, c, _ = inputs
    draws = torch.Generator().manual_seed(4)
    torch.randn((3, 4, 8, 8), generator=draws)  # of the posterior
    noise = torch.randn((3, 4, 8, 8), generator=draws).numpy()
    diffusion = ours(sure, steps=8)
    theirs = pipeline_of(diffusion, sure)(
        prompt_embeds=torch.from_numpy(c),
        negative_prompt_embeds=torch.from_numpy(diffusion.text_latents([""] * 3)),
        image=[Image.fromarray(picture) for picture in coarse],
        strength=SETTINGS.strength, guidance_scale=SETTINGS.guidance, num_inference_steps=8,
        generator=torch.Generator().manual_seed(4), output_type="latent",
    ).images.numpy()  # fmt: skip
    found = diffusion.latents(coarse, c, noise)
    np.testing.assert_allclose(found, theirs, atol=1e-4)
    other = diffusion.latents(255 - coarse, c, noise)
    assert np.abs(other - theirs).max() > 0.01  # the picture counts
