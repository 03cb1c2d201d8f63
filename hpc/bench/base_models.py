"""Stable Diffusion 1.4 and BLIP base with their true architectures and random weights, as folders.

What runs at their size can be tried with them where the weights are not. The tokenizers are small ones.
"""

from __future__ import annotations

from pathlib import Path

import torch

from nsdcap import miniature


def write_diffusion(
    folder: Path,
    unet: tuple[int, ...] = (320, 640, 1280, 1280),
    vae: tuple[int, ...] = (128, 256, 512, 512),
    width: int = 768,
    layers: int = 12,
    groups: int = 32,
    seed: int = 0,
) -> None:
    """Stable Diffusion 1.4 (1.07 billion float32 numbers, 4.3 GB), or one of smaller widths, as at its hub.

    ``unet`` and ``vae`` are channels of their levels, normed in ``groups``; ``width`` and ``layers`` those
    of the text encoder.
    """
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(seed)
    UNet2DConditionModel(
        sample_size=64,
        block_out_channels=unet,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        layers_per_block=2,
        attention_head_dim=8,
        cross_attention_dim=width,
        norm_num_groups=groups,
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        sample_size=512,
        block_out_channels=vae,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        scaling_factor=0.18215,
        norm_num_groups=groups,
    ).save_pretrained(folder / "vae")
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        projection_dim=width,
    )
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    small = miniature.MODELS / "diffusion" / "tokenizer"
    CLIPTokenizer.from_pretrained(small, model_max_length=77).save_pretrained(folder / "tokenizer")


def write_blip(folder: Path, size: int = 224, seed: int = 0) -> None:
    """BLIP base (224 million float32 numbers, 0.9 GB) for pictures of ``size`` pixels a side."""
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessorPil,
    )

    torch.manual_seed(seed)
    config = BlipConfig(
        vision_config={"image_size": size, "initializer_range": 0.02},
        text_config={"num_attention_heads": 12},
    )
    BlipForConditionalGeneration(config).save_pretrained(folder)
    words = [f"word{number}" for number in range(30522)]
    words[0], words[100:104] = "[PAD]", ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words[1000:1003] = ["a", "picture", "of"]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(words) + "\n")
    tokenizer = BertTokenizerFast(str(vocabulary))
    tokenizer.add_special_tokens({"additional_special_tokens": ["[DEC]", "[ENC]"]})
    tokenizer.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": size, "width": size}).save_pretrained(folder)
