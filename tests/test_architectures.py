"""Names and shapes of tensors by a configuration alone: those of the libraries' own classes."""

from __future__ import annotations

import json

import pytest
import torch

from nsdcap import architectures, miniature

TIED = "text_decoder.cls.predictions."  # the output layer, which has two names


def shapes_of(kind, config) -> dict[str, tuple[int, ...]]:
    """By the class itself, on no device."""
    with torch.device("meta"):
        model = kind(config) if not isinstance(config, dict) else kind.from_config(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def held(found: dict, wanted: dict) -> None:
    """``found`` of architectures against the class's own, but for buffers and tied outputs."""
    loose = (f"{TIED}bias", f"{TIED}decoder.bias", f"{TIED}decoder.weight")
    own = {n: s for n, s in wanted.items() if n not in loose and not n.endswith("position_ids")}
    assert found == own


@pytest.mark.parametrize("large", [False, True])
def test_blip_and_clip(large):
    from transformers import (
        BlipConfig,
        BlipForConditionalGeneration,
        CLIPConfig,
        CLIPModel,
        CLIPTextConfig,
        CLIPTextModel,
    )

    folders = {name: miniature.MODELS / name for name in ("blip", "clip", "diffusion/text_encoder")}
    configs = {
        name: json.loads((path / "config.json").read_text()) for name, path in folders.items()
    }
    if large:
        seen = {"hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 4096}
        configs["blip"] = {"vision_config": {**seen, "num_attention_heads": 16}, "text_config": {}}
        configs["clip"] = {"projection_dim": 768, "text_config": {"hidden_size": 768},
                           "vision_config": {"patch_size": 14}}  # fmt: skip
        configs["diffusion/text_encoder"] = {"hidden_size": 768, "intermediate_size": 3072}
    held(architectures.blip(configs["blip"]),
         shapes_of(BlipForConditionalGeneration, BlipConfig(**configs["blip"])))  # fmt: skip
    held(architectures.clip(configs["clip"]), shapes_of(CLIPModel, CLIPConfig(**configs["clip"])))
    text = configs["diffusion/text_encoder"]
    wanted = shapes_of(CLIPTextModel, CLIPTextConfig(**text))
    held(
        architectures.clip_text(text), {n.removeprefix("text_model."): s for n, s in wanted.items()}
    )


SD = {  # Stable Diffusion 1.4, and what 2.1 has otherwise
    "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768, "attention_head_dim": 8,
}  # fmt: skip
KL = {
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip


@pytest.mark.parametrize(
    "config", ["miniature", SD, {**SD, "use_linear_projection": True, "cross_attention_dim": 1024}]
)
def test_unet(config):
    from diffusers import UNet2DConditionModel

    if config == "miniature":
        config = json.loads((miniature.MODELS / "diffusion/unet/config.json").read_text())
    held(architectures.unet(config), shapes_of(UNet2DConditionModel, config))


@pytest.mark.parametrize("config", ["miniature", KL, {**KL, "use_quant_conv": False}])
def test_autoencoder(config):
    from diffusers import AutoencoderKL

    if config == "miniature":
        config = json.loads((miniature.MODELS / "diffusion/vae/config.json").read_text())
    held(architectures.vae(config), shapes_of(AutoencoderKL, config))


def test_of_a_unet_with_other_blocks_only_the_ends_are_told():
    found = architectures.unet({**SD, "down_block_types": ["SimpleCrossAttnDownBlock2D"] * 4})
    assert found == {
        "conv_in.weight": (320, 4, 3, 3), "conv_in.bias": (320,),
        "conv_out.weight": (4, 320, 3, 3), "conv_out.bias": (4,),
    }  # fmt: skip
