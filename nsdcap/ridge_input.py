"""What the ridge solvers refuse before any work: each error names the array, its shape and the cure."""

from __future__ import annotations

from typing import Any

import numpy as np

from nsdcap.folds import Collapsed
from nsdcap.ridge import ROWS, alpha_grid, array_module, blocks, check_arrays, to_host

SPREAD = 1e-13  # of a trace: what rounding may leave of rows that are all the same
MIRROR = 1e-5  # of a kernel's largest entry: what float32 may leave between it and its transpose
NEGATIVE = 1e-3  # of a kernel's largest eigenvalue: likewise, below 0


def check_numbers(cure: str = "leave such columns out", **arrays: Any) -> None:
    """Raise ValueError with the name and shape of an array that is not 2-d, has no columns or is not finite."""
    check_arrays(**arrays)
    for name, array in arrays.items():
        if array.ndim != 2 or array.shape[1] == 0:
            raise ValueError(f"{name} {array.shape}: expected two axes, and a column at least")
        if np.dtype(array.dtype).kind not in "fiub":
            raise ValueError(f"{name} {array.shape}: found {array.dtype}, expected numbers")
        if not bool(array_module(array).isfinite(array).all()):
            raise ValueError(f"{name} {array.shape}: numbers that are not finite; {cure}")


def check_features(name: str, features: Any, intercept: bool = True) -> None:
    """Raise ValueError where a column predicts nothing, naming the first.

    That is one that is the same in every row; without an intercept only one that is 0 in every row.
    """
    if intercept:
        useless, how = features.max(0) == features.min(0), "the same"
    else:
        useless, how = (features.max(0) == 0) & (features.min(0) == 0), "0"
    useless = to_host(useless)
    if useless.any():
        raise ValueError(
            f"{name} {features.shape}: {int(useless.sum())} columns are {how} in every row, the first "
            f"is column {int(useless.argmax())}; leave such columns out"
        )


def check_folds(folds: Any, n: int) -> np.ndarray:
    """``folds`` (n,) as an array; ValueError where they are not one for each row, two folds at least."""
    folds = np.asarray(folds)
    if folds.shape != (n,):
        raise ValueError(f"folds {folds.shape}: expected a fold for each of {n} rows")
    folds = check_whole("folds", folds)
    if len(np.unique(folds)) < 2:
        raise ValueError(f"folds ({n},): found one fold for all rows, expected two at least")
    return folds


def check_whole(name: str, array: Any) -> np.ndarray:
    """``array`` (n,) as whole numbers; ValueError where they are not."""
    array = np.asarray(array)
    if array.dtype.kind == "f" and not (array % 1 == 0).all():
        bad = array[array % 1 != 0][0]
        found = "NaN" if bad != bad else f"{bad:g}"
        raise ValueError(
            f"{name} {array.shape}: {found} among them, expected a whole number for each row"
        )
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} {array.shape}: found {array.dtype}, expected whole numbers")
    return array.astype(np.int64, copy=False)


def check_scale(name: str, squares: float) -> None:
    """Raise ValueError where float64 cannot hold the sum of the squares of numbers that differ."""
    if not 1e-290 < squares < 1e290:
        raise ValueError(
            f"{name}: numbers so {'large' if squares > 1 or squares != squares else 'small'} that float64 does "
            "not hold their squares; scale them"
        )


def check_spread(name: str, fold: Any, trace: float, whole: float) -> None:
    """Raise ValueError where the rows that a fold trains on are all the same.

    ``trace`` of their Gram matrix, ``whole`` that of the numbers that it is taken from.
    """
    if whole != 0:
        check_scale(name, whole)
    if not trace > SPREAD * whole:
        raise ValueError(
            f"fold {fold}: {name} are the same in every row that it trains on; expected some that differ: "
            "use fewer folds, or leave out the rows that alone differ"
        )


def check_collapsed(data: Any) -> None:
    """Raise ValueError where ``data`` is not responses by picture."""
    if not isinstance(data, Collapsed):
        raise ValueError(
            f"data: found {type(data).__module__}.{type(data).__name__}, expected responses by picture, as "
            "nsdcap.folds.collapse(trials, picture_of_trial) gives them"
        )


def check_responses(data: Collapsed, n: int, counts: Any = None) -> None:
    """Raise ValueError where responses are not those of n pictures, shown ``counts`` (n,) times.

    Finite numbers are looked for in blocks: nothing is copied whole.
    """
    check_collapsed(data)
    if data.deviation.ndim != 2 or 0 in data.deviation.shape:
        raise ValueError(f"responses {data.deviation.shape}: expected (n, t), none of them 0")
    t = data.deviation.shape[1]
    for name, shape in (
        ("ids", (n,)), ("counts", (n,)), ("deviation", (n, t)), ("within", (t,)), ("centre", (t,)),
    ):  # fmt: skip
        if np.shape(getattr(data, name)) != shape:
            raise ValueError(
                f"responses' {name} {np.shape(getattr(data, name))}: expected {shape} for {n} pictures"
            )
    if data.deviation.dtype not in (np.float32, np.float64):
        raise ValueError(f"responses are {data.deviation.dtype}: expected float32 or float64")
    if not (np.isfinite(data.counts).all() and (np.asarray(data.counts) > 0).all()):
        raise ValueError(f"responses' counts ({n},): expected numbers above 0, the repeats of each")
    if not (np.isfinite(data.within).all() and (np.asarray(data.within) >= 0).all()):
        raise ValueError(f"responses' within ({t},): not finite or below 0; leave such columns out")
    if not np.isfinite(data.centre).all():
        raise ValueError(f"responses' centre ({t},): not finite; leave such columns out")
    for rows in blocks(n, 4 * ROWS):
        finite = np.isfinite(data.deviation[rows])
        if not finite.all():
            column = int((~finite.all(0)).argmax())
            raise ValueError(
                f"responses' deviation {(n, t)}: column {column} is not finite; leave such columns out"
            )
    if counts is not None and not np.allclose(data.counts, to_host(counts), rtol=1e-9, atol=0):
        raise ValueError(
            f"responses' counts ({n},): not those that the kernel was factorised with; expected the same "
            "pictures, as often"
        )


def check_square(kernel: Any, counts: Any, test: Any, name: str = "test") -> None:
    """Raise ValueError where a kernel is not symmetric, (n, n), beside ``test`` (m, n) and ``counts`` (n,)
    above 0, or they are not finite."""
    check_arrays(kernel=kernel, **{name: test})
    shapes = kernel.shape, test.shape, np.shape(counts)
    n = len(kernel) if kernel.ndim else 0
    if test.ndim != 2 or shapes != ((n, n), (len(test), n), (n,)):
        raise ValueError(
            f"kernel {shapes[0]}, {name} {shapes[1]}, counts {shapes[2]}: expected (n, n), (m, n), (n,)"
        )
    check_numbers("make kernels from features that are", kernel=kernel, **{name: test})
    counts = to_host(counts)
    if not (np.isfinite(counts).all() and (counts > 0).all()):
        raise ValueError(f"counts ({n},): expected numbers above 0, the repeats of each picture")
    check_symmetric(kernel)


def check_symmetric(kernel: Any) -> None:
    """Raise ValueError where a kernel (n, n) differs from its transpose by more than float32 does."""
    largest = apart = 0.0
    for rows in blocks(len(kernel), 4 * ROWS):
        largest = max(largest, float(abs(kernel[rows]).max()))
        apart = max(apart, float(abs(kernel[rows] - kernel[:, rows].T).max()))
    if largest > 1:
        check_scale(f"kernel {kernel.shape}", largest)
    if apart > MIRROR * largest:
        raise ValueError(
            f"kernel {kernel.shape}: not symmetric, differs from its transpose by up to {apart:.3g}; "
            "expected features @ features.T"
        )


def check_positive(shape: tuple, lowest: float, highest: float, whole: float) -> None:
    """Raise ValueError where a kernel's eigenvalues about its mean are not those of features; ``whole`` its
    trace."""
    if not lowest >= -NEGATIVE * max(highest, 0) - MIRROR * abs(whole):
        raise ValueError(
            f"kernel {shape}: not positive, an eigenvalue of {lowest:.3g} where the largest is "
            f"{highest:.3g}; expected features @ features.T"
        )


def check_kernel(
    kernel: Any, counts: np.ndarray, folds: np.ndarray, intercept: bool = True
) -> None:
    """Raise ValueError where a kernel's pictures, all or those that a fold trains on, are all the same."""
    xp, counts, names = array_module(kernel), np.asarray(counts, dtype=np.float64), np.unique(folds)
    weighted = (folds[:, None] == names) * counts[:, None]  # (n, folds)
    sums = to_host(kernel @ xp.asarray(weighted))
    shared = weighted.T @ sums
    own = weighted.T @ to_host(xp.diag(kernel)).astype(np.float64)
    every = np.ones(len(names), dtype=bool)
    for fold, some in [(None, every), *((fold, names != fold) for fold in names)]:
        whole = own[some].sum()
        mean = shared[some][:, some].sum() / weighted[:, some].sum()
        trace = whole - mean * intercept
        if trace < -MIRROR * abs(whole) or whole < 0:
            raise ValueError(
                f"kernel {kernel.shape}: not positive, its trace is {trace:.3g} about the mean; expected "
                "features @ features.T"
            )
        if fold is None and not trace > SPREAD * whole:
            raise ValueError(
                f"kernel {kernel.shape}: the same for every picture; expected features that differ"
            )
        check_spread("the features of its kernel", fold, trace, whole)


def check_encode(
    name: str, x: Any, data: Collapsed, folds: Any, alphas: Any, test: Any
) -> np.ndarray:
    """``folds`` (n,) as an array; ValueError where features or a kernel ``x`` do not fit the responses,
    the folds or ``test``."""
    alpha_grid(alphas)
    check_collapsed(data)
    check_arrays(**{name: x, "test": test})
    n = len(data.ids)
    check_responses(data, n)
    if x.ndim != 2 or len(x) != n or (name == "kernel" and x.shape[1] != n):
        expected = (n, n if name == "kernel" else x.shape[-1])
        raise ValueError(f"{name} {x.shape}: expected {expected} for {n} pictures")
    if test.ndim != 2 or test.shape[1] != x.shape[1]:
        raise ValueError(f"test {test.shape}: expected (m, {x.shape[1]}) beside {name} {x.shape}")
    if name == "kernel":
        check_square(x, data.counts, test)
    else:
        check_numbers(**{name: x, "test": test})
    return check_folds(folds, n)
