"""Ridge of ours, of himalaya and of scikit-learn: time, memory and error, side by side in one run.

    python hpc/bench/ridge.py --shape decode [--one-alpha] [--quick | --full] [--json] [--threads 1] [--gpu]

Shapes: decode (voxels of trials -> latents of pictures), encode (features of pictures -> voxels of trials,
p < n), dual (likewise, p > n, the kernel given), joint (a kernel shared by 12 layers' features).
All get the same data, folds, penalties and float32, one or more runs each in turn. himalaya and scikit-learn
get single trials, which is what they take (joint: pictures' means, in their favour, unless --trials).
The score is himalaya's default, the squared error of what is left out. himalaya's better backend, and what
is faster, are run in every round, others in the first alone; the table says how often each ran.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

THREADS = next((a.split("=")[1] for a in sys.argv if a.startswith("--threads=")), None)
if THREADS is None:
    THREADS = sys.argv[sys.argv.index("--threads") + 1] if "--threads" in sys.argv else "1"
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = THREADS  # before NumPy loads its BLAS

import numpy as np  # noqa: E402
import scipy.linalg  # noqa: E402

from nsdcap.decode_bases import decode_bases  # noqa: E402
from nsdcap.folds import collapse  # noqa: E402
from nsdcap.ridge import to_host, triangle_flops  # noqa: E402
from nsdcap.ridge_decode import decode_cv, flops  # noqa: E402
from nsdcap.ridge_encode import encode_dual, encode_primal  # noqa: E402
from nsdcap.ridge_joint import encode_joint, joint_bases  # noqa: E402

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
    "decode": (445, 3, 500, 4000, 1),
    "encode": (800, 3, 256, 1000, 1),
    "dual": (400, 3, 4000, 400, 1),
    "joint": (600, 3, 64, 500, 4),
}
FOLDS, N_ALPHAS, N_TEST, CHECKED = 5, 10, 200, 40


def make(options: argparse.Namespace) -> SimpleNamespace:
    """A problem with planted weights: pictures' features or latents, trials, folds, penalties."""
    shape = options.shape
    n, repeats, p, t, layers = (QUICK if options.quick else FULL if options.full else SIZES)[shape]
    n, t, layers = options.pictures or n, options.targets or t, options.layers or layers
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
    alphas = float((x.astype("f8") ** 2).sum() / len(x)) * np.logspace(-4, 5, N_ALPHAS)
    problem = SimpleNamespace(
        shape=shape, n=n, repeats=repeats, p=p, t=t, x=x, y=y, test=test, picture=picture,
        folds=folds, alphas=alphas, layers=layers, on_trials=options.trials,
    )  # fmt: skip
    if shape == "joint":
        wide = rng.standard_normal((n + N_TEST, 4 * n), "f4").astype("f8")
        problem.kernel, problem.kernel_test = wide[:n] @ wide[:n].T, wide[n:] @ wide[:n].T
        problem.spaces = [rng.standard_normal((n + N_TEST, p)) for _ in range(layers)]
        problem.alphas = np.logspace(-4, 5, N_ALPHAS)  # multiples, the same for every layer
    return problem


# --- ours


def ours(p: SimpleNamespace, one_alpha: bool, xp: Any = np) -> tuple[np.ndarray, np.ndarray]:
    """Predictions (m, t) and the chosen penalties (t,); joint: of the first layer."""
    if p.shape == "decode":
        bases = decode_bases(
            xp.asarray(p.x), p.picture, xp.asarray(p.test), p.folds[p.picture], p.n
        )
        found = list(
            decode_cv(bases, lambda a, b: p.y[:, a:b], p.t, p.alphas, per_target=not one_alpha,
                      relative=False, gain=False)
        )  # fmt: skip
        index = np.concatenate([block.alpha_index for block in found])
        return np.concatenate([block.predictions for block in found], axis=1), p.alphas[index]
    data = collapse(p.y, p.picture)
    if p.shape == "encode":
        fit = encode_primal(
            xp.asarray(p.x), data, p.folds, p.alphas, xp.asarray(p.test), relative=False
        )
    elif p.shape == "dual":
        kernel, test = kernels(p)
        fit = encode_dual(
            xp.asarray(kernel), data, p.folds, p.alphas, xp.asarray(test), relative=False
        )
    else:
        shared = joint_bases(xp.asarray(p.kernel), data.counts, p.folds, xp.asarray(p.kernel_test))
        spaces = [(xp.asarray(z[: p.n]), xp.asarray(z[p.n :])) for z in p.spaces]
        fit = encode_joint(shared, spaces, data, p.folds, p.alphas, [1.0])[1]
    return to_host(fit.predictions), p.alphas[fit.alpha_index]


def kernels(p: SimpleNamespace) -> tuple[np.ndarray, np.ndarray]:
    """Made once: every competitor is given them."""
    if not hasattr(p, "made"):
        x = p.x.astype("f8")
        p.made = x @ x.T, p.test.astype("f8") @ x.T
    return p.made


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
            return 2.0 * n * n * t + min(flops(bases, 1, t, False).values()) + 2 * N_TEST * n * t
        return min(flops(bases, N_ALPHAS, t, False).values()) + 2 * N_TEST * n * t
    if p.shape == "encode":
        fold = 2 * k * k + 2 * min(left, k) * left + N_ALPHAS * triangle_flops(left, k)
        return t * (FOLDS * fold + 2.0 * n * k + 2 * k * k + 2 * N_TEST * k)
    if p.shape == "dual":
        return t * 2.0 * n * n * (1 + N_ALPHAS) + 2 * N_TEST * n * t
    train = n - left
    each = 2 * k * train + 2 * left * k
    return t * FOLDS * N_ALPHAS * (2.0 * left * train + p.layers * each)


# --- peers


def himalaya(p: SimpleNamespace, one_alpha: bool, backend: str) -> tuple[np.ndarray, np.ndarray]:
    from himalaya.backend import set_backend
    from himalaya.kernel_ridge import KernelRidgeCV
    from himalaya.ridge import RidgeCV
    from sklearn.model_selection import PredefinedSplit

    xp = set_backend(backend)
    host = lambda array: np.asarray(xp.to_numpy(array))  # noqa: E731
    if p.shape == "joint":
        first: tuple[np.ndarray, np.ndarray] | None = None
        for z in p.spaces:
            total, test = joint_kernel(p, z)
            # repeats are equal in number: trials' ridge is pictures' with the penalty over repeats
            y, rows, repeats = p.mean, np.arange(p.n), p.repeats
            if p.on_trials:
                y, rows, repeats = p.y, p.picture, 1
            model = KernelRidgeCV(
                p.alphas * p.scale / repeats,
                kernel="precomputed",
                cv=PredefinedSplit(p.folds[rows]),
            ).fit(xp.asarray(total[rows][:, rows].astype("f4")), xp.asarray(y - y.mean(0)))
            found = model.predict(xp.asarray(test[:, rows].astype("f4")))
            first = first or (
                host(found) + y.mean(0),
                host(model.best_alphas_) * repeats / p.scale,
            )
        assert first is not None  # there are layers
        return first
    if p.shape == "dual":
        kernel, test = kernels(p)
        centred, centred_test = centre(kernel, test)
        y = p.y - p.y.mean(0)  # it fits no intercept with a given kernel
        model = KernelRidgeCV(
            p.alphas, kernel="precomputed", cv=PredefinedSplit(p.folds[p.picture])
        ).fit(xp.asarray(centred[p.picture][:, p.picture].astype("f4")), xp.asarray(y))
        found = model.predict(xp.asarray(centred_test[:, p.picture].astype("f4")))
        return host(found) + p.y.mean(0), host(model.best_alphas_)
    x, y = trials(p)
    model = RidgeCV(
        p.alphas, fit_intercept=True, cv=PredefinedSplit(p.folds[p.picture]),
        solver_params={"local_alpha": not one_alpha},
    ).fit(xp.asarray(x), xp.asarray(y))  # fmt: skip
    return host(model.predict(xp.asarray(p.test))), host(model.best_alphas_)


def joint_kernel(p: SimpleNamespace, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both spaces' kernels, centred and of one mean eigenvalue, summed."""
    first, first_test = centre(p.kernel, p.kernel_test)
    second, second_test = centre(z[: p.n] @ z[: p.n].T, z[p.n :] @ z[: p.n].T)
    ratio = np.trace(first) / np.trace(second)
    p.scale, p.mean = np.trace(first) / p.n, collapse(p.y, p.picture).mean
    return first + ratio * second, first_test + ratio * second_test


def centre(kernel: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = kernel.mean(0)
    return kernel - mean[:, None] - mean + mean.mean(), test - test.mean(1)[
        :, None
    ] - mean + mean.mean()


def trials(p: SimpleNamespace) -> tuple[np.ndarray, np.ndarray]:
    return (p.x, p.y[p.picture]) if p.shape == "decode" else (p.x[p.picture], p.y)


def sklearn(p: SimpleNamespace, one_alpha: bool) -> tuple[np.ndarray, np.ndarray]:
    """Its Ridge for each fold and penalty: its own RidgeCV with folds knows one penalty for all."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import PredefinedSplit

    x, y = trials(p)
    errors = np.zeros((N_ALPHAS, y.shape[1]))
    solver = "cholesky"  # the fastest of its own for these sizes
    for train, left in PredefinedSplit(p.folds[p.picture]).split():
        for row, alpha in enumerate(p.alphas):
            model = Ridge(alpha, solver=solver).fit(x[train], y[train])
            errors[row] += ((y[left] - model.predict(x[left])) ** 2).sum(0)
    index = errors.argmin(0) if not one_alpha else np.full(y.shape[1], errors.sum(1).argmin())
    found = Ridge(p.alphas[index], solver=solver).fit(x, y).predict(p.test)
    return found, p.alphas[index]


def reference_error(p: SimpleNamespace, found: np.ndarray, alphas: np.ndarray) -> float:
    """Largest error of predictions over the largest prediction, against SciPy in float64 on trials."""
    if p.shape == "joint":
        total, test = joint_kernel(p, p.spaces[0])
        mean = p.mean.astype("f8")
        y, alphas = mean - mean.mean(0), np.asarray(alphas) * p.scale
        # repeats are equal in number: trials' kernel ridge is pictures' with the penalty over repeats
        kernel, y, factor = total, y[:, :CHECKED], 1 / p.repeats
        offset = mean.mean(0)[:CHECKED]
    else:
        x, y = (a.astype("f8") for a in trials(p))
        x_mean, offset = x.mean(0), y[:, :CHECKED].mean(0)
        x, y, new = x - x_mean, y[:, :CHECKED] - offset, p.test.astype("f8") - x_mean
        # the smaller of both forms: X'X and X'y are solved as K and y are
        few = p.p < len(x)
        kernel, y, test, factor = (x.T @ x, x.T @ y, new, 1) if few else (x @ x.T, y, new @ x.T, 1)
    expected = np.empty((N_TEST, CHECKED))
    for alpha in np.unique(alphas[:CHECKED]):
        some = alphas[:CHECKED] == alpha
        penalised = kernel + alpha * factor * np.eye(len(kernel))
        expected[:, some] = test @ scipy.linalg.solve(penalised, y[:, some], assume_a="pos")
    return float(np.abs(found[:, :CHECKED] - expected - offset).max() / np.abs(expected).max())


# --- the run


def gemm_peak(xp: Any, size: int = 2048) -> float:
    """GFLOP/s of a float32 product, the best of eight."""
    a = xp.asarray(np.random.default_rng(0).standard_normal((size, size), "f4"))
    times = []
    for _ in range(8):
        start = time.perf_counter()
        float((a @ a)[0, 0])
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times) / 1e9


def competitors(shape: str, gpu: bool) -> dict[str, Callable]:
    found: dict[str, Callable] = {}
    if gpu:
        import cupy

        found["nsdcap"] = lambda p, one: ours(p, one, cupy)
        backends = ["cupy", "torch_cuda"]
    else:
        found["nsdcap"] = ours
        backends = ["numpy", "torch"]
    for backend in backends:
        found[f"himalaya-{backend}"] = lambda p, one, b=backend: himalaya(p, one, b)
    if shape in ("decode", "encode") and not gpu:
        found["scikit-learn"] = sklearn
    return found


def peak_rss(options: argparse.Namespace, name: str) -> float:
    """MB at most of a process that does nothing else, its data and libraries included."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_alone, (options, name))


def _alone(options: argparse.Namespace, name: str) -> float:
    problem = make(options)
    competitors(options.shape, options.gpu)[name](problem, options.one_alpha)
    status = Path("/proc/self/status").read_text()  # getrusage would tell of the parent's peak too
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=tuple(SIZES), default="decode")
    parser.add_argument(
        "--one-alpha", action="store_true", help="decode: one penalty for all targets"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", default="1")
    parser.add_argument("--pictures", type=int, help="another number of pictures")
    parser.add_argument("--targets", type=int, help="another number of targets")
    parser.add_argument("--layers", type=int, help="joint: another number of layers")
    parser.add_argument("--trials", action="store_true", help="joint: himalaya gets single trials")
    parser.add_argument("--full", action="store_true", help="decode, encode: a subject of NSD")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, and nothing else"
    )
    parser.add_argument("--profile", action="store_true", help="where our time goes")
    options = parser.parse_args()
    problem = make(options)
    if options.shape == "dual":
        kernels(problem)  # it is given
    if options.profile:
        import cProfile

        cProfile.runctx("ours(problem, options.one_alpha)", globals(), locals(), sort="tottime")
        return
    solvers = competitors(options.shape, options.gpu)
    times: dict[str, list[float]] = {name: [] for name in solvers}
    errors, chosen = {}, {}
    slow: set[str] = set()
    if options.gpu:  # contexts and compilation are not what is measured
        small = make(argparse.Namespace(**vars(options) | {"quick": True, "full": False}))
        for solve in solvers.values():
            solve(small, options.one_alpha)
    for turn in range(options.repeats):
        for name, solve in solvers.items():
            if name in slow:
                continue
            start = time.perf_counter()
            found, alphas = solve(problem, options.one_alpha)
            times[name].append(time.perf_counter() - start)
            if turn == 0:
                errors[name], chosen[name] = reference_error(problem, found, alphas), alphas
        if turn == 0:
            backends = [name for name in times if name.startswith("himalaya")]
            best = min(times[name][0] for name in backends)
            slow = {name for name in times if name != "nsdcap" and times[name][0] > best}
    xp: Any = np
    if options.gpu:
        import cupy

        xp = cupy
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    peer = min((n for n in medians if n.startswith("himalaya")), key=lambda n: medians[n])
    rss = {name: peak_rss(options, name) for name in ("nsdcap", peer)}
    work, peak = products(problem, options.one_alpha), gemm_peak(xp)
    sklearn_seconds = medians.get(
        "scikit-learn"
    )  # it has no ridge with cross-validation on a given kernel
    same = np.isclose(chosen["nsdcap"], chosen[peer], rtol=1e-3).mean()
    result = {
        "shape": options.shape, "one_alpha": options.one_alpha, "threads": int(options.threads),
        "pictures": problem.n, "trials": problem.n * problem.repeats, "features": problem.p,
        "targets": problem.t, "layers": problem.layers, "on_trials": problem.on_trials,
        "folds": FOLDS, "alphas": N_ALPHAS,
        "seconds": medians, "runs": {name: len(taken) for name, taken in times.items()},
        "best_peer": peer, "ratio_vs_himalaya": medians[peer] / medians["nsdcap"],
        "ratio_vs_sklearn": sklearn_seconds and sklearn_seconds / medians["nsdcap"],
        "gflop_of_products": work / 1e9, "gflops": work / medians["nsdcap"] / 1e9,
        "gemm_peak_gflops": peak, "peak_rss_mb": rss["nsdcap"], "peer_rss_mb": rss[peer],
        "max_rel_error": errors["nsdcap"], "peer_max_rel_error": errors[peer],
        "same_alpha": float(same),
    }  # fmt: skip
    if options.json:
        print(json.dumps(result, default=float))
        return
    for name, seconds in medians.items():
        print(
            f"{name:16} {seconds:8.2f} s  ({len(times[name])} runs)  {seconds / medians['nsdcap']:6.1f} x"
            f"  {rss.get(name, np.nan):6.0f} MB  error {errors[name]:.1e}"
        )
    skipped = ("seconds", "runs")
    print("  ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
                    for key, value in result.items() if key not in skipped))  # fmt: skip


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
