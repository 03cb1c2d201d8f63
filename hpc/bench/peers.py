"""What ridge's benchmark holds ours against: himalaya, scikit-learn, and SciPy in float64 for the errors."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import scipy.linalg

CHECKED = 40  # targets whose predictions are held against SciPy


def himalaya(p: SimpleNamespace, one_alpha: bool, backend: str) -> tuple[np.ndarray, np.ndarray]:
    from himalaya.backend import set_backend
    from himalaya.kernel_ridge import KernelRidgeCV
    from himalaya.ridge import RidgeCV
    from sklearn.model_selection import PredefinedSplit

    xp = set_backend(backend)
    host = lambda array: np.asarray(xp.to_numpy(array))  # noqa: E731
    if p.shape == "joint":
        first: tuple[np.ndarray, np.ndarray] | None = None
        shared = centre(p.kernel, p.kernel_test)  # once for all layers
        for z in p.spaces:
            total, test = joint_kernel(p, shared, z)
            # repeats are equal in number: trials' ridge is pictures' with the penalty over repeats
            y, rows, repeats = p.mean, np.arange(p.n), p.repeats
            if p.on_trials:
                y, rows, repeats = p.y, p.picture, 1
            model = KernelRidgeCV(
                p.alphas * p.scale / repeats,
                kernel="precomputed",
                cv=PredefinedSplit(p.folds[rows]),
            ).fit(
                xp.asarray(total[rows][:, rows] if p.on_trials else total),
                xp.asarray(y - y.mean(0)),
            )
            found = model.predict(xp.asarray(test[:, rows]))
            first = first or (
                host(found) + y.mean(0),
                host(model.best_alphas_) * repeats / p.scale,
            )
        assert first is not None  # there are layers
        return first
    if p.shape == "dual":
        centred, centred_test = centre(p.kernel, p.kernel_test)
        y = p.y - p.y.mean(0)  # it fits no intercept with a given kernel
        model = KernelRidgeCV(
            p.alphas, kernel="precomputed", cv=PredefinedSplit(p.folds[p.picture])
        ).fit(xp.asarray(centred[p.picture][:, p.picture]), xp.asarray(y))
        found = model.predict(xp.asarray(centred_test[:, p.picture]))
        return host(found) + p.y.mean(0), host(model.best_alphas_)
    x, y = trials(p)
    model = RidgeCV(
        p.alphas, fit_intercept=True, cv=PredefinedSplit(p.folds[p.picture]),
        solver_params={"local_alpha": not one_alpha},
    ).fit(xp.asarray(x), xp.asarray(y))  # fmt: skip
    return host(model.predict(xp.asarray(p.test))), host(model.best_alphas_)


def joint_kernel(
    p: SimpleNamespace, shared: tuple[np.ndarray, np.ndarray], z: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The centred kernels ``shared``, plus z's, centred and of the same mean eigenvalue; in z's precision."""
    second, second_test = centre(z[: p.n] @ z[: p.n].T, z[p.n :] @ z[: p.n].T)
    ratio = (p.scale * p.n / np.trace(second, dtype="f8")).astype(z.dtype)
    return shared[0] + ratio * second, shared[1] + ratio * second_test


def centre(kernel: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """About the pictures' mean, found in float64; in their own precision."""
    mean = kernel.mean(0, dtype="f8")
    own = test.mean(1, dtype="f8")[:, None]
    grand = mean.mean()
    centred, centred_test = kernel - mean[:, None] - mean + grand, test - own - mean + grand
    return centred.astype(kernel.dtype), centred_test.astype(test.dtype)


def trials(p: SimpleNamespace) -> tuple[np.ndarray, np.ndarray]:
    return (p.x, p.y[p.picture]) if p.shape == "decode" else (p.x[p.picture], p.y)


def sklearn(p: SimpleNamespace, one_alpha: bool) -> tuple[np.ndarray, np.ndarray]:
    """Its Ridge for each fold and penalty: its own RidgeCV with folds knows one penalty for all."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import PredefinedSplit

    x, y = trials(p)
    errors = np.zeros((len(p.alphas), y.shape[1]))
    solver = "cholesky"  # the fastest of its own for these sizes
    for train, left in PredefinedSplit(p.folds[p.picture]).split():
        for row, alpha in enumerate(p.alphas):
            model = Ridge(alpha, solver=solver).fit(x[train], y[train])
            errors[row] += ((y[left] - model.predict(x[left])) ** 2).sum(0)
    index = errors.argmin(0) if not one_alpha else np.full(y.shape[1], errors.sum(1).argmin())
    found = np.empty((len(p.test), y.shape[1]), dtype=y.dtype)
    for row in np.unique(index):  # given a penalty for each target it would solve for one at a time
        model = Ridge(p.alphas[row], solver=solver).fit(x, y[:, index == row])
        found[:, index == row] = model.predict(p.test).reshape(len(p.test), -1)
    return found, p.alphas[index]


def reference_error(p: SimpleNamespace, found: np.ndarray, alphas: np.ndarray) -> float:
    """Largest error of predictions (m, >= CHECKED) under ``alphas`` (t,) over the largest, the mean among
    it as in what is returned, against SciPy in float64 on trials."""
    if p.shape == "joint":
        shared = centre(p.kernel.astype("f8"), p.kernel_test.astype("f8"))
        total, test = joint_kernel(p, shared, p.spaces[0].astype("f8"))
        mean = p.mean.astype("f8")
        y, alphas = mean - mean.mean(0), np.asarray(alphas) * p.scale
        # repeats are equal in number: trials' kernel ridge is pictures' with the penalty over repeats
        kernel, y, factor = total, y[:, :CHECKED], 1 / p.repeats
        offset = mean.mean(0)[:CHECKED]
    elif p.shape == "dual":  # the kernel is what is given, float32
        kernel, test = centre(p.kernel.astype("f8"), p.kernel_test.astype("f8"))
        kernel, test = kernel[p.picture][:, p.picture], test[:, p.picture]
        y = p.y[:, :CHECKED].astype("f8")
        offset, factor = y.mean(0), 1
        y = y - offset
    else:
        x, y = (a.astype("f8") for a in trials(p))
        x_mean, offset = x.mean(0), y[:, :CHECKED].mean(0)
        x, y, new = x - x_mean, y[:, :CHECKED] - offset, p.test.astype("f8") - x_mean
        # the smaller of both forms: X'X and X'y are solved as K and y are
        few = p.p < len(x)
        kernel, y, test, factor = (x.T @ x, x.T @ y, new, 1) if few else (x @ x.T, y, new @ x.T, 1)
    expected = np.empty((len(p.test), min(CHECKED, p.t)))
    for alpha in np.unique(alphas[:CHECKED]):
        some = alphas[:CHECKED] == alpha
        penalised = kernel + alpha * factor * np.eye(len(kernel))
        expected[:, some] = test @ scipy.linalg.solve(penalised, y[:, some], assume_a="pos")
    expected += offset
    return float(np.abs(found[:, :CHECKED] - expected).max() / np.abs(expected).max())
