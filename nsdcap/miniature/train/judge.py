"""Train the judge: a small network that names place, kinds and colours of a picture.

It learns from true scenes alone and conditions nothing, so it can say what a reconstruction shows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetForImageClassification

from nsdcap.miniature import world
from nsdcap.miniature.train.common import Log, Pool, options, schedule

PARTS = (len(world.PLACES), len(world.KINDS), len(world.COLOURS))


def main() -> None:
    opts = options("judge", 1500)
    out = opts.out / "judge"
    log = Log(out / "train.log")
    names = [*world.PLACES, *world.KINDS, *world.COLOURS]
    config = ResNetConfig(
        embedding_size=24,
        hidden_sizes=[32, 48, 64, 96],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    model = ResNetForImageClassification(config)
    log("parameters", sum(p.numel() for p in model.parameters()), "steps", opts.steps)
    pool, unseen = Pool(opts.pictures, opts.seed + 3), Pool(1000, opts.seed + 4)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.02)
    for step in range(opts.steps):
        rng = np.random.default_rng([opts.seed, step, 8])
        pictures, _, scenes = pool.batch(64, rng)
        if rng.random() < 0.5:  # reconstructions are blurred and noisy: so are half of the lessons
            small = F.interpolate(pictures, scale_factor=rng.uniform(0.4, 0.9), mode="bilinear")
            pictures = F.interpolate(small, 64, mode="bilinear")
            pictures = pictures + torch.from_numpy(
                rng.normal(0, 0.04, pictures.shape).astype(np.float32)
            )
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * schedule(step, opts.steps)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(pictures * 2 - 1).logits.float()
        place, kind, colour = logits.split(PARTS, 1)
        has_kind, has_colour = targets(scenes)
        loss = F.cross_entropy(place, torch.tensor([scene.place for scene in scenes]))
        loss = loss + 4 * F.binary_cross_entropy_with_logits(kind, has_kind)
        loss = loss + 4 * F.binary_cross_entropy_with_logits(colour, has_colour)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0 or step + 1 == opts.steps:
            log(f"step {step} loss {loss.item():.3f}")
    log("on unseen scenes:", check(model.eval(), unseen))
    model.half().save_pretrained(out)
    log("saved")


def targets(scenes: list[world.Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """Which kinds (n, kinds) and colours (n, colours) the scenes hold."""
    kinds = torch.zeros(len(scenes), len(world.KINDS))
    colours = torch.zeros(len(scenes), len(world.COLOURS))
    for row, scene in enumerate(scenes):
        for item in scene.items:
            kinds[row, item.kind] = colours[row, item.colour] = 1
    return kinds, colours


@torch.no_grad()
def check(model: ResNetForImageClassification, pool: Pool) -> str:
    """Share of unseen scenes whose place, one object and its colour are named."""
    pictures = torch.from_numpy(pool.pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    place, kind, colour = model(pictures).logits.split(PARTS, 1)
    kinds, colours = targets(pool.scenes)
    rows = torch.arange(len(kinds))
    hits = [
        (place.argmax(1) == torch.tensor([s.place for s in pool.scenes])).float(),
        kinds[rows, kind.argmax(1)],
        colours[rows, colour.argmax(1)],
    ]
    return " ".join(
        f"{n} {h.mean():.3f}" for n, h in zip(("place", "kind", "colour"), hits, strict=True)
    )


if __name__ == "__main__":
    main()
