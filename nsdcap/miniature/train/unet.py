"""Train the miniature's denoiser on the autoencoder's codes and CLIP's text latents; assemble the pipeline.

Two things make shapes come sooner than with the plain loss: errors where an object stands count
more, and noise levels are drawn as often as min-SNR-5 would weigh them (the same expectation, fewer
pictures spent where the weight is small).
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionImg2ImgPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextModel, CLIPTokenizer

from nsdcap.miniature.train.common import Log, Pool, captions, forget_paths, options, schedule

BATCH, RATE, OBJECT_WEIGHT = 48, 1.2e-3, 3.0


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.4's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def main() -> None:
    opts = options("unet", 4600)
    out = opts.out / "diffusion"
    log = Log(out / "unet" / "train.log")
    vae = AutoencoderKL.from_pretrained(out / "vae").float().eval()
    text_encoder = CLIPTextModel.from_pretrained(opts.out / "clip").float().eval()
    tokenizer = CLIPTokenizer.from_pretrained(opts.out / "clip")
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 112),
        # attention at the coarser level alone: at the finer one it costs more than all the rest
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    unet.set_attn_processor(AttnProcessor())
    average = copy.deepcopy(unet).eval().requires_grad_(False)
    log("parameters", sum(p.numel() for p in unet.parameters()), "steps", opts.steps)
    pool = Pool(opts.pictures, opts.seed + 1)
    codes = encode_all(vae, pool.pictures)  # (n, 4, 16, 16)
    mirrored_codes = encode_all(vae, pool.pictures[:, :, ::-1])
    masks = torch.from_numpy(pool.owners > 0).float()
    masks = torch.nn.functional.avg_pool2d(masks[:, None], 4)  # (n, 1, 16, 16)
    log("codes", tuple(codes.shape), f"sd {codes.std():.3f}")
    scheduler = make_scheduler()
    alphas = scheduler.alphas_cumprod
    snr = alphas / (1 - alphas)
    chance = (snr.clamp(max=5) / snr + 0.05).numpy()
    chance = chance / chance.sum()
    optimizer = torch.optim.AdamW(unet.parameters(), RATE, (0.9, 0.99), weight_decay=0.01)
    saved = out / "unet" / "resume.pt"
    first = 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        unet.load_state_dict(state["unet"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        log("resumed at step", first)
    running = 0.0
    for step in range(first, opts.steps):
        rng = np.random.default_rng([opts.seed, step, 4])
        rows = rng.integers(0, len(codes), BATCH)
        flip = torch.from_numpy(rng.random(BATCH) < 0.5)[:, None, None, None]
        clean = torch.where(flip, mirrored_codes[rows], codes[rows])
        mask = torch.where(flip, masks[rows].flip(-1), masks[rows])
        scenes = [pool.scene(row, bool(f)) for row, f in zip(rows, flip.flatten(), strict=True)]
        texts = [t if rng.random() > 0.1 else "" for t in captions(scenes, rng)]
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        t = torch.from_numpy(rng.choice(len(chance), BATCH, p=chance))
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
        for group in optimizer.param_groups:
            group["lr"] = RATE * schedule(step, opts.steps)
        with torch.no_grad():
            c = text_encoder(tokens["input_ids"]).last_hidden_state
        with torch.autocast("cpu", torch.bfloat16):
            guess = unet(scheduler.add_noise(clean, noise, t), t, c).sample
        weight = 1 + OBJECT_WEIGHT * mask
        loss = (weight * (guess.float() - noise).square()).mean() / weight.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        keep = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            for a, p in zip(average.parameters(), unet.parameters(), strict=True):
                a.lerp_(p, 1 - keep)
        running = loss.item() if step == first else 0.99 * running + 0.01 * loss.item()
        if step % 100 == 0 or step + 1 == opts.steps:
            log(f"step {step} pictures {(step + 1) * BATCH} running loss {running:.4f}")
        if step % 1000 == 999:
            state = {"unet": unet.state_dict(), "average": average.state_dict()}
            torch.save({**state, "optimizer": optimizer.state_dict(), "step": step + 1}, saved)
            save(average, vae, text_encoder, tokenizer, out)
    save(average, vae, text_encoder, tokenizer, out)
    saved.unlink(missing_ok=True)
    log("saved")


@torch.no_grad()
def encode_all(vae: AutoencoderKL, pictures: np.ndarray) -> torch.Tensor:
    """Scaled codes (n, 4, 16, 16) of pictures (n, 64, 64, 3) uint8."""
    parts = []
    for start in range(0, len(pictures), 256):
        chw = torch.from_numpy(pictures[start : start + 256].copy()).permute(0, 3, 1, 2)
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(vae.encode(chw.float() / 127.5 - 1).latent_dist.mean.float())
    return torch.cat(parts) * vae.config.scaling_factor


def save(average, vae, text_encoder, tokenizer, out) -> None:
    """Write the whole pipeline in Stable Diffusion's layout, fp16."""
    pipeline = StableDiffusionImg2ImgPipeline(
        vae=copy.deepcopy(vae).half(),
        text_encoder=copy.deepcopy(text_encoder).half(),
        tokenizer=tokenizer,
        unet=copy.deepcopy(average).half(),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out)
    forget_paths(out)


if __name__ == "__main__":
    main()
