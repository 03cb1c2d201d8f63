"""Decoding with targets streamed from disk: its time beside reading and multiplying alone, and its memory.

    python hpc/bench/stream.py FOLDER [--voxels 1000] [--targets 60000] [--threads 1]

Writes 8,859 pictures x targets float32 as the features stage does (HDF5, chunks of 1,024 x 512), then decodes
them from 24,980 trials with one penalty a target, writing predictions, in a process of its own; beside it,
reading the file alone, and the counted operations at the rate of a large float32 product. Then the peak
memory at an eighth of the targets and at all.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

THREADS = next((a.split("=")[1] for a in sys.argv if a.startswith("--threads=")), None)
if THREADS is None:
    THREADS = sys.argv[sys.argv.index("--threads") + 1] if "--threads" in sys.argv else "1"
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = THREADS  # before NumPy loads its BLAS

import h5py  # noqa: E402
import numpy as np  # noqa: E402

from nsdcap.decode_bases import decode_bases  # noqa: E402
from nsdcap.features import COLUMNS, ROWS  # noqa: E402
from nsdcap.folds import grouped_folds  # noqa: E402
from nsdcap.ridge_decode import decode_cv, flops  # noqa: E402

PICTURES, TRIALS, TESTS = 8859, 24980, 982
ALPHAS = list(np.logspace(-5, 4, 10))
BLOCK = 2048


def write(folder: Path, voxels: int, targets: int) -> dict:
    rng = np.random.default_rng(0)
    with h5py.File(folder / "targets.h5", "w") as file:
        y = file.create_dataset(
            "z_v", (PICTURES, targets), "f4", chunks=(ROWS, min(COLUMNS, targets))
        )
        for start in range(0, targets, 4 * COLUMNS):
            stop = min(targets, start + 4 * COLUMNS)
            y[:, start:stop] = rng.standard_normal((PICTURES, stop - start), "f4")
    return {}


def decode(folder: Path, voxels: int, targets: int) -> dict:
    rng = np.random.default_rng(1)
    picture = np.concatenate([np.arange(PICTURES), rng.integers(0, PICTURES, TRIALS - PICTURES)])
    x = rng.standard_normal((TRIALS, voxels), "f4")
    test = rng.standard_normal((TESTS, voxels), "f4")
    folds = grouped_folds(picture, 5, 0)
    start = time.perf_counter()
    bases = decode_bases(x, picture, test, folds, PICTURES)
    del x
    factorised = time.perf_counter()
    with h5py.File(folder / "targets.h5") as file, h5py.File(folder / "found.h5", "w") as out:
        y, found = file["z_v"], out.create_dataset("predicted", (TESTS, targets), "f4")
        solved = decode_cv(bases, lambda a, b: y[:, a:b], targets, ALPHAS, block=BLOCK, gain=False)
        for block in solved:
            found[:, block.start : block.stop] = block.predictions
    end = time.perf_counter()
    work = (
        min(flops(bases, len(ALPHAS), targets, False).values()) + 2.0 * TESTS * PICTURES * targets
    )
    return {"factorise_s": factorised - start, "stream_s": end - factorised, "flop": work}


def read(folder: Path, voxels: int, targets: int) -> dict:
    start = time.perf_counter()
    with h5py.File(folder / "targets.h5") as file:
        for first in range(0, targets, BLOCK):
            file["z_v"][:, first : first + BLOCK]
    return {"read_s": time.perf_counter() - start}


def multiply(folder: Path, voxels: int, targets: int) -> dict:
    a = np.random.default_rng(0).standard_normal((2048, 2048), "f4")
    times = []
    for _ in range(10):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return {"gemm_gflops": 2 * 2048**3 / min(times) / 1e9}


def alone(step: Callable, *arguments: object) -> dict:
    """In a process of its own, with its peak memory in GB."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_with_peak, (step, arguments))


def _with_peak(step: Callable, arguments: tuple) -> dict:
    found = step(*arguments)
    status = Path("/proc/self/status").read_text()
    return found | {"peak_gb": int(status.split("VmHWM:")[1].split()[0]) / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=Path, help="a folder with room for 4 bytes a picture and target"
    )
    parser.add_argument("--voxels", type=int, default=1000)
    parser.add_argument("--targets", type=int, default=60000)
    parser.add_argument("--threads", default="1")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    peaks = []
    for targets in (options.targets // 8, options.targets):
        sizes = (options.folder, options.voxels, targets)
        alone(write, *sizes)
        found = alone(decode, *sizes)
        peaks.append(found["peak_gb"])
    reading, rate = alone(read, *sizes)["read_s"], alone(multiply, *sizes)["gemm_gflops"]
    gemm = found["flop"] / rate / 1e9
    result = {
        "voxels": options.voxels, "targets": options.targets, "threads": int(options.threads),
        **found, "read_alone_s": reading, "gemm_gflops": rate, "gemm_alone_s": gemm,
        "ratio_vs_larger": found["stream_s"] / max(reading, gemm),
        "peak_gb_an_eighth": peaks[0], "peak_ratio": peaks[1] / peaks[0],
    }  # fmt: skip
    if options.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:20} {value:.4g}")


if __name__ == "__main__":
    main()
