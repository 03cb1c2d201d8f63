"""Random BLIPs, and one saved as BLIP's own code saves it, by a rename table of the tests' own."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BlipConfig, BlipForConditionalGeneration

WORDS = ("a", "picture", "of", *(f"w{number}" for number in range(52)))
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_vocabulary(folder: Path, tokens: int = len(SPECIAL) + len(WORDS)) -> Path:
    """A folder with vocab.txt alone, of BERT's five special tokens and made-up words."""
    folder.mkdir(parents=True, exist_ok=True)
    more = (f"x{number}" for number in range(tokens - len(SPECIAL) - len(WORDS)))
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS, *more]) + "\n")
    return folder


def random_blip(
    width: int = 128,
    layers: int = 2,
    patch: int = 8,
    size: int = 32,
    tokens: int = 62,
    seed: int = 0,
) -> BlipForConditionalGeneration:
    """BLIP with random weights of spread .02, no bias or gain at its start; the last two tokens are
    [DEC] and [ENC]."""
    torch.manual_seed(seed)
    shape = {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": width // 64, "initializer_range": 0.02,
    }  # fmt: skip
    config = BlipConfig(
        text_config={
            **shape, "vocab_size": tokens, "bos_token_id": tokens - 2, "eos_token_id": 3,
            "sep_token_id": 3, "pad_token_id": 0, "max_position_embeddings": 512 if tokens > 62 else 40,
        },
        vision_config={**shape, "image_size": size, "patch_size": patch, "layer_norm_eps": 1e-6},
    )  # fmt: skip
    model = BlipForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, values in model.named_parameters():
            if values.ndim == 1:  # biases and LayerNorm's gains
                values += 0.1 * torch.randn_like(values)
            if "position_embedding" in name or "crossattention" in name or "qkv" in name:
                values *= 4  # so that captions follow the picture
    return model.requires_grad_(False)


def originals_names(model: BlipForConditionalGeneration) -> dict[str, torch.Tensor]:
    """The model's tensors as ``visual_encoder`` (timm's ViT) and ``text_decoder`` of salesforce/BLIP."""
    found = {}
    for name, values in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "text_decoder":
            found[name] = values.clone()
            continue
        if parts[1] == "embeddings":
            new = {
                "class_embedding": ["cls_token"],
                "position_embedding": ["pos_embed"],
                "patch_embedding": ["patch_embed", "proj"],
            }[parts[2]]
        elif parts[1] == "post_layernorm":
            new = ["norm"]
        else:
            new = ["blocks", parts[3]]
            new += {
                "self_attn": ["attn", "proj" if parts[-2] == "projection" else "qkv"],
                "layer_norm1": ["norm1"],
                "layer_norm2": ["norm2"],
                "mlp": ["mlp", parts[-2]],
            }[parts[4]]
        last = [parts[-1]] if parts[-1] in ("weight", "bias") else []
        found[".".join(["visual_encoder", *new, *last])] = values.clone()
    return found


def pretraining(model: BlipForConditionalGeneration) -> dict[str, torch.Tensor]:
    """All that a pre-training checkpoint holds beside the captioner, with numbers of its own."""
    captioner = originals_names(model)
    found = dict(captioner)
    for name, values in captioner.items():
        if name.startswith("visual_encoder."):
            found[name.replace("visual_encoder", "visual_encoder_m")] = torch.randn_like(values)
        elif name.startswith("text_decoder.bert."):
            for part in ("text_encoder", "text_encoder_m"):
                found[name.replace("text_decoder.bert", part)] = torch.randn_like(values)
    width, positions = captioner["visual_encoder.cls_token"].shape[-1], torch.arange(40)[None]
    for name in ("vision_proj", "text_proj", "vision_proj_m", "text_proj_m", "itm_head"):
        found[f"{name}.weight"], found[f"{name}.bias"] = torch.randn(9, width), torch.randn(9)
    for name in ("text_decoder.bert", "text_encoder", "text_encoder_m"):
        found[f"{name}.embeddings.position_ids"] = positions
    found |= {"image_queue": torch.randn(9, 5), "text_queue": torch.randn(9, 5)}
    found |= {"queue_ptr": torch.zeros(1, dtype=torch.long), "temp": torch.tensor(0.07)}
    # what a resized output layer leaves behind: the bias of before, by its other name
    found["text_decoder.cls.predictions.bias"] = torch.randn(
        len(captioner["text_decoder.cls.predictions.bias"]) - 2
    )
    return found


def interpolated(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Positions (1, 1 + n, width) for side x side patches, as salesforce/BLIP's vit.py describes."""
    first, rest = positions[:, :1], positions[:, 1:]
    old = int(rest.shape[1] ** 0.5)
    grid = rest.reshape(-1, old, old, rest.shape[-1]).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(
        grid, size=(side, side), mode="bicubic", align_corners=False
    )
    return torch.cat([first, grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)
