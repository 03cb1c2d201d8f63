"""Train the miniature's BLIP in three phases: look (patch by patch), write, both together.

The first phase is the decisive one: every patch is asked which object and colour it holds. Without
it the captions stay vague however long the training runs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
)

from nsdcap.miniature import world
from nsdcap.miniature.train.common import Log, Pool, captions, options, schedule

PROMPT = "a picture of"
WIDTH, BATCH = 128, 64
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def make_tokenizer() -> BertTokenizer:
    """A WordPiece tokenizer in BERT's format, one token a word, with BLIP's two extra tokens."""
    vocab = {word: number for number, word in enumerate((*SPECIAL, *world.vocabulary()))}
    tokenizer = BertTokenizer(vocab=vocab, model_max_length=32)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer


class Heads(nn.Module):
    """What the ViT is asked in phase A: per patch object and colour; on CLS the scene."""

    def __init__(self) -> None:
        super().__init__()
        kinds, colours = len(world.KINDS), len(world.COLOURS)
        self.patch_kind = nn.Linear(WIDTH, kinds + 1)
        self.patch_colour = nn.Linear(WIDTH, colours + 1)
        self.place = nn.Linear(WIDTH, len(world.PLACES))
        self.kinds = nn.Linear(WIDTH, kinds)
        self.colours = nn.Linear(WIDTH, colours)

    def forward(self, z_v: torch.Tensor, owners: np.ndarray, scenes: list) -> torch.Tensor:
        """Loss for tokens z_v (n, 1 + 64, width) of scenes whose objects stand at owners."""
        kind, colour = patch_labels(owners, scenes)
        patches, first = z_v[:, 1:].flatten(0, 1).float(), z_v[:, 0].float()
        quiet = torch.ones(len(world.KINDS) + 1)
        quiet[0] = 0.15
        loss = F.cross_entropy(self.patch_kind(patches), kind.flatten(), quiet)
        quiet = torch.ones(len(world.COLOURS) + 1)
        quiet[0] = 0.15
        loss = loss + F.cross_entropy(self.patch_colour(patches), colour.flatten(), quiet)
        place = torch.tensor([scene.place for scene in scenes])
        kinds = torch.zeros(len(scenes), len(world.KINDS))
        colours = torch.zeros(len(scenes), len(world.COLOURS))
        for row, scene in enumerate(scenes):
            for item in scene.items:
                kinds[row, item.kind] = colours[row, item.colour] = 1
        loss = loss + 0.5 * F.cross_entropy(self.place(first), place)
        loss = loss + F.binary_cross_entropy_with_logits(self.kinds(first), kinds)
        return loss + F.binary_cross_entropy_with_logits(self.colours(first), colours)


def patch_labels(owners: np.ndarray, scenes: list) -> tuple[torch.Tensor, torch.Tensor]:
    """Per patch (n, 64) the object and colour that fill most of it, 0 where mostly background."""
    n = len(owners)
    tiles = owners.reshape(n, 8, 8, 8, 8).transpose(0, 1, 3, 2, 4).reshape(n, 64, 64)
    share = np.stack([(tiles == k).mean(-1) for k in (0, 1, 2)], -1)  # (n, 64, 3)
    share[..., 0] *= 0.6  # a patch that is two fifths object is an object's
    winner = share.argmax(-1)
    of_item = np.zeros((2, n, 3), dtype=np.int64)
    for row, scene in enumerate(scenes):
        for number, item in enumerate(scene.items):
            of_item[:, row, number + 1] = item.kind + 1, item.colour + 1
    rows = np.arange(n)[:, None]
    return torch.from_numpy(of_item[0][rows, winner]), torch.from_numpy(of_item[1][rows, winner])


def make_model(tokenizer: BertTokenizer) -> BlipForConditionalGeneration:
    """An untrained BLIP: ViT of 4 layers on patches of 8, text decoder of 6 layers, width 128."""
    ids = {
        "bos_token_id": tokenizer.convert_tokens_to_ids("[DEC]"),
        "eos_token_id": tokenizer.convert_tokens_to_ids("[SEP]"),
        "sep_token_id": tokenizer.convert_tokens_to_ids("[SEP]"),
        "pad_token_id": tokenizer.convert_tokens_to_ids("[PAD]"),
    }
    shape = {"hidden_size": WIDTH, "intermediate_size": 256, "num_attention_heads": 4}
    config = BlipConfig(
        text_config={
            **shape,
            **ids,
            "num_hidden_layers": 6,
            "encoder_hidden_size": WIDTH,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 32,
            "projection_dim": WIDTH,
        },
        vision_config={
            **shape,
            "num_hidden_layers": 4,
            "image_size": world.SIZE,
            "patch_size": 8,
            "projection_dim": WIDTH,
            "initializer_range": 0.02,  # the class's own default, 1e-10, cannot be trained from
        },
        projection_dim=WIDTH,
        image_text_hidden_size=WIDTH,
    )
    return BlipForConditionalGeneration._from_config(config, attn_implementation="eager")


def caption_loss(model, tokenizer, z_v: torch.Tensor, texts: list[str]) -> torch.Tensor:
    """Cross-entropy of the words after the prompt."""
    bos, sep, pad = (
        tokenizer.convert_tokens_to_ids(token) for token in ("[DEC]", "[SEP]", "[PAD]")
    )
    prompt = [bos, *tokenizer(PROMPT, add_special_tokens=False)["input_ids"]]
    rows = [
        [*prompt, *tokenizer(text, add_special_tokens=False)["input_ids"], sep] for text in texts
    ]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    labels = ids.masked_fill(ids == pad, -100)
    labels[:, : len(prompt)] = -100
    logits = model.text_decoder(
        input_ids=ids,
        attention_mask=(ids != pad).long(),
        encoder_hidden_states=z_v,
        encoder_attention_mask=torch.ones(z_v.shape[:2], dtype=torch.long),
    ).logits
    return F.cross_entropy(logits[:, :-1].float().transpose(1, 2), labels[:, 1:])


def main() -> None:
    opts = options("blip", 3400)
    out = opts.out / "blip"
    log = Log(out / "train.log")
    tokenizer = make_tokenizer()
    model, heads = make_model(tokenizer), Heads()
    log("parameters", sum(p.numel() for p in model.parameters()), "steps", opts.steps)
    pool = Pool(opts.pictures, opts.seed + 2)
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    look, write = int(0.58 * opts.steps), int(0.76 * opts.steps)
    vision = [*model.vision_model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": vision}, {"params": list(model.text_decoder.parameters())}],
        1e-3,
        (0.9, 0.98),
        weight_decay=0.05,
    )
    for step in range(opts.steps):
        rng = np.random.default_rng([opts.seed, step, 6])
        pictures, owners, scenes = pool.batch(BATCH, rng)
        looking, writing = step < look or step >= write, step >= look
        if step < look:
            rates = (1e-3 * schedule(step, look, decay=0.6), 0.0)
        elif step < write:
            rates = (0.0, 1e-3 * min(1, (step - look + 1) / 100))
        else:
            rate = 1e-3 * schedule(step - write, opts.steps - write, warm=50, decay=0.8)
            rates = (0.4 * rate, rate)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(looking):
            z_v = model.vision_model((pictures - mean) / std).last_hidden_state
        loss = torch.zeros(())
        if looking:
            loss = loss + (1.0 if step < look else 0.5) * heads(z_v, owners, scenes)
        if writing:
            with torch.autocast("cpu", torch.bfloat16):
                words = caption_loss(model, tokenizer, z_v, captions(scenes, rng))
            loss = loss + words
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*vision, *model.text_decoder.parameters()], 1.0)
        optimizer.step()
        if step % 100 == 0 or step + 1 == opts.steps:
            said = f" words {words.item():.3f}" if writing else ""
            log(f"step {step} loss {loss.item():.3f}{said}")
    image_processor = BlipImageProcessor(size={"height": world.SIZE, "width": world.SIZE})
    model.half().save_pretrained(out)
    BlipProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(out)
    log("saved")


if __name__ == "__main__":
    main()
