"""Which tensors a model's configuration asks for, by name and shape, without building the model.

Only the family that the stages load is known here: BLIP, CLIP, and Stable Diffusion's UNet, autoencoder and
text encoder. Of a UNet or autoencoder with other blocks the first and the last layer alone are told.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Shapes = dict[str, tuple[int, ...]]
Sizes = dict[str, Any]
BLIP_TEXT: Sizes = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "vocab_size": 30524,
    "max_position_embeddings": 512,
}  # fmt: skip
BLIP_VISION: Sizes = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "image_size": 384,
    "patch_size": 16,
}  # fmt: skip
CLIP_TEXT: Sizes = {
    "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "vocab_size": 49408,
    "max_position_embeddings": 77,
}  # fmt: skip
CLIP_VISION: Sizes = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "image_size": 224,
    "patch_size": 32, "num_channels": 3,
}  # fmt: skip
UNET: Sizes = {
    "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "in_channels": 4,
    "out_channels": 4, "cross_attention_dim": 1280,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
}  # fmt: skip
VAE: Sizes = {
    "block_out_channels": [64], "layers_per_block": 1, "in_channels": 3, "out_channels": 3,
    "latent_channels": 4, "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
}  # fmt: skip
# settings of a UNet that give it other tensors than are told here, and their values that do not
PLAIN: dict[str, tuple] = {
    "addition_embed_type": (None,), "class_embed_type": (None,), "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,), "time_embedding_type": ("positional",), "num_class_embeds": (None,),
    "attention_type": ("default",), "only_cross_attention": (False,), "dual_cross_attention": (False,),
    "resnet_time_scale_shift": ("default",), "time_embedding_dim": (None,), "time_cond_proj_dim": (None,),
    "cross_attention_norm": (None,), "transformer_layers_per_block": (1,), "conv_in_kernel": (3,),
    "conv_out_kernel": (3,), "mid_block_only_cross_attention": (None, False), "act_fn": ("silu", "swish"),
}  # fmt: skip


def blip(config: dict[str, Any]) -> Shapes:
    """Of ``BlipForConditionalGeneration``, but for the output layer, which is tied or has two names."""
    seen, text = (
        BLIP_VISION | config.get("vision_config", {}),
        BLIP_TEXT | config.get("text_config", {}),
    )
    width, inner, words = text["hidden_size"], text["intermediate_size"], text["vocab_size"]
    see, side = seen["hidden_size"], seen["image_size"] // seen["patch_size"]
    top, bottom = "vision_model.embeddings.", "text_decoder.bert.embeddings."
    found: Shapes = {
        f"{top}class_embedding": (1, 1, see),
        f"{top}position_embedding": (1, side**2 + 1, see),
        **_layer(f"{top}patch_embedding", see, 3, seen["patch_size"], seen["patch_size"]),
        **_norm("vision_model.post_layernorm", see),
        f"{bottom}word_embeddings.weight": (words, width),
        f"{bottom}position_embeddings.weight": (text["max_position_embeddings"], width),
        **_norm(f"{bottom}LayerNorm", width),
        **_layer("text_decoder.cls.predictions.transform.dense", width, width),
        **_norm("text_decoder.cls.predictions.transform.LayerNorm", width),
    }
    for number in range(seen["num_hidden_layers"]):
        place = f"vision_model.encoder.layers.{number}."
        found |= _layer(f"{place}self_attn.qkv", 3 * see, see)
        found |= _layer(f"{place}self_attn.projection", see, see)
        found |= _mlp(place, see, seen["intermediate_size"])
    for number in range(text["num_hidden_layers"]):
        place = f"text_decoder.bert.encoder.layer.{number}."
        for kind, source in (("attention", width), ("crossattention", see)):
            found |= _layer(f"{place}{kind}.self.query", width, width)
            found |= _layer(f"{place}{kind}.self.key", width, source)
            found |= _layer(f"{place}{kind}.self.value", width, source)
            found |= _layer(f"{place}{kind}.output.dense", width, width)
            found |= _norm(f"{place}{kind}.output.LayerNorm", width)
        found |= _layer(f"{place}intermediate.dense", inner, width)
        found |= _layer(f"{place}output.dense", width, inner)
        found |= _norm(f"{place}output.LayerNorm", width)
    return found


def clip(config: dict[str, Any]) -> Shapes:
    """Of ``CLIPModel``; old configurations hold their real numbers under text_config_dict and the like."""
    text, seen = (
        usual | config.get(f"{kind}_config", {}) | (config.get(f"{kind}_config_dict") or {})
        for kind, usual in (("text", CLIP_TEXT), ("vision", CLIP_VISION))
    )
    width, both, patch = seen["hidden_size"], config.get("projection_dim", 512), seen["patch_size"]
    top = "vision_model."
    found: Shapes = {
        "logit_scale": (),
        "text_projection.weight": (both, text["hidden_size"]),
        "visual_projection.weight": (both, width),
        f"{top}embeddings.class_embedding": (width,),
        f"{top}embeddings.patch_embedding.weight": (width, seen["num_channels"], patch, patch),
        f"{top}embeddings.position_embedding.weight": ((seen["image_size"] // patch) ** 2 + 1, width),
        **_norm(f"{top}pre_layrnorm", width),
        **_norm(f"{top}post_layernorm", width),
        **_towers(top, width, seen),
    }  # fmt: skip
    return found | {f"text_model.{name}": shape for name, shape in clip_text(text).items()}


def clip_text(config: dict[str, Any]) -> Shapes:
    """Of ``CLIPTextModel``, whose names some releases begin with "text_model."."""
    text = CLIP_TEXT | config
    width = text["hidden_size"]
    return {
        "embeddings.token_embedding.weight": (text["vocab_size"], width),
        "embeddings.position_embedding.weight": (text["max_position_embeddings"], width),
        **_norm("final_layer_norm", width),
        **_towers("", width, text),
    }


def unet(config: dict[str, Any]) -> Shapes:
    """Of ``UNet2DConditionModel``."""
    own = UNET | config
    channels, time = list(own["block_out_channels"]), 4 * own["block_out_channels"][0]
    found = {
        **_conv("conv_in", channels[0], own["in_channels"]),
        **_conv("conv_out", own["out_channels"], channels[0]),
        **_norm("conv_norm_out", channels[0]),
    }
    if not _plain_unet(own):
        return {
            name: shape for name, shape in found.items() if name.startswith(("conv_in", "conv_out"))
        }
    found |= _layer("time_embedding.linear_1", time, channels[0])
    found |= _layer("time_embedding.linear_2", time, time)
    layers, last = own["layers_per_block"], len(channels) - 1

    def attention(name: str, width: int) -> Shapes:
        return _transformer(
            name, width, own["cross_attention_dim"], own.get("use_linear_projection")
        )

    before = channels[0]
    for i, (width, kind) in enumerate(zip(channels, own["down_block_types"], strict=True)):
        for j in range(layers):
            found |= _resnet(f"down_blocks.{i}.resnets.{j}.", width if j else before, width, time)
            if kind == "CrossAttnDownBlock2D":
                found |= attention(f"down_blocks.{i}.attentions.{j}.", width)
        if i < last:
            found |= _conv(f"down_blocks.{i}.downsamplers.0.conv", width, width)
        before = width
    for j in range(2):
        found |= _resnet(f"mid_block.resnets.{j}.", before, before, time)
    found |= attention("mid_block.attentions.0.", before)
    upwards = channels[::-1]
    for i, (width, kind) in enumerate(zip(upwards, own["up_block_types"], strict=True)):
        skip = upwards[min(i + 1, last)]
        for j in range(layers + 1):
            source = (width if j else before) + (skip if j == layers else width)
            found |= _resnet(f"up_blocks.{i}.resnets.{j}.", source, width, time)
            if kind == "CrossAttnUpBlock2D":
                found |= attention(f"up_blocks.{i}.attentions.{j}.", width)
        if i < last:
            found |= _conv(f"up_blocks.{i}.upsamplers.0.conv", width, width)
        before = width
    return found


def vae(config: dict[str, Any]) -> Shapes:
    """Of ``AutoencoderKL``."""
    own = VAE | config
    channels, latent = list(own["block_out_channels"]), own["latent_channels"]
    found = {
        **_conv("encoder.conv_in", channels[0], own["in_channels"]),
        **_conv("encoder.conv_out", 2 * latent, channels[-1]),
        **_conv("decoder.conv_in", channels[-1], latent),
        **_conv("decoder.conv_out", own["out_channels"], channels[0]),
    }
    down, up = own["down_block_types"], own["up_block_types"]
    usual = {*down} == {"DownEncoderBlock2D"} and {*up} == {"UpDecoderBlock2D"}
    if (
        not usual
        or not len(down) == len(up) == len(channels)
        or own.get("act_fn", "silu") != "silu"
    ):
        return found
    found |= _norm("encoder.conv_norm_out", channels[-1]) | _norm(
        "decoder.conv_norm_out", channels[0]
    )
    if own.get("use_quant_conv", True):
        found |= _layer("quant_conv", 2 * latent, 2 * latent, 1, 1)
    if own.get("use_post_quant_conv", True):
        found |= _layer("post_quant_conv", latent, latent, 1, 1)
    for half, widths, blocks, more, sampler in (
        ("encoder", channels, "down_blocks", 0, "downsamplers"),
        ("decoder", channels[::-1], "up_blocks", 1, "upsamplers"),
    ):
        before = widths[0]
        for i, width in enumerate(widths):
            place = f"{half}.{blocks}.{i}."
            for j in range(own["layers_per_block"] + more):
                found |= _resnet(f"{place}resnets.{j}.", width if j else before, width)
            if i < len(widths) - 1:
                found |= _conv(f"{place}{sampler}.0.conv", width, width)
            before = width
        for j in range(2):
            found |= _resnet(f"{half}.mid_block.resnets.{j}.", channels[-1], channels[-1])
        if own.get("mid_block_add_attention", True):
            place, width = f"{half}.mid_block.attentions.0.", channels[-1]
            found |= _norm(f"{place}group_norm", width)
            for name in ("to_q", "to_k", "to_v", "to_out.0"):
                found |= _layer(f"{place}{name}", width, width)
    return found


def _plain_unet(own: dict[str, Any]) -> bool:
    down, up, count = own["down_block_types"], own["up_block_types"], len(own["block_out_channels"])
    return (
        all(own.get(key, values[0]) in values for key, values in PLAIN.items())
        and {*down} <= {"CrossAttnDownBlock2D", "DownBlock2D"}
        and {*up} <= {"CrossAttnUpBlock2D", "UpBlock2D"}
        and len(down) == len(up) == count
        and own["mid_block_type"] == "UNetMidBlock2DCrossAttn"
        and all(isinstance(own[key], int) for key in ("layers_per_block", "cross_attention_dim"))
    )


def _layer(name: str, *weight: int) -> Shapes:
    """A linear layer or convolution with its bias."""
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def _conv(name: str, out: int, into: int) -> Shapes:
    return _layer(name, out, into, 3, 3)


def _norm(name: str, width: int) -> Shapes:
    return _layer(name, width)


def _mlp(place: str, width: int, inner: int) -> Shapes:
    """What follows attention in a layer of a ViT or of CLIP's text model, and both norms."""
    return {
        **_layer(f"{place}mlp.fc1", inner, width), **_layer(f"{place}mlp.fc2", width, inner),
        **_norm(f"{place}layer_norm1", width), **_norm(f"{place}layer_norm2", width),
    }  # fmt: skip


def _towers(top: str, width: int, own: dict[str, Any]) -> Shapes:
    found: Shapes = {}
    for number in range(own["num_hidden_layers"]):
        place = f"{top}encoder.layers.{number}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= _layer(f"{place}self_attn.{name}", width, width)
        found |= _mlp(place, width, own["intermediate_size"])
    return found


def _resnet(place: str, into: int, out: int, time: int = 0) -> Shapes:
    return {
        **_norm(f"{place}norm1", into), **_conv(f"{place}conv1", out, into),
        **(_layer(f"{place}time_emb_proj", out, time) if time else {}),
        **_norm(f"{place}norm2", out), **_conv(f"{place}conv2", out, out),
        **(_layer(f"{place}conv_shortcut", out, into, 1, 1) if into != out else {}),
    }  # fmt: skip


def _transformer(place: str, width: int, cross: int, linear: Any) -> Shapes:
    """A spatial transformer of one block."""
    sides: Iterable[int] = () if linear else (1, 1)
    block = f"{place}transformer_blocks.0."
    found = {
        **_norm(f"{place}norm", width),
        **_layer(f"{place}proj_in", width, width, *sides),
        **_layer(f"{place}proj_out", width, width, *sides),
        **_layer(f"{block}ff.net.0.proj", 8 * width, width),
        **_layer(f"{block}ff.net.2", width, 4 * width),
    }
    for number in (1, 2, 3):
        found |= _norm(f"{block}norm{number}", width)
    for name, source in (("attn1", width), ("attn2", cross)):
        found[f"{block}{name}.to_q.weight"] = (width, width)
        found[f"{block}{name}.to_k.weight"] = found[f"{block}{name}.to_v.weight"] = (width, source)
        found |= _layer(f"{block}{name}.to_out.0", width, width)
    return found
