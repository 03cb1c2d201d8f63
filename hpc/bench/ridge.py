"""Ridge of ours, of himalaya and of scikit-learn: time, memory and error, side by side in one run.

    python hpc/bench/ridge.py --shape decode [--one-alpha] [--quick | --full] [--json] [--threads 1] [--gpu]

Shapes: decode (voxels of trials -> latents of pictures), encode (features of pictures -> voxels of trials,
p < n), dual (likewise, p > n, the kernel given), joint (a kernel shared by 12 layers' features). scikit-learn
runs for decode and encode on a CPU: it has no ridge with a penalty for each target on a given kernel.
All get the same data, kernels too in float32, the same folds and penalties, and run in turn, --repeats times
each, after a run of each on small data that is not counted. Ours factorises in float64 and multiplies what
grows with the targets in float32; the peers compute in the data's float32. They get single trials, which is
what they take (joint: pictures' means, ready made, in their favour, unless --trials). The score is himalaya's
default, the squared error of what is left out. Peers that are slow may run --peer-repeats times; the table
says how often each ran. Beside wall time stands CPU time, which a busy machine changes less.

Peak memory is that of a process of its own that makes the data and solves once. error: of predictions under the
chosen penalties, against SciPy in float64, over the largest prediction; of ours also the worst over the whole
grid, one penalty at a time (max_rel_error). The last line also tells best_peer, the faster of himalaya's two
backends, which ratio_vs_himalaya (its median time over ours) is taken against; and same_alpha, the share of
targets for which ours and best_peer chose the same penalty (penalties of nearly the same score may swap).

The peers come with pip install ".[test]".
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import common
import numpy as np
import peers

from nsdcap.decode_bases import decode_bases
from nsdcap.decode_forms import flops
from nsdcap.folds import collapse
from nsdcap.ridge import to_host, triangle_flops
from nsdcap.ridge_decode import decode_cv
from nsdcap.ridge_encode import encode_dual, encode_primal
from nsdcap.ridge_joint import encode_joint, joint_bases

# pictures, repeats, features (voxels), targets, layers
SIZES = {
    "decode": (1335, 3, 1500, 19000, 1),  # targets to voxels as z_v at 224 px to 12,000
    "encode": (4000, 3, 768, 3000, 1),
    "dual": (1000, 3, 10000, 1000, 1),
    "joint": (2000, 3, 192, 2000, 12),
}
# a subject of NSD: c from 12,000 voxels, z_B to 12,000 voxels
FULL = SIZES | {"decode": (8859, 3, 12000, 59136, 1), "encode": (8859, 3, 768, 12000, 1)}
QUICK = {
    "decode": (400, 3, 300, 1500, 1),
    "encode": (600, 3, 192, 800, 1),
    "dual": (300, 3, 3000, 300, 1),
    "joint": (500, 3, 48, 400, 3),
}
WARM = {
    "decode": (60, 3, 40, 100, 1),
    "encode": (60, 3, 20, 100, 1),
    "dual": (60, 3, 200, 100, 1),
    "joint": (60, 3, 10, 100, 1),
}
FOLDS, N_TEST = 5, 200


def size_of(options: argparse.Namespace) -> tuple[int, ...]:
    chosen = QUICK if options.quick else FULL if options.full else SIZES
    n, repeats, p, t, layers = chosen[options.shape]
    return (
        options.pictures or n, repeats, options.features or p, options.targets or t,
        options.layers or layers,
    )  # fmt: skip


def make(options: argparse.Namespace, sizes: tuple[int, ...] | None = None) -> SimpleNamespace:
    """A problem with planted weights: pictures' features or latents, trials, folds, penalties."""
    shape = options.shape
    n, repeats, p, t, layers = sizes or size_of(options)
    rng = np.random.default_rng(0)
    picture = rng.permutation(np.repeat(np.arange(n), repeats))
    spread = np.geomspace(1, 0.03, p).astype("f4")  # eigenvalues over three decades
    x = rng.standard_normal((n, p), "f4") * spread
    test = rng.standard_normal((N_TEST, p), "f4") * spread
    if shape == "decode":
        y = x @ rng.standard_normal((p, t), "f4")
        y += y.std() * rng.standard_normal(y.shape, "f4")
        x = x[picture] + 0.3 * rng.standard_normal((len(picture), p), "f4")
    else:
        y = (x @ rng.standard_normal((p, t), "f4"))[picture]
        y += 3 * y.std() * rng.standard_normal(y.shape, "f4")
    folds = np.arange(n) % FOLDS
    alphas = float((x.astype("f8") ** 2).sum() / len(x)) * np.logspace(-4, 5, options.alphas)
    problem = SimpleNamespace(
        shape=shape, n=n, repeats=repeats, p=p, t=t, x=x, y=y, test=test, picture=picture,
        folds=folds, alphas=alphas, layers=layers, on_trials=options.trials, gain=options.gain,
    )  # fmt: skip
    if shape == "joint":
        wide = rng.standard_normal((n + N_TEST, 4 * n), "f4")
        problem.spaces = [rng.standard_normal((n + N_TEST, p), "f4") for _ in range(layers)]
        problem.alphas = np.logspace(-4, 5, options.alphas)  # multiples, the same for every layer
        problem.mean = collapse(y, picture).mean
    if shape in ("dual", "joint"):  # given to every competitor, as float32
        of, others = (x, test) if shape == "dual" else (wide[:n], wide[n:])
        problem.kernel, problem.kernel_test = (
            (a.astype("f8") @ of.T.astype("f8")).astype("f4") for a in (of, others)
        )
        problem.scale = np.trace(peers.centre(problem.kernel.astype("f8"), others[:1, :1])[0]) / n
    return problem


# --- ours


def prepared(p: SimpleNamespace, xp: Any = np) -> Any:
    """What does not depend on the targets."""
    if p.shape == "decode":
        voxels, test = xp.asarray(p.x), xp.asarray(p.test)
        return decode_bases(voxels, p.picture, test, p.folds[p.picture], p.n)
    if p.shape == "joint":
        counts = np.full(p.n, p.repeats)
        return joint_bases(xp.asarray(p.kernel), counts, p.folds, xp.asarray(p.kernel_test))
    return None


def solved(
    p: SimpleNamespace, bases: Any, y: np.ndarray, alphas: np.ndarray, one_alpha: bool = False, xp: Any = np
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Predictions (m, t) and the chosen penalties (t,); joint: of the first layer."""
    if p.shape == "decode":
        found = list(
            decode_cv(bases, lambda a, b: y[:, a:b], y.shape[1], list(alphas), per_target=not one_alpha,
                      relative=False, gain=p.gain)
        )  # fmt: skip
        index = np.concatenate([block.alpha_index for block in found])
        return np.concatenate([block.predictions for block in found], axis=1), alphas[index]
    data = collapse(y, p.picture)
    if p.shape == "joint":
        spaces = [(xp.asarray(z[: p.n]), xp.asarray(z[p.n :])) for z in p.spaces]
        fit = encode_joint(bases, spaces, data, p.folds, list(alphas), [1.0])[1]
    else:
        encode, x, test = (
            (encode_primal, p.x, p.test) if p.shape == "encode" else (encode_dual, p.kernel, p.kernel_test)
        )  # fmt: skip
        fit = encode(xp.asarray(x), data, p.folds, list(alphas), xp.asarray(test), relative=False)
    return to_host(fit.predictions), alphas[fit.alpha_index]


def ours(p: SimpleNamespace, one_alpha: bool, xp: Any = np) -> tuple[np.ndarray, np.ndarray]:
    return solved(p, prepared(p, xp), p.y, p.alphas, one_alpha, xp)


def grid_error(p: SimpleNamespace, xp: Any) -> float:
    """The largest error of ours under each penalty of the grid, for the targets that are checked."""
    few = SimpleNamespace(**vars(p))
    if p.shape == "joint":
        few.spaces = p.spaces[:1]
    bases, y = prepared(few, xp), p.y[:, : peers.CHECKED]
    found = [solved(few, bases, y, np.array([alpha]), xp=xp)[0] for alpha in p.alphas]
    return max(
        peers.reference_error(p, predictions, np.full(p.t, alpha))
        for predictions, alpha in zip(found, p.alphas, strict=True)
    )


def products(p: SimpleNamespace, one_alpha: bool) -> float:
    """Operations of our matrix products that grow with the targets; factorisations are not counted."""
    n, k, t = p.n, p.p, p.t
    left = n // FOLDS
    if p.shape == "decode":
        bases = decode_bases(p.x[:, :8], p.picture, p.test[:, :8], p.folds[p.picture], n)
        for fold in bases.folds:  # sizes alone matter
            object.__setattr__(fold, "out", np.empty((len(fold.out), k), "f4"))
            object.__setattr__(fold, "values", np.empty(k))
            object.__setattr__(fold, "into", np.empty((k, fold.into.shape[1]), "f4"))
        if one_alpha:
            return 2.0 * n * n * t + min(flops(bases, 1, t, p.gain).values()) + 2 * N_TEST * n * t
        return min(flops(bases, len(p.alphas), t, p.gain).values()) + 2 * N_TEST * n * t
    if p.shape == "encode":
        fold = 2 * k * k + 2 * min(left, k) * left + len(p.alphas) * triangle_flops(left, k)
        return t * (FOLDS * fold + 2.0 * n * k + 2 * k * k + 2 * N_TEST * k)
    if p.shape == "dual":
        return t * 2.0 * n * n * (1 + len(p.alphas)) + 2 * N_TEST * n * t
    train = n - left
    each = 2 * k * train + 2 * left * k
    return t * FOLDS * len(p.alphas) * (2.0 * left * train + p.layers * each)


# --- the run


def competitors(shape: str, gpu: bool) -> dict[str, Callable]:
    found: dict[str, Callable] = {}
    if gpu:
        import cupy

        found["nsdcap"] = partial(ours, xp=cupy)
        backends = ["cupy", "torch_cuda"]
    else:
        found["nsdcap"] = ours
        backends = ["numpy", "torch"]
    for backend in backends:
        found[f"himalaya-{backend}"] = partial(peers.himalaya, backend=backend)
    if shape in ("decode", "encode") and not gpu:
        found["scikit-learn"] = peers.sklearn  # no ridge with cross-validation on a given kernel
    return found


def run_alone(options: argparse.Namespace, name: str) -> None:
    competitors(options.shape, options.gpu)[name](make(options), options.one_alpha)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=tuple(SIZES), default="decode")
    parser.add_argument(
        "--one-alpha", action="store_true", help="decode: one penalty for all targets"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    parser.add_argument("--repeats", type=common.at_least(1), default=5)
    parser.add_argument(
        "--peer-repeats", type=common.at_least(1), help="of the others; default: --repeats"
    )
    parser.add_argument("--threads", default="1")
    parser.add_argument("--alphas", type=common.at_least(1), default=10, help="how many penalties")
    parser.add_argument("--gain", action="store_true", help="decode: ours finds the gain too")
    for name, low in (("pictures", 2 * FOLDS), ("features", 1), ("targets", 1), ("layers", 1)):
        parser.add_argument(
            f"--{name}", type=common.at_least(low), help=f"another number of {name}"
        )
    parser.add_argument("--trials", action="store_true", help="joint: himalaya gets single trials")
    parser.add_argument("--full", action="store_true", help="decode, encode: a subject of NSD")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, and nothing else"
    )
    parser.add_argument("--profile", action="store_true", help="where our time goes")
    options = parser.parse_args()
    if options.gpu:
        common.need_gpu()
    if not options.profile:
        common.need("pip install '.[test]'", "himalaya", "torch", "sklearn")
    problem = make(options)
    if options.profile:
        import cProfile

        cProfile.runctx("ours(problem, options.one_alpha)", globals(), locals(), sort="tottime")
        return
    result = compare(options, problem)
    if options.json:
        print(json.dumps(result, default=float))
        return
    seconds, own = result["seconds"], result["seconds"]["nsdcap"]
    for name, taken in seconds.items():
        print(
            f"{name:16} {taken:8.2f} s, CPU {result['cpu_seconds'][name]:8.2f} s"
            f"  ({result['runs'][name]} runs)  {taken / own:6.1f} x"
            f"  {result['rss_mb'][name]:6.0f} MB  error {result['error'][name]:.1e}"
        )
    tables = ("seconds", "cpu_seconds", "runs", "rss_mb", "error")
    print("  ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
                    for key, value in result.items() if key not in tables))  # fmt: skip


def compare(options: argparse.Namespace, problem: SimpleNamespace) -> dict[str, Any]:
    """Medians of interleaved runs, memory and errors of each, and what is told of ours."""
    xp: Any = np
    if options.gpu:
        import cupy

        xp = cupy
    solvers = competitors(options.shape, options.gpu)
    small = make(options, WARM[options.shape])
    for solve in solvers.values():  # imports, thread pools, compilation are not what is measured
        solve(small, options.one_alpha)
    times: dict[str, list[float]] = {name: [] for name in solvers}
    cpu: dict[str, list[float]] = {name: [] for name in solvers}
    errors, chosen = {}, {}
    for turn in range(options.repeats):
        for name, solve in solvers.items():
            if name != "nsdcap" and turn >= (options.peer_repeats or options.repeats):
                continue
            before = time.process_time()
            seconds, (found, alphas) = common.timed(partial(solve, problem, options.one_alpha))
            times[name].append(seconds)
            cpu[name].append(time.process_time() - before)
            if turn == 0:
                errors[name] = peers.reference_error(problem, found, alphas)
                chosen[name] = alphas
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    busy = {name: statistics.median(taken) for name, taken in cpu.items()}
    best = min((n for n in medians if n.startswith("himalaya")), key=lambda n: medians[n])
    with ThreadPoolExecutor(2) as pool:  # two processes at a time: nothing is timed any more
        peaks = pool.map(lambda name: common.alone(run_alone, options, name)[1], solvers)
        rss = dict(zip(solvers, peaks, strict=True))
    work, own = products(problem, options.one_alpha), medians["nsdcap"]
    sklearn = medians.get("scikit-learn")
    same = np.isclose(chosen["nsdcap"], chosen[best], rtol=1e-3).mean()
    return {
        "shape": options.shape, "one_alpha": options.one_alpha, "gain": options.gain,
        "threads": int(options.threads), "pictures": problem.n,
        "trials": problem.n * problem.repeats, "features": problem.p, "targets": problem.t,
        "layers": problem.layers, "on_trials": problem.on_trials, "folds": FOLDS,
        "alphas": options.alphas, "seconds": medians, "cpu_seconds": busy,
        "runs": {name: len(taken) for name, taken in times.items()}, "rss_mb": rss, "error": errors,
        "best_peer": best, "ratio_vs_himalaya": medians[best] / own,
        "cpu_ratio_vs_himalaya": busy[best] / busy["nsdcap"],
        "ratio_vs_sklearn": sklearn and sklearn / own,
        "gflop_of_products": work / 1e9, "gflops": work / own / 1e9,
        "gemm_peak_gflops": common.gemm_peak(xp), "peak_rss_mb": rss["nsdcap"],
        "peer_rss_mb": rss[best], "max_rel_error": grid_error(problem, xp),
        "peer_max_rel_error": errors[best], "same_alpha": float(same),
    }  # fmt: skip


if __name__ == "__main__":
    main()
