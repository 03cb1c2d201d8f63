"""Train the miniature's autoencoder (a quarter of the side, four channels), encoder then decoder."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL

from nsdcap.miniature.train.common import Log, Pool, options


def crops(pictures: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Mostly small windows (cheap, and the code is local), some reduced pictures, some whole."""
    draw = rng.random()
    if draw < 0.63:
        y, x = rng.integers(0, 33, 2)
        return pictures[:, :, y : y + 32, x : x + 32]
    if draw < 0.75:
        return torch.nn.functional.interpolate(
            pictures, (40, 40), mode="bicubic", antialias=True
        ).clamp(-1, 1)
    return pictures


def main() -> None:
    opts = options("autoencoder", 5200)
    out = opts.out / "diffusion" / "vae"
    log = Log(out / "train.log")
    model = AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        latent_channels=4,
        sample_size=64,
    )
    with torch.no_grad():  # a wide posterior at the start would drown the code in noise
        model.quant_conv.weight[4:] = 0
        model.quant_conv.bias[4:] = -6
    log("parameters", sum(p.numel() for p in model.parameters()), "steps", opts.steps)
    pool = Pool(opts.pictures, opts.seed)
    frozen_at = opts.steps // 2
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, (0.9, 0.99), weight_decay=1e-4)
    for step in range(opts.steps):
        if step == frozen_at:
            log("encoder frozen")
            finish_encoder(model, pool, opts.seed, log)
            model.half().save_pretrained(out)
            model.float()
            model.encoder.requires_grad_(False)
            model.quant_conv.requires_grad_(False)
            optimizer = torch.optim.AdamW(
                [p for p in model.parameters() if p.requires_grad], 1.5e-3, (0.9, 0.99)
            )
        rng = np.random.default_rng([opts.seed, step, 2])
        pictures = crops(pool.batch(12, rng)[0] * 2 - 1, rng)
        half = step % frozen_at / frozen_at
        for group in optimizer.param_groups:
            peak = 2e-3 if step < frozen_at else 1.5e-3
            group["lr"] = (
                peak
                * min(1, (step % frozen_at + 1) / 100)
                * (0.02 + 0.98 * np.cos(half * np.pi / 2) ** 2)
            )
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(pictures).latent_dist
            code = posterior.sample() if step < frozen_at else posterior.mean
            again = model.decode(code).sample.float()
        error = again - pictures
        loss = error.abs().mean() + 0.5 * error.square().mean() + 1e-6 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 200 == 0 or step + 1 == opts.steps:
            db = -10 * np.log10(error.square().mean().item() / 4)
            log(f"step {step} loss {loss.item():.4f} {db:.2f} dB at {pictures.shape[-1]} px")
    model.half().save_pretrained(out)
    log("saved")


@torch.no_grad()
def finish_encoder(model: AutoencoderKL, pool: Pool, seed: int, log: Log) -> None:
    """Set the scaling factor to one over the standard deviation of the codes."""
    rng = np.random.default_rng([seed, 3])
    codes = model.encode(pool.batch(256, rng)[0] * 2 - 1).latent_dist.mean
    model.register_to_config(scaling_factor=float(1 / codes.std()))
    log(f"scaling factor {model.config.scaling_factor:.4f}")


if __name__ == "__main__":
    main()
