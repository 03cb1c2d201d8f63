"""Pictures a second through BLIP and Stable Diffusion: ours in batches, beside one picture at a time.

    python hpc/bench/inference.py [--quick] [--device cuda --dtype float16] [--base] [--json] [--threads 1]

z_v, captions from z_v, z_B from both, and reconstructions, each in batches and with one picture a call, in
turn, by the same functions with the same weights, dtype and steps; medians of the rounds, after one that is
not timed. The pictures are scenes of the miniature at 425 pixels, as NSD has them and stages read them.

A process a picture, as the neighbouring method's and brain-diffuser's scripts are run for one image number:
one process that loads BLIP and captions one picture, and one that loads Stable Diffusion and paints one; its
start and its loading count. One of each is timed, and rates are of that one.

Operations are counted by torch (two for a multiplication and an addition: matrix products, convolutions,
attention) over one batch, the peak rate is that of a matrix product in the same dtype and run; share_of_peak
holds the batched rate against it. z and the last picture are computed in float32 whatever the dtype.
Peak memory: on a GPU what torch had allocated, else what was resident, weights and libraries included.

Default models: the miniature's, at its sizes. --blip and --diffusion name folders or hub ids, --base makes BLIP
base and Stable Diffusion 1.4 with random weights in a temporary folder (5 GB); both run at the paper's sizes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import base_models
import common
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from nsdcap import config, miniature
from nsdcap.blip import Blip
from nsdcap.diffusion import Diffusion, resize
from nsdcap.miniature import world

WHAT = ("z_v", "captions", "z_B", "reconstructions")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=128, help="for all but reconstructions")
    parser.add_argument("--reconstructions", type=int, default=16)
    parser.add_argument("--batch", type=int, help="default: models.batch and reconstruct.batch")
    parser.add_argument("--steps", type=int, help="of denoising; default: the miniature's or 50")
    parser.add_argument("--size", type=int, help="pixels; default: the miniature's or 512")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--what", nargs="+", choices=WHAT, default=WHAT)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=config.CHOICES["models.dtype"])
    parser.add_argument("--blip")
    parser.add_argument("--diffusion")
    parser.add_argument("--base", action="store_true", help="true sizes, random weights")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="few pictures, two steps, one round")
    parser.add_argument("--json", action="store_true", help="one object on standard output")
    parser.add_argument(
        "--process", choices=("captions", "reconstructions"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.quick:
        options.pictures, options.reconstructions, options.rounds = 8, 2, 1
        options.steps = options.steps or 3
    torch.set_num_threads(options.threads)
    if options.process:
        one_picture(options)
        return
    if not options.base:
        report(compare(options), options)
        return
    with tempfile.TemporaryDirectory() as folder:
        options.blip, options.diffusion = f"{folder}/blip", f"{folder}/diffusion"
        if set(options.what) != {"reconstructions"}:
            base_models.write_blip(Path(options.blip))
        if "reconstructions" in options.what:
            base_models.write_diffusion(Path(options.diffusion))
        report(compare(options), options)


def report(found: dict[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(found))
        return
    common.tell({name: value for name, value in found.items() if name not in WHAT})
    for what in options.what:
        print(f"\n{what}")
        common.tell(found[what])


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Of each: rates of both ways, their ratio, peak memory, operations, and how far results differ."""
    steps = prepared(options)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if options.device != "cpu" else "cpu",
        "dtype": options.dtype,
        "threads": options.threads,
        "peak_gflops": matrix_peak(options),
    }
    for what in options.what:
        step, total = steps[what]
        found[what] = side_by_side(step, total, found["peak_gflops"], options)
    for what in ("captions", "reconstructions"):
        if what in options.what:
            seconds = process_seconds(what, options)
            found[what]["process_a_picture_s"] = seconds
            found[what]["ratio_process"] = seconds * found[what]["batched_per_s"]
    return found


def prepared(options: argparse.Namespace) -> dict[str, tuple[Callable, int]]:
    """Of each what makes the results of some rows, and the number of rows."""
    models, settings = configured(options)
    steps: dict[str, tuple[Callable, int]] = {}
    shown = scenes(options.pictures)
    if set(options.what) != {"reconstructions"}:
        blip = Blip(models, config.Caption())
        z_v = blip.features(shown)
        written = blip.write(z_v)

        def states(rows: slice) -> np.ndarray:
            return blip.text_states(z_v[rows], written[rows])

        steps["z_v"] = lambda rows: blip.features(shown[rows]), options.pictures
        steps["captions"] = lambda rows: blip.captions(z_v[rows]), options.pictures
        steps["z_B"] = states, options.pictures
    if "reconstructions" in options.what:
        diffusion, inputs = painting(models, settings, options.reconstructions)
        steps["reconstructions"] = (
            lambda rows: diffusion.reconstruct(*(each[rows] for each in inputs)),
            options.reconstructions,
        )
    return steps


def configured(options: argparse.Namespace) -> tuple[config.Models, config.Reconstruct]:
    """The miniature's sizes for its models, the paper's for others."""
    small, paper = config.load(miniature.SETTINGS), config.Config()
    asked = {"steps": options.steps, "size": options.size, "batch": options.batch}
    settings = dataclasses.replace(
        (paper if options.diffusion else small).reconstruct,
        **{name: value for name, value in asked.items() if value},
    )
    base = (paper if options.blip else small).models
    models = dataclasses.replace(
        base,
        blip=options.blip or str(miniature.MODELS / "blip"),
        diffusion=options.diffusion or str(miniature.MODELS / "diffusion"),
        device=options.device,
        dtype=options.dtype,
        batch=options.batch or base.batch,
    )
    return models, settings


def scenes(count: int) -> np.ndarray:
    rng, textures = np.random.default_rng(0), world.Textures(0)
    small = [world.render(world.draw_scene(rng), textures, rng)[0] for _ in range(count)]
    nearest = np.arange(425) * world.SIZE // 425
    return np.stack([picture[nearest][:, nearest] for picture in small])


def painting(models: config.Models, settings: config.Reconstruct, count: int) -> tuple[Any, tuple]:
    """Stable Diffusion with the coarse pictures, text latents and noise of ``count`` pictures."""
    diffusion = Diffusion(models, settings)
    coarse = resize(scenes(count), settings.size)
    c = diffusion.text_latents(["a red ball in a field"] * count)
    return diffusion, (coarse, c, diffusion.noise(0, 1, np.arange(count), 0))


def side_by_side(
    step: Callable, total: int, peak: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Both ways in turn."""
    ways = {
        "batched": lambda: step(slice(0, total)),
        "one_by_one": lambda: [one for row in range(total) for one in step(slice(row, row + 1))],
    }
    found: dict[str, Any] = {"pictures": total}
    results, times = {}, {name: [] for name in ways}  # type: ignore[var-annotated]
    for number in range(options.rounds + 1):
        for name, way in ways.items():
            reset_memory(options.device)
            seconds, results[name] = common.timed(way)
            if number:
                times[name].append(seconds)
                found[f"{name}_peak_mb"] = memory_mb(options.device)
    for name in ways:
        found[f"{name}_per_s"] = total / statistics.median(times[name])
    found["ratio"] = found["batched_per_s"] / found["one_by_one_per_s"]
    with FlopCounterMode(display=False) as counter:
        step(slice(0, total))
    found["gflop_a_picture"] = counter.get_total_flops() / total / 1e9
    for name in ways:
        found[f"{name}_share_of_peak"] = found["gflop_a_picture"] * found[f"{name}_per_s"] / peak
    found["difference"] = difference(results["batched"], results["one_by_one"])
    return found


def difference(ours: Any, theirs: Any) -> float:
    """Largest difference of numbers, or how many captions are not the same."""
    if isinstance(ours[0], str):
        return float(sum(a != b for a, b in zip(ours, theirs, strict=True)))
    return float(np.abs(np.stack(ours).astype(float) - np.stack(theirs).astype(float)).max())


def matrix_peak(options: argparse.Namespace) -> float:
    """GFLOP/s of a square matrix product in the dtype, the best of eight."""
    size = 1024 if options.device == "cpu" else 8192
    a = torch.randn(size, size, device=options.device).to(getattr(torch, options.dtype))

    def product() -> None:
        a @ a
        if a.is_cuda:
            torch.cuda.synchronize()

    return 2 * size**3 / min(common.timed(product)[0] for _ in range(8)) / 1e9


def reset_memory(device: str) -> None:
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    elif common.STATUS.is_file():
        Path("/proc/self/clear_refs").write_text("5")  # the resident peak counts from now


def memory_mb(device: str) -> float:
    return torch.cuda.max_memory_allocated() / 1e6 if device != "cpu" else common.peak_mb()


def process_seconds(what: str, options: argparse.Namespace) -> float:
    """Of a process of its own for one picture, its start counted."""
    line = [sys.executable, __file__, "--process", what]
    for name in ("device", "dtype", "threads", "blip", "diffusion", "steps", "size"):
        value = getattr(options, name)
        line += [f"--{name}", str(value)] if value else []
    seconds, _ = common.timed(lambda: subprocess.run(line, check=True, capture_output=True))
    return seconds


def one_picture(options: argparse.Namespace) -> None:
    """All that a script for one picture does."""
    models, settings = configured(options)
    if options.process == "captions":
        blip = Blip(models, config.Caption())
        blip.captions(blip.features(scenes(1)))
    else:
        diffusion, inputs = painting(models, settings, 1)
        diffusion.reconstruct(*inputs)


if __name__ == "__main__":
    main()
