"""BLIP's own checkpoints (salesforce/BLIP, .pth), read without running code, as transformers' BLIP.

They hold a captioner as ``visual_encoder`` and ``text_decoder``; those of pre-training also what else was
trained, which captioning does not use. The sizes are read from the tensors; what tensors do not tell is
that of the original: attention heads of 64 and, in the ViT, LayerNorm's eps of 1e-6 (folders at the hub say
1e-5, so their z_v differ a little).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nsdcap import checkpoints
from nsdcap.errors import DataError, first_line

HEAD = 64
_LAYER = (r"visual_encoder\.blocks\.(\d+)\.", r"vision_model.encoder.layers.\1.")
RENAMED = (
    (r"visual_encoder\.cls_token", "vision_model.embeddings.class_embedding"),
    (r"visual_encoder\.pos_embed", "vision_model.embeddings.position_embedding"),
    (r"visual_encoder\.patch_embed\.proj\.(\w+)", r"vision_model.embeddings.patch_embedding.\1"),
    (_LAYER[0] + r"norm([12])\.(\w+)", _LAYER[1] + r"layer_norm\2.\3"),
    (_LAYER[0] + r"attn\.qkv\.(\w+)", _LAYER[1] + r"self_attn.qkv.\2"),
    (_LAYER[0] + r"attn\.proj\.(\w+)", _LAYER[1] + r"self_attn.projection.\2"),
    (_LAYER[0] + r"mlp\.(fc[12])\.(\w+)", _LAYER[1] + r"mlp.\2.\3"),
    (r"visual_encoder\.norm\.(\w+)", r"vision_model.post_layernorm.\1"),
    (r"(text_decoder\..+)", r"\1"),
)
# of pre-training alone: the encoder for retrieval and matching, its heads, momentum copies and queues
UNUSED = re.compile(
    r"(text_encoder|visual_encoder_m|text_encoder_m|vision_proj|text_proj|vision_proj_m|text_proj_m"
    r"|itm_head)\..+|image_queue|text_queue|queue_ptr|temp"
    r"|text_decoder\.bert\.embeddings\.position_ids"  # 0, 1, 2, ...
)
_WORDS = "text_decoder.bert.embeddings.word_embeddings.weight"
_OUTPUT = "text_decoder.cls.predictions.decoder.weight"
_BIAS, _OUTPUT_BIAS = (
    "text_decoder.cls.predictions.bias",
    "text_decoder.cls.predictions.decoder.bias",
)


def read(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint in BLIP's own names; they stay on disk until they are used.

    Raises
    ------
    DataError
        No such file, none that torch reads as tensors and plain values alone, or none of BLIP's.
    """
    content = checkpoints.read(file, f"models.blip = {str(file)!r}", "download it anew")
    tensors = content.get("model") if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and torch.is_tensor(value) for name, value in tensors.items()
    ):
        found = ", ".join(map(str, content))[:100] if isinstance(content, dict) else type(content)
        raise DataError(
            f"models.blip = {str(file)!r}: found {found}, expected tensors under 'model' as in "
            "salesforce/BLIP's checkpoints"
        )
    return tensors


def configuration(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, Any]]:
    """``vision_config`` and ``text_config`` of transformers' BlipConfig, by the tensors' shapes.

    Where a tensor is missing its size is that of BLIP base.
    """

    def size(name: str, axis: int, usual: int) -> int:
        shape = tensors[name].shape if name in tensors else ()
        return shape[axis] if -len(shape) <= axis < len(shape) else usual

    def layers(pattern: str) -> int:
        numbers = [int(found[1][:9]) for name in tensors if (found := re.match(pattern, name))]
        # no more than there are tensors: a damaged name is no reason to build a million layers
        return min(max(numbers) + 1, len(tensors)) if numbers else 12

    seen, width = size("visual_encoder.cls_token", -1, 768), size(_WORDS, 1, 768)
    patch = size("visual_encoder.patch_embed.proj.weight", -1, 16)
    side = round(max(0, size("visual_encoder.pos_embed", 1, 197) - 1) ** 0.5)
    text = "text_decoder.bert."
    return {
        "vision_config": {
            "hidden_size": seen,
            "intermediate_size": size("visual_encoder.blocks.0.mlp.fc1.weight", 0, 4 * seen),
            "num_hidden_layers": layers(r"visual_encoder\.blocks\.(\d+)\."),
            "num_attention_heads": max(1, seen // HEAD),
            "image_size": side * patch,
            "patch_size": patch,
            "layer_norm_eps": 1e-6,
        },
        "text_config": {
            "hidden_size": width,
            "encoder_hidden_size": seen,
            "intermediate_size": size(
                f"{text}encoder.layer.0.intermediate.dense.weight", 0, 4 * width
            ),
            "num_hidden_layers": layers(r"text_decoder\.bert\.encoder\.layer\.(\d+)\."),
            "num_attention_heads": max(1, width // HEAD),
            "max_position_embeddings": size(f"{text}embeddings.position_embeddings.weight", 0, 512),
            "vocab_size": size(_WORDS, 0, 30524),
            "layer_norm_eps": 1e-12,
        },
    }


def check(file: Path) -> None:
    """Raise DataError, as ``load`` does, for a checkpoint whose tensors are not a captioner's."""
    from nsdcap import architectures

    tensors = read(file)
    sizes = configuration(tensors)
    wanted = architectures.blip(sizes)
    words = wanted["text_decoder.bert.embeddings.word_embeddings.weight"]
    wanted |= {_OUTPUT: words, _BIAS: words[:1], _OUTPUT_BIAS: words[:1]}
    _, wrong = _rename(tensors, wanted)
    if wrong:
        raise DataError(
            f"models.blip = {str(file)!r}: no captioner's checkpoint: {'; '.join(wrong)}"
        )


def load(file: Path, words: str) -> tuple[Any, Any]:
    """The captioner of a checkpoint in float32, and its tokenizer from ``words``, a folder or hub id.

    Raises
    ------
    DataError
        As ``read``; tensors that are missing, of another shape or unknown; a tokenizer that is not at
        hand or has another number of tokens.
    """
    from transformers import BlipConfig, BlipForConditionalGeneration

    tensors = read(file)
    sizes = configuration(tensors)
    widths = [part["hidden_size"] for part in sizes.values()]
    if any(width % HEAD for width in widths):
        raise DataError(
            f"models.blip = {str(file)!r}: found widths {widths}, expected multiples of {HEAD}"
        )
    with torch.device("meta"):
        wanted = BlipForConditionalGeneration(BlipConfig(**sizes)).state_dict()
    renamed, wrong = _rename(tensors, {name: tensor.shape for name, tensor in wanted.items()})
    if wrong:
        raise DataError(
            f"models.blip = {str(file)!r}: no captioner's checkpoint: {'; '.join(wrong)}"
        )
    tokenizer = _tokenizer(words, sizes["text_config"]["vocab_size"])
    names = {"bos_token_id": "[DEC]", "eos_token_id": "[SEP]", "sep_token_id": "[SEP]"}
    ids = {key: tokenizer.convert_tokens_to_ids(name) for key, name in names.items()}
    sizes["text_config"] |= {**ids, "pad_token_id": tokenizer.pad_token_id}
    model = BlipForConditionalGeneration.from_pretrained(
        None, config=BlipConfig(**sizes), state_dict=renamed, dtype=torch.float32
    )
    return model, tokenizer


def _rename(
    tensors: dict[str, torch.Tensor], wanted: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors by transformers' names, and in words all that does not fit them."""
    tensors = dict(tensors)
    # the bias that is used is the output layer's own: the other was left at the size it had before two
    # tokens were added
    bias = tensors.pop(_BIAS, None)
    if bias is not None:
        tensors.setdefault(_OUTPUT_BIAS, bias)
    renamed: dict[str, torch.Tensor] = {}
    surplus, shapes = [], []
    for name, tensor in tensors.items():
        if UNUSED.fullmatch(name):
            continue
        new = next((re.sub(old, to, name) for old, to in RENAMED if re.fullmatch(old, name)), "")
        if new not in wanted:
            surplus.append(name)
        elif tensor.shape != wanted[new]:
            shapes.append(f"{name} {tuple(tensor.shape)} and not {tuple(wanted[new])}")
        renamed[new] = tensor
    if _OUTPUT_BIAS in renamed:
        renamed[_BIAS] = renamed[_OUTPUT_BIAS]
    missing = sorted(wanted.keys() - renamed.keys())
    kinds = {"missing": missing, "unknown": surplus, "of another shape": shapes}
    wrong = [
        f"{len(found)} tensors {kind}: {_some(found)}" for kind, found in kinds.items() if found
    ]
    if not wrong and not torch.equal(renamed[_OUTPUT], renamed[_WORDS]):
        wrong.append(f"{_OUTPUT} is not {_WORDS}, as it is in BLIP")
    names = {name.partition(".")[0] for name in tensors}
    if "text_encoder" in names and "itm_head" not in names:
        wrong.append("a text_encoder and no itm_head, so a model that answers questions")
    return renamed, wrong


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _tokenizer(words: str, tokens: int) -> Any:
    """BERT's tokenizer with the two tokens that BLIP adds."""
    from transformers import BertTokenizer

    try:
        tokenizer = BertTokenizer.from_pretrained(words)
        if tokenizer.vocab_size <= len(tokenizer.all_special_tokens):  # made up where none is found
            raise OSError("no vocabulary, in a folder or by hub id")
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"models.blip_tokenizer = {words!r}: no BERT tokenizer could be read there ({first_line(error)}); "
            "a checkpoint file holds no vocabulary, so give a folder with bert-base-uncased's vocab.txt"
        ) from error
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_tokens(["[ENC]"], special_tokens=True)
    if len(tokenizer) != tokens:
        raise DataError(
            f"models.blip_tokenizer = {words!r}: found {len(tokenizer)} tokens with [DEC] and [ENC], "
            f"models.blip has {tokens}; expected the tokenizer it was trained with, bert-base-uncased"
        )
    return tokenizer
