"""p by permutation: ours, a plain loop over permutations, and the paper's closed form, in turn.

    python hpc/bench/permutation.py [--quick] [--gpu] [--json] [--threads 1]

Synthetic predictions and responses of one map of true size, (982, 15000) float32. A round runs each once;
medians of the rounds are given. The loop permutes rows of the standardised predictions, (982, 15000)
float64, sums their products with the responses' and counts r that reach the voxel's; every permutation
costs it the same, so it may run over --loop-nulls of them and its time be scaled to --nulls, which the
printed time then says (with --json see loop_nulls_timed). Ours takes
whole orders, each all 980 shifts of 980 of the 982 pictures: for 1,000 nulls it finds 1,959. ratio_vs_loop
asks both for --nulls; ratio_per_null divides each time by the nulls found in it. Peak memory of ours and of
the loop is that of a process of its own, which makes the data and runs it once (the loop over two permutations:
more take no more). Equal counts: with those
of a float64 loop over the very nulls that ours finds, for the first --checked voxels.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import common
import numpy as np

from nsdcap import stats

EFFECT = 0.1  # r of a tenth of the voxels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    some = common.at_least(1)
    parser.add_argument("--pictures", type=common.at_least(3), default=982)
    parser.add_argument("--voxels", type=some, default=15000)
    parser.add_argument("--nulls", type=some, default=1000)
    parser.add_argument(
        "--loop-nulls", type=some, help="permutations of the loop; default: --nulls"
    )
    parser.add_argument(
        "--checked", type=some, default=1000, help="voxels whose counts are compared"
    )
    parser.add_argument("--rounds", type=some, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="20 permutations of the loop a round")
    parser.add_argument("--gpu", action="store_true", help="all of it with CuPy")
    parser.add_argument("--json", action="store_true", help="one object on standard output")
    options = parser.parse_args()
    if options.gpu:
        common.need_gpu()
    if options.quick:
        options.loop_nulls, options.checked = options.loop_nulls or 20, min(options.checked, 200)
    options.loop_nulls = options.loop_nulls or options.nulls
    found = compare(options)
    if options.json:
        print(json.dumps(found))
        return
    if options.loop_nulls != options.nulls:
        found["loop_seconds"] = (
            f"{found['loop_seconds']:.4g}, extrapolated from {options.loop_nulls} nulls to {options.nulls}"
        )
    common.tell(found)


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Times, ratios, peak memory of each, whether counts are equal."""
    n, t = options.pictures, options.voxels
    xp, done = library(options.gpu)
    predicted, measured, orders = make(options, xp)
    x, y = standard(predicted), standard(measured)  # ours does so within its time
    r = (x * y).sum(0)

    def ours() -> Any:
        return stats.p_permutation(predicted, measured, options.nulls, 0)

    def loop() -> Any:
        return looped(xp, x, y, r, orders)

    def closed_form() -> Any:
        found = stats.pearson(predicted, measured)
        return stats.p_gaussian(found.get() if options.gpu else found, n)

    steps = (ours, closed_form, loop)
    seconds: dict[str, list[float]] = {step.__name__: [] for step in steps}
    ours(), closed_form(), looped(xp, x, y, r, orders[:1])  # warm: devices compile at first use
    for _ in range(options.rounds):
        for step in steps:
            seconds[step.__name__].append(common.timed(step, done)[0])
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    drawn, m = stats.null_orders(n, options.nulls, 0)
    ours_nulls = len(drawn) * m - 1
    loop_seconds = medians["loop"] * options.nulls / options.loop_nulls
    ratios = [
        slow * options.nulls / options.loop_nulls / fast
        for slow, fast in zip(seconds["loop"], seconds["ours"], strict=True)
    ]
    return {
        "ratio_vs_loop": loop_seconds / medians["ours"],
        "ratio_of_each_round": [round(ratio, 1) for ratio in ratios],
        "ratio_per_null": loop_seconds / medians["ours"] * ours_nulls / options.nulls,
        "seconds": medians["ours"],
        "seconds_of_each_round": [round(value, 3) for value in seconds["ours"]],
        "loop_seconds": loop_seconds,
        "loop_nulls_timed": options.loop_nulls,
        "closed_form_seconds": medians["closed_form"],
        "n": n,
        "voxels": t,
        "nulls": options.nulls,
        "nulls_found": ours_nulls,
        "rounds": options.rounds,
        "threads": options.threads,
        "device": "gpu" if options.gpu else "cpu",
        "input_mb": (predicted.nbytes + measured.nbytes) / 1e6,
        "peak_rss_mb": common.alone(run_ours, options)[1],
        "loop_peak_rss_mb": common.alone(run_loop, options)[1],
        "checked_voxels": min(options.checked, t),
        "equal_counts": equal_counts(predicted, measured, options),
    }


def library(gpu: bool) -> tuple[Any, Any]:
    """The array module, and what waits for it."""
    if not gpu:
        return np, lambda: None
    import cupy

    return cupy, cupy.cuda.Device().synchronize


def make(options: argparse.Namespace, xp: Any) -> tuple[Any, Any, list[Any]]:
    """Predictions and responses (n, t) float32, a tenth of the voxels related, and the loop's orders."""
    rng = np.random.default_rng(0)
    n, t = options.pictures, options.voxels
    predicted = rng.standard_normal((n, t), dtype=np.float32)
    measured = rng.standard_normal((n, t), dtype=np.float32)
    measured[:, ::10] += EFFECT * predicted[:, ::10]
    orders = [xp.asarray(rng.permutation(n)) for _ in range(options.loop_nulls)]
    return xp.asarray(predicted), xp.asarray(measured), orders


def looped(xp: Any, x: Any, y: Any, r: Any, orders: list[Any]) -> Any:
    """How often r of permuted predictions reaches the voxel's own (t,)."""
    counts = xp.zeros(len(r), dtype=np.int64)
    for order in orders:
        counts += (x[order] * y).sum(0) >= r
    return counts


def run_ours(options: argparse.Namespace) -> None:
    predicted, measured, _ = make(options, library(options.gpu)[0])
    stats.p_permutation(predicted, measured, options.nulls, 0)


def run_loop(options: argparse.Namespace) -> None:
    xp = library(options.gpu)[0]
    predicted, measured, orders = make(options, xp)
    x, y = standard(predicted), standard(measured)
    looped(xp, x, y, (x * y).sum(0), orders[:2])


def equal_counts(predicted: Any, measured: Any, options: argparse.Namespace) -> bool:
    """Whether p of the first voxels, among all, is that of a float64 loop over the same nulls."""
    p, _ = stats.p_permutation(predicted, measured, options.nulls, 0)
    p = p[: options.checked]
    x, y = standard(predicted[:, : options.checked]), standard(measured[:, : options.checked])
    r = (x * y).sum(0)
    orders, m = stats.null_orders(len(x), options.nulls, 0)
    counts = np.zeros(len(r), dtype=np.int64)
    if options.gpu:
        p, x, y, r = (array.get() for array in (p, x, y, r))
    for number, order in enumerate(orders):
        mixed = x[order]
        for shift in range(number == 0, m):
            shifted = np.concatenate([np.roll(orders[0][:m], shift), orders[0][m:]])
            counts += (mixed * y[shifted]).sum(0) >= r - 1e-12
    return bool((np.rint(p * len(orders) * m).astype(np.int64) - 1 == counts).all())


def standard(x: Any) -> Any:
    """Columns of mean 0 and length 1, float64."""
    x = x.astype("f8")
    x -= x.mean(0)
    return x / (x**2).sum(0) ** 0.5


if __name__ == "__main__":
    main()
