"""Stable Diffusion 1.4's true architecture, with random weights. By hand: 4 minutes, 9 GB of memory, 5 of disk.

python -m pytest -m byhand -s tests/test_true_size.py
"""

import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nsdcap import config
from nsdcap.diffusion import Diffusion

sys.path.insert(0, str(Path(__file__).parents[1] / "hpc/bench"))
import common
from base_models import write_diffusion


@pytest.mark.byhand
def test_stable_diffusion_paints_a_picture_of_512_pixels(tmp_path):
    start = time.perf_counter()
    write_diffusion(tmp_path)
    print(f"written: {time.perf_counter() - start:.0f} s")
    (seconds, shapes), peak = common.alone(paint, str(tmp_path))
    shutil.rmtree(tmp_path)  # pytest would keep its 4 GB
    print(f"{seconds}, peak {peak / 1e3:.1f} GB")
    assert shapes == {
        "parameters": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
        "z": (1, 4, 40, 40),
        "c": (1, 77, 768),
        "latents": (1, 4, 64, 64),
        "picture": (1, 512, 512, 3),
    }
    assert peak < 10e3


def paint(folder: str):
    """Seconds and shapes of each step, in a process of its own."""
    seconds, shapes, start = {}, {}, time.perf_counter()

    def told(name: str, found=None):
        nonlocal start
        seconds[name] = round(time.perf_counter() - start, 1)
        if found is not None:
            assert np.isfinite(found).all()
            assert found.std() > 0
            shapes[name] = found.shape
        start = time.perf_counter()
        return found

    models = config.Models(diffusion=folder, device="cpu", batch=1)
    diffusion = Diffusion(models, config.Reconstruct(steps=2, strength=1.0, batch=1))
    told("load")
    parts = {name: getattr(diffusion, name) for name in ("unet", "vae", "text_encoder")}
    shapes["parameters"] = {
        name: sum(each.numel() for each in part.parameters()) for name, part in parts.items()
    }
    shown = np.random.default_rng(0).integers(0, 256, (1, 425, 425, 3)).astype(np.uint8)
    z = told("z", diffusion.encode(shown, 320))
    c = told("c", diffusion.text_latents(["a red ball in a field"]))
    coarse = told("coarse", diffusion.coarse(z))
    del shapes["coarse"]
    noise = diffusion.noise(0, 1, np.array([7]), 0)
    latents = told("latents", diffusion.latents(coarse, c, noise))
    told("picture", diffusion.decode(latents))
    return seconds, shapes
