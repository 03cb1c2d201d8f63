"""Decoding with targets streamed from disk: its time beside reading and multiplying alone, and its memory.

    python hpc/bench/stream.py FOLDER [--voxels 1000] [--targets 60000] [--alphas 10] [--gain] [--threads 1]
                               [--keep]

In a new folder within FOLDER, 2.4 GB by default, which is removed at the end unless --keep, writes 8,859
pictures x targets float32 as the features stage does (HDF5, chunks of 1,024 x 512), then decodes them from
24,980 trials with one penalty a target, writing predictions, in a process of its own; beside it, reading the
file alone, and the counted operations at the rate of a large float32 product. Then the peak memory at an eighth
of the targets and at all.

Factorising the voxels is counted by itself (factorise_s): it does not depend on the targets, and serves every
latent of the same voxels. ratio_vs_larger is that of streaming alone, ratio_with_factorising of both. Peak
memory is that of the process, and grows with the voxels: bound_gb is what the docstrings' formulas say for
these voxels, and bound_gb_12000_voxels for a subject's 12,000 (in the pooled form), the voxels themselves
and 0.2 GB of libraries included.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import common
import h5py
import numpy as np

from nsdcap.decode_bases import decode_bases
from nsdcap.decode_forms import make_plan
from nsdcap.features import COLUMNS, ROWS
from nsdcap.folds import grouped_folds
from nsdcap.ridge_decode import decode_cv

PICTURES, TRIALS, TESTS, FOLDS, BLOCK = 8859, 24980, 982, 5, 2048
LIBRARIES = 0.2e9  # bytes


def write(folder: Path, targets: int) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(folder / "targets.h5", "w") as file:
        y = file.create_dataset(
            "z_v", (PICTURES, targets), "f4", chunks=(ROWS, min(COLUMNS, targets))
        )
        for start in range(0, targets, 4 * COLUMNS):
            stop = min(targets, start + 4 * COLUMNS)
            y[:, start:stop] = rng.standard_normal((PICTURES, stop - start), "f4")


def decode(options: argparse.Namespace, targets: int) -> dict:
    rng = np.random.default_rng(1)
    picture = np.concatenate([np.arange(PICTURES), rng.integers(0, PICTURES, TRIALS - PICTURES)])
    x = rng.standard_normal((TRIALS, options.voxels), "f4")
    test = rng.standard_normal((TESTS, options.voxels), "f4")
    folds = grouped_folds(picture, FOLDS, 0)
    alphas = list(np.logspace(-5, 4, options.alphas))
    start = time.perf_counter()
    bases = decode_bases(x, picture, test, folds, PICTURES)
    del x
    factorised = time.perf_counter()
    plan = make_plan(bases, len(alphas), targets, options.gain)
    with (
        h5py.File(options.folder / "targets.h5") as file,
        h5py.File(options.folder / "found.h5", "w") as out,
    ):
        y, found = file["z_v"], out.create_dataset("predicted", (TESTS, targets), "f4")
        solved = decode_cv(
            bases, lambda a, b: y[:, a:b], targets, alphas, block=BLOCK, gain=options.gain
        )
        for block in solved:
            found[:, block.start : block.stop] = block.predictions
    end = time.perf_counter()
    work = plan.flop + 2.0 * TESTS * PICTURES * targets
    return {
        "form": plan.form, "plan": str(plan), "factorise_s": factorised - start,
        "stream_s": end - factorised, "flop": work,
    }  # fmt: skip


def read(folder: Path, targets: int) -> float:
    """Seconds to read all targets by blocks."""
    start = time.perf_counter()
    with h5py.File(folder / "targets.h5") as file:
        for first in range(0, targets, BLOCK):
            file["z_v"][:, first : first + BLOCK]
    return time.perf_counter() - start


def bound(voxels: int, options: argparse.Namespace, form: str) -> float:
    """Bytes at most of a process that decodes, by the formulas of ``decode_bases`` and ``decode_cv``, for
    fewer voxels than training trials; with its voxels, two blocks as they are read, and libraries."""
    n, p, left, a = PICTURES, voxels, TRIALS / FOLDS, options.alphas
    given = 4 * p * (TRIALS + TESTS)
    kept = 4 * p * (FOLDS * n + TRIALS) + 8 * p * (n + TESTS)
    working = 8 * (4 * p**2 + 5 * n * p + 3 * left * p)
    numbers = a * TESTS * n + 2 * n * BLOCK
    if form == "pooled":
        numbers += (1 + options.gain) * a * n * (n + 128) / 2
        numbers += max(6 * n * BLOCK, 3 * n**2 + 2 * left * n)
    else:
        inner = FOLDS + 4 if options.gain else 4
        numbers += FOLDS * min(left, p) * (p + n / FOLDS) + (6 * n + inner * p) * BLOCK
    return LIBRARIES + kept + max(given + working, 4 * numbers)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=Path, help="a folder with room for 4 bytes a picture and target"
    )
    parser.add_argument("--voxels", type=common.at_least(1), default=1000)
    parser.add_argument(
        "--targets", type=common.at_least(8), default=60000, help="8 at least: an eighth runs first"
    )
    parser.add_argument("--alphas", type=common.at_least(1), default=10, help="how many penalties")
    parser.add_argument("--gain", action="store_true", help="the gain too, as the stage finds it")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--keep", action="store_true", help="leave the files, and say where")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
        options.folder = Path(tempfile.mkdtemp(prefix="stream-", dir=options.folder))
    except OSError as error:
        parser.error(f"FOLDER: {error}")
    try:
        result = measured(options)
    finally:
        if not options.keep:
            shutil.rmtree(options.folder)
    if options.keep:
        result["files"] = str(options.folder)
    if options.json:
        print(json.dumps(result))
    else:
        common.tell(result)


def measured(options: argparse.Namespace) -> dict:
    """Times, rates and peak memory of decoding, and of reading and multiplying alone."""
    peaks = []
    for targets in (options.targets // 8, options.targets):
        common.alone(write, options.folder, targets)
        found, peak = common.alone(decode, options, targets)
        peaks.append(peak / 1e3)
    reading, rate = common.alone(read, options.folder, options.targets)[0], common.gemm_peak(np)
    gemm = found["flop"] / rate / 1e9
    both = found["stream_s"] + found["factorise_s"]
    return {
        "voxels": options.voxels, "targets": options.targets, "alphas": options.alphas,
        "gain": options.gain, "threads": int(options.threads),
        **found, "read_alone_s": reading, "gemm_gflops": rate, "gemm_alone_s": gemm,
        "ratio_vs_larger": found["stream_s"] / max(reading, gemm),
        "ratio_with_factorising": both / max(reading, gemm),
        "peak_gb": peaks[1], "peak_gb_an_eighth": peaks[0], "peak_ratio": peaks[1] / peaks[0],
        "bound_gb": bound(options.voxels, options, found["form"]) / 1e9,
        "bound_gb_12000_voxels": bound(12000, options, "pooled") / 1e9,
    }  # fmt: skip


if __name__ == "__main__":
    main()
