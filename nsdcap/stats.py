"""Correlation, what it would be by chance, false discoveries, noise ceiling, intervals."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BLOCK = 2048  # voxels at a time


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's r (t,) float64 of the columns of two arrays (n, t); NaN where one is constant."""
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"a {a.shape} and b {b.shape}: expected two arrays of one shape (n, t)")
    r = np.empty(a.shape[1])
    for columns in _blocks(a.shape[1]):
        r[columns] = (_standard(a[:, columns]) * _standard(b[:, columns])).sum(0)
    return np.clip(r, -1, 1)


def p_gaussian(r: np.ndarray, n: int) -> np.ndarray:
    """One-sided p (t,) of r between ``n`` pairs of independent Gaussians: the paper's null (3.4).

    Its exact form is Student's t with n - 2 degrees of freedom. NaN stays NaN.
    """
    from scipy.stats import t as student

    if n < 3:
        raise ValueError(f"n = {n}: expected at least 3 pictures")
    r = np.asarray(r, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return student.sf(r * np.sqrt((n - 2) / (1 - r**2)), n - 2)


def null_orders(n: int, n_nulls: int, seed: int) -> np.ndarray:
    """Random orders (k, n) of the pictures; each gives n - 1 nulls by its cyclic shifts."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(n) for _ in range(-(-n_nulls // (n - 1)))])


def p_permutation(
    predicted: np.ndarray, measured: np.ndarray, n_nulls: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """One-sided p of r under permuted pictures, per voxel and family-wise by the maximum, (t,) each.

    predicted, measured (n, t). The pictures are put in a random order and all its n - 1 cyclic shifts
    are taken at once by FFT, then further orders until there are at least ``n_nulls`` nulls. Each
    shift is a permutation of the pictures drawn uniformly, so p, (1 + nulls as large) / (1 + nulls),
    is valid where pictures are exchangeable: shown in random order, and averaged over repeats. The
    orders depend on n and ``seed`` alone: voxels, layers and phases are held against the same ones.
    Constant columns give NaN and stay out of the maximum.

    Memory: (n, 2048) float64 a few times; the nulls are counted, not kept.
    """
    from scipy import fft

    if predicted.shape != measured.shape or predicted.ndim != 2 or len(predicted) < 3:
        raise ValueError(
            f"predicted {predicted.shape}, measured {measured.shape}: expected one shape (n >= 3, t)"
        )
    n, t = predicted.shape
    orders = null_orders(n, n_nulls, seed)
    size = fft.next_fast_len(2 * n - 1, real=True)
    r = pearson(predicted, measured)
    counts = np.zeros(t, dtype=np.int64)
    maxima = np.full((len(orders), n - 1), -np.inf)
    for columns in _blocks(t):
        x, y = _standard(predicted[:, columns]), _standard(measured[:, columns])
        x, y = np.nan_to_num(x), np.nan_to_num(y)
        valid = np.isfinite(r[columns])
        for number, order in enumerate(orders):
            # both rows in the random order: shift k pairs each picture with the one k places on
            spectrum = np.conj(fft.rfft(x[order], size, axis=0)) * fft.rfft(y[order], size, axis=0)
            linear = fft.irfft(spectrum, size, axis=0)
            null = linear[1:n] + linear[size - n + 1 :]  # (n - 1, b) circular, without the identity
            # ties, as in data of few values, are at the mercy of the last bit
            counts[columns] += (null >= r[columns] - 1e-12).sum(0)
            if valid.any():
                np.maximum(maxima[number], null[:, valid].max(1), out=maxima[number])
    total = 1 + maxima.size
    p = np.where(np.isfinite(r), (1 + counts) / total, np.nan)
    above = maxima.size - np.searchsorted(np.sort(maxima.ravel()), r - 1e-12, side="left")
    return p, np.where(np.isfinite(r), (1 + above) / total, np.nan)


def fdr(p: np.ndarray, alpha: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Benjamini-Hochberg over p (t,): which are significant (bool) and their q; NaN are left out."""
    from mne.stats import fdr_correction

    significant, q = np.zeros(p.shape, dtype=bool), np.full(p.shape, np.nan)
    known = np.isfinite(p)
    if known.any():
        significant[known], q[known] = fdr_correction(p[known], alpha)
    return significant, q


def noise_ceiling(ncsnr: np.ndarray, repeats: np.ndarray) -> np.ndarray:
    """Share of variance (t,) of the mean over repeats that is signal (NSD Data Manual).

    ``ncsnr`` (t,), ``repeats`` (n_pictures,) of the test pictures. Its square root is the highest r.
    """
    if np.size(repeats) == 0 or np.min(repeats) < 1:
        raise ValueError(f"repeats {np.shape(repeats)}: expected pictures shown at least once each")
    snr = np.asarray(ncsnr, dtype=np.float64) ** 2
    return snr / (snr + np.mean(1 / np.asarray(repeats, dtype=np.float64)))


def bootstrap_ci(
    values: np.ndarray, n_boot: int, seed: int, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, low and high over the first axis, by percentiles of resampled means."""
    values = np.asarray(values, dtype=np.float64)
    means = resamples(len(values), n_boot, seed) @ values.reshape(len(values), -1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    shape = values.shape[1:]
    return values.mean(0), low.reshape(shape), high.reshape(shape)


def binomial_ci(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact (Clopper-Pearson) interval of a share k / n."""
    from scipy.stats import binomtest

    interval = binomtest(k, n).proportion_ci(level, "exact")
    return float(interval.low), float(interval.high)


def resamples(n: int, n_boot: int, seed: int) -> np.ndarray:
    """Weights (n_boot, n) float64 of bootstrap samples; each row sums to 1."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_boot) / n


def gain_r2(
    joint: np.ndarray, single: np.ndarray, measured: np.ndarray, n_boot: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """R2(joint) - R2(single) over test pictures, with a 95 % bootstrap interval, (t,) each.

    joint, single, measured (n, t). Pictures are resampled; the variance of ``measured`` is taken in
    each resample. NaN where ``measured`` is constant. Memory: (n_boot, 2048) float64 a few times.
    """
    if not joint.shape == single.shape == measured.shape or measured.ndim != 2:
        raise ValueError(
            f"joint {joint.shape}, single {single.shape}, measured {measured.shape}: expected one "
            "shape (n, t)"
        )
    n, t = measured.shape
    weights = resamples(n, n_boot, seed)
    found = np.full((3, t), np.nan)
    for columns in _blocks(t):
        y = measured[:, columns].astype(np.float64)
        y = np.where(y.max(0) == y.min(0), np.nan, y - y.mean(0))
        saved = (single[:, columns] - measured[:, columns]).astype(np.float64) ** 2
        saved -= (joint[:, columns] - measured[:, columns]).astype(np.float64) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            found[0, columns] = saved.mean(0) / (y**2).mean(0)
            gains = (weights @ saved) / (weights @ y**2 - (weights @ y) ** 2)  # (n_boot, b)
        found[1:, columns] = np.quantile(gains, [0.025, 0.975], axis=0)
    return found[0], found[1], found[2]


def _standard(x: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and length 1, float64; NaN where constant."""
    x = np.asarray(x, dtype=np.float64)
    constant = x.max(0) == x.min(0)
    x = x - x.mean(0)
    length = np.sqrt((x**2).sum(0))
    return x / np.where(constant | (length == 0), np.nan, length)


def _blocks(t: int) -> Iterator[slice]:
    for start in range(0, t, BLOCK):
        yield slice(start, min(t, start + BLOCK))
