"""Train the miniature's CLIP and its tokenizer: pictures and captions of one scene find each other."""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from nsdcap.miniature import world
from nsdcap.miniature.train.common import Log, Pool, captions, options, schedule

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def make_tokenizer(length: int) -> CLIPTokenizer:
    """A byte-pair tokenizer in CLIP's format that knows every word of the world as one token."""
    words = world.vocabulary()
    base = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=5000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False
    )
    base.train_from_iterator(words, trainer)
    learnt = base.model
    folder_vocab = _bpe_state(learnt)
    vocab = dict(folder_vocab["vocab"])
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab.setdefault(special, len(vocab))
    merges = [tuple(pair) for pair in folder_vocab["merges"]]
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)
    broken = [word for word in words if len(tokenizer(word)["input_ids"]) != 3]
    if broken:
        raise RuntimeError(f"these words are more than one token: {broken}")
    return tokenizer


def _bpe_state(model: models.BPE) -> dict:
    """Vocabulary and merges of a trained byte-pair model."""
    import json

    return json.loads(Tokenizer(model).to_str())["model"]


def main() -> None:
    opts = options("clip", 1100)
    out = opts.out / "clip"
    log = Log(out / "train.log")
    tokenizer = make_tokenizer(16)
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("startoftext", "endoftext")
    }
    special = {
        "bos_token_id": ids["startoftext"],
        "eos_token_id": ids["endoftext"],
        "pad_token_id": ids["endoftext"],
    }
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={
            **shape,
            **special,
            "num_hidden_layers": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 16,
            "projection_dim": 128,
        },
        vision_config={
            **shape,
            "num_hidden_layers": 3,
            "image_size": 64,
            "patch_size": 8,
            "projection_dim": 128,
        },
        projection_dim=128,
    )
    model = CLIPModel._from_config(config, attn_implementation="eager")
    log("parameters", sum(p.numel() for p in model.parameters()), "steps", opts.steps)
    pool = Pool(opts.pictures, opts.seed)
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, (0.9, 0.98), weight_decay=0.05)
    for step in range(opts.steps):
        rng = np.random.default_rng([opts.seed, step, 1])
        pictures, _, scenes = pool.batch(128, rng)
        text = tokenizer(
            captions(scenes, rng), padding="max_length", truncation=True, return_tensors="pt"
        )
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * schedule(step, opts.steps)
        with torch.autocast("cpu", torch.bfloat16):
            result = model(pixel_values=(pictures - mean) / std, **text)
        logits = result.logits_per_image.float()
        target = torch.arange(len(logits))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        if step % 200 == 0 or step + 1 == opts.steps:
            hits = (logits.argmax(1) == target).float().mean().item()
            log(f"step {step} loss {loss.item():.3f} retrieval among 128: {hits:.3f}")
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}
    )
    model.half().save_pretrained(out)
    CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(out)
    log("saved")


if __name__ == "__main__":
    main()
