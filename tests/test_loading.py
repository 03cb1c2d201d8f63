"""Models' parts: every tensor accounted for, the dtype that was asked for, batches that fit."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nsdcap import config, miniature
from nsdcap.diffusion import Diffusion
from nsdcap.errors import DataError
from nsdcap.miniature import world
from nsdcap.score import Clip

MODELS = config.Models(
    diffusion=str(miniature.MODELS / "diffusion"), clip=str(miniature.MODELS / "clip"),
    device="cpu", batch=6,
)  # fmt: skip
SETTINGS = dataclasses.replace(config.load(miniature.SETTINGS).reconstruct, steps=5, batch=6)
TEXTS = ["a red ball in a field", "a blue boat on the water", "a black bird in the snow"]


@pytest.fixture(scope="module")
def pictures():
    rng, textures = np.random.default_rng(5), world.Textures(5)
    return np.stack([world.render(world.draw_scene(rng), textures, rng)[0] for _ in range(3)])


def changed(folder, file, change):
    """A copy's weights after ``change`` of their dict."""
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, {"format": "pt"})


def lacks(name):
    return lambda tensors: tensors.pop(name)


def adds(name):
    return lambda tensors: tensors.update({name: torch.zeros(3)})


def cuts(name):
    return lambda tensors: tensors.update({name: tensors[name][:2].clone()})


CONV, QUERY = "conv_out.weight", "encoder.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("unet/diffusion_pytorch_model", lacks(CONV), "unet: .* 1 missing: conv_out.weight;"),
        ("unet/diffusion_pytorch_model", adds("more"), "unet: .* 1 surplus: more;"),
        ("unet/diffusion_pytorch_model", cuts(CONV), "unet: .*conv_out.weight expected shape"),
        ("vae/diffusion_pytorch_model", lacks("quant_conv.bias"), "vae: .* quant_conv.bias;"),
        ("vae/diffusion_pytorch_model", adds("more"), "vae: .* 1 surplus: more;"),
        ("text_encoder/model", lacks("text_model." + QUERY), f"text_encoder: .* missing: {QUERY};"),
        ("text_encoder/model", adds("more"), "text_encoder: .* 1 surplus: more;"),
        ("text_encoder/model", cuts("text_model." + QUERY), f"1 of another shape: {QUERY};"),
    ],
)
def test_a_tensor_too_few_or_too_many_is_refused(tmp_path, file, change, words):
    shutil.copytree(MODELS.diffusion, tmp_path, dirs_exist_ok=True)
    changed(tmp_path, file + ".safetensors", change)
    with pytest.raises(DataError, match=rf"models\.diffusion = .*{words}"):
        Diffusion(dataclasses.replace(MODELS, diffusion=str(tmp_path)), SETTINGS)


def test_weights_that_are_no_safetensors_are_refused(tmp_path):
    shutil.copytree(MODELS.diffusion, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"unet: no UNet2DConditionModel could be read there"):
        Diffusion(dataclasses.replace(MODELS, diffusion=str(tmp_path)), SETTINGS)
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(DataError, match=r"unet: no UNet2DConditionModel could be read there"):
        Diffusion(dataclasses.replace(MODELS, diffusion=str(tmp_path)), SETTINGS)


def test_clip_accounts_for_its_tensors(tmp_path):
    shutil.copytree(MODELS.clip, tmp_path, dirs_exist_ok=True)
    models = dataclasses.replace(MODELS, clip=str(tmp_path))
    # what older transformers saved beside the weights says nothing
    changed(tmp_path, "model.safetensors", adds("text_model.embeddings.position_ids"))
    np.testing.assert_array_equal(Clip(models).texts(TEXTS), Clip(MODELS).texts(TEXTS))
    changed(tmp_path, "model.safetensors", adds("more"))
    with pytest.raises(DataError, match=r"models\.clip = .* 1 surplus: more;"):
        Clip(models)
    changed(tmp_path, "model.safetensors", lacks("more"))
    changed(tmp_path, "model.safetensors", lacks("visual_projection.weight"))
    with pytest.raises(DataError, match=r"models\.clip = .* 1 missing: visual_projection.weight;"):
        Clip(models)
    with pytest.raises(DataError, match=r"models\.clip = .*no CLIPModel could be read there"):
        Clip(dataclasses.replace(MODELS, clip=str(tmp_path / "nowhere")))


def test_dtype_is_that_of_unet_and_clip_and_results_are_float32(pictures):
    whole = Diffusion(MODELS, SETTINGS)
    half = Diffusion(dataclasses.replace(MODELS, dtype="bfloat16"), SETTINGS)
    assert half.unet.dtype == torch.bfloat16
    assert half.vae.dtype == half.text_encoder.dtype == torch.float32
    np.testing.assert_array_equal(half.encode(pictures, 40), whole.encode(pictures, 40))
    c = half.text_latents(TEXTS)
    np.testing.assert_array_equal(c, whole.text_latents(TEXTS))
    noise = whole.noise(0, 1, np.arange(3), 0)
    found, wanted = (one.latents(pictures, c, noise) for one in (half, whole))
    assert found.dtype == np.float32
    error = np.abs(found - wanted)
    assert error.max() > 1e-4  # bfloat16 it was
    assert error.mean() < 0.05 * np.abs(wanted).mean()
    assert half.reconstruct(pictures, c, noise).dtype == np.uint8

    clip, coarse_clip = Clip(MODELS), Clip(dataclasses.replace(MODELS, dtype="bfloat16"))
    assert coarse_clip.model.dtype == torch.bfloat16
    for wanted, found in [
        (clip.pictures(pictures), coarse_clip.pictures(pictures)),
        (clip.texts(TEXTS), coarse_clip.texts(TEXTS)),
    ]:
        assert found.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
        assert np.abs(wanted - found).max() > 1e-4
        assert ((wanted * found).sum(1) > 0.995).all()


def test_float16_runs_where_it_is_slow_too(pictures):
    half = Diffusion(dataclasses.replace(MODELS, dtype="float16"), SETTINGS)
    c, noise = half.text_latents(TEXTS[:1]), half.noise(0, 1, np.arange(1), 0)
    assert np.isfinite(half.latents(pictures[:1], c, noise)).all()


def test_attention_is_torchs_own():
    diffusion, clip = Diffusion(MODELS, SETTINGS), Clip(MODELS)
    processors = {type(each).__name__ for each in diffusion.unet.attn_processors.values()}
    assert processors == {"AttnProcessor2_0"}
    for model in (diffusion.text_encoder, clip.model.text_model, clip.model.vision_model):
        assert model.config._attn_implementation == "sdpa"
    assert not any(part.training for part in (diffusion.unet, diffusion.vae, clip.model))


def test_a_batch_that_does_not_fit_is_halved(pictures, capsys):
    """Two pictures at once, four rows of the UNet, are too many here: the same result, in ones."""
    diffusion = Diffusion(MODELS, SETTINGS)
    c, noise = diffusion.text_latents(TEXTS), diffusion.noise(0, 1, np.arange(3), 0)
    wanted = diffusion.latents(pictures, c, noise)

    def too_many(unet, args):
        if len(args[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    diffusion.unet.register_forward_pre_hook(too_many)
    for _ in range(2):
        np.testing.assert_allclose(diffusion.latents(pictures, c, noise), wanted, atol=1e-4)
    told = capsys.readouterr().out
    assert told == "reconstructions: 3 at a time do not fit into memory, going on with 1\n"
