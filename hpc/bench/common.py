"""What the benchmarks share: threads fixed before NumPy loads, peak memory, the rate of a product.

Import it before NumPy: as it loads, it takes ``--threads`` (1 by default) from the command line.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _threads(arguments: list[str]) -> str:
    for number, argument in enumerate(arguments):
        if argument.startswith("--threads="):
            return argument.partition("=")[2]
        if argument == "--threads" and number + 1 < len(arguments):
            return arguments[number + 1]
    return "1"


THREADS = _threads(sys.argv)
for _name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR"):
    os.environ[f"{_name}_NUM_THREADS"] = THREADS  # read by the libraries as they load


def at_least(low: int) -> Callable[[str], int]:
    """What argparse reads a whole number with that is ``low`` or more."""

    def read(text: str) -> int:
        number = int(text) if text.lstrip("-").isdecimal() else low - 1
        if number < low:
            raise argparse.ArgumentTypeError(
                f"found {text}, expected a whole number, {low} at least"
            )
        return number

    return read


def need(cure: str, *modules: str) -> None:
    """End with one line where a module is not there; ``cure`` says what brings it."""
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            sys.exit(f"{Path(sys.argv[0]).name} needs {name}: {cure} ({error})")


def need_gpu() -> None:
    """End with one line where there is no CuPy or no GPU."""
    need("pip install '.[cuda12]' or '.[cuda13]', or leave --gpu out", "cupy")
    import cupy

    try:
        cupy.zeros(1).sum().item()
    except Exception as error:  # of the driver, the runtime, a library: each has its own class
        sys.exit(f"--gpu: CuPy finds no GPU that works ({error})")


def timed(step: Callable[[], Any], done: Callable[[], None] = lambda: None) -> tuple[float, Any]:
    """Seconds of a step, ``done`` waiting for what it left running, and what it gives."""
    start = time.perf_counter()
    found = step()
    done()
    return time.perf_counter() - start, found


def alone(step: Callable, *arguments: object) -> tuple[Any, float]:
    """What a step gives in a fresh process that does nothing else, and that process' peak memory in MB,
    its data and libraries included."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_with_peak, (step, arguments))


def _with_peak(step: Callable, arguments: tuple) -> tuple[Any, float]:
    return step(*arguments), peak_mb()


STATUS = Path("/proc/self/status")


def peak_mb() -> float:
    """Peak resident memory of this process."""
    if STATUS.is_file():  # getrusage would tell of the parent's peak too
        return int(STATUS.read_text().split("VmHWM:")[1].split()[0]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS: bytes


def gemm_peak(xp: Any, size: int = 2048) -> float:
    """GFLOP/s of a float32 product (size, size), the best of eight."""
    import numpy as np

    a = xp.asarray(np.random.default_rng(0).standard_normal((size, size), "f4"))
    times = [timed(lambda: float((a @ a)[0, 0]))[0] for _ in range(8)]
    return 2 * size**3 / min(times) / 1e9


def tell(found: dict[str, Any]) -> None:
    """A line for each figure."""
    for name, value in found.items():
        print(f"{name:24} {value:.4g}" if isinstance(value, float) else f"{name:24} {value}")
