"""Correlation, what it would be by chance, false discoveries, noise ceiling, intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from numbers import Integral
from typing import Any

import numpy as np
import scipy.fft

from nsdcap.ridge import array_module, blocks, check_arrays, to_host

BLOCK = 48  # voxels at a time: their spectra fit the cache of a core
CHUNK = 256  # nulls found again, or rows looked at, at a time
BINS = 2**16  # of the pooled null


def pearson(a: Any, b: Any) -> Any:
    """Pearson's r (t,) float64 of the columns of two arrays (n, t); NaN where one is constant.

    Both are of one array module, and so is r. Promoted in blocks of columns. ValueError else, and where
    they are empty or not finite.
    """
    xp = checked(a=a, b=b)
    r = xp.empty(a.shape[1])
    for columns in column_blocks(a):
        r[columns] = xp.einsum("ij,ij->i", standard(a[:, columns]), standard(b[:, columns]))
    return xp.clip(r, -1, 1)


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


def null_orders(n: int, n_nulls: int, seed: int) -> tuple[np.ndarray, int]:
    """Random orders (k, n) of the pictures, and how many of each, m, are shifted in a circle.

    m is the largest number up to n that FFTs are fast at (980 of 982): a prime costs several times
    as much. The shifts are the data and k m - 1 nulls or more.
    """
    rng = np.random.default_rng(seed)
    m = scipy.fft.prev_fast_len(n)
    return np.stack([rng.permutation(n) for _ in range(-(-(n_nulls + 1) // m))]), m


def p_permutation(
    predicted: Any, measured: Any, n_nulls: int, seed: int, null: str = "own"
) -> tuple[Any, Any]:
    """One-sided p of r under permuted pictures, per voxel and family-wise by the maximum, (t,) each.

    predicted, measured (n, t), both of one array module, and so are the p, float64. With orders
    o_0, o_1, ... (k, n) of ``null_orders``, a voxel's nulls are its r between predicted[o_i] and all
    cyclic shifts of the first m of measured[o_0], by FFT; m is n or little less, the rest stays, and
    k is what gives ``n_nulls`` or more. The shift of o_0 by 0 is the data. p is (1 + nulls >= r) /
    (1 + nulls); ties, within 1e-12, count. For ``p_fwe`` the null is the largest r of all voxels.
    The orders depend on n, ``n_nulls`` and ``seed`` alone: voxels, layers and phases are held
    against the same ones. Constant columns give NaN and stay out of the maximum.

    Validity: the shifts, relabelled by o_0, are a group of permutations that holds the identity, and
    each further order gives a coset of it drawn at random. Where pictures are exchangeable, the data
    are thus any of the k m arrangements alike, and P(p <= a) <= a exactly, for every k: for the group
    by Hemerik & Goeman 2018 (TEST 27:811), for its cosets as in Ramdas et al. 2023 (Sankhya A 85:
    1156). Were both sides put in each o_i, a union of groups would be no group, and p exact for k = 1
    alone. A shift of o_0 is no uniform permutation (it moves all m pictures) and shifts depend on each
    other; neither matters to a group. Pictures shown in random order and averaged over repeats are
    exchangeable where nothing is predicted; rows in order of time, autocorrelated, are not, and no
    permutation of rows is then valid.

    ``null`` says what p, not p_fwe, is held against. "own": the voxel's nulls; exact, 1 / (k m) at
    least. "pooled": all voxels' nulls together, whose mean and variance, 1 / (n - 1), are the same
    whatever the data, and whose higher moments are taken to be. They are counted in bins 3e-5 wide,
    that of r as a whole: p errs by less than a bin, upwards. "tail": own, but where fewer than 10
    nulls reach r a generalised Pareto tail (Knijnenburg et al. 2009, Bioinformatics 25:i161, see
    ``_tail``). The last two are approximate.

    Nulls are found in float32. Those as near to r, or to the largest so far, as ``_guard`` are found
    again as float64 sums, so that counts are those of a float64 loop. Memory: some (48, n) arrays,
    32 times that on a device; nulls are counted, not kept. ValueError for what is no array, other shapes
    and names, numbers that are not finite, and ``n_nulls`` that is no whole number above 0.
    """
    xp = checked(predicted=predicted, measured=measured)
    if len(predicted) < 3:
        raise ValueError(f"predicted {predicted.shape}: expected 3 pictures at least")
    if null not in ("own", "pooled", "tail"):
        raise ValueError(f"null {null!r}: expected own, pooled or tail")
    if not isinstance(n_nulls, Integral) or n_nulls < 1:
        raise ValueError(f"n_nulls: found {n_nulls}, expected a whole number, 1 at least")
    fft = _fft(xp)
    n, t = predicted.shape
    drawn, m = null_orders(n, n_nulls, seed)
    total = len(drawn) * m
    # rows are read in the first order, others are taken from there
    start, orders = xp.asarray(drawn[0]), xp.asarray(np.argsort(drawn[0])[drawn])
    r, p = xp.full(t, xp.nan), xp.full(t, xp.nan)
    maxima = xp.full((len(drawn), m), -xp.inf)
    pool = xp.zeros(BINS + 1, dtype=np.int64)
    for columns in column_blocks(predicted):
        x = standard(predicted[:, columns][start])
        y = standard(measured[:, columns][start])
        valid = xp.isfinite(x[:, 0] + y[:, 0])
        if not valid.all():
            x, y = x[valid], y[valid]
        if not len(x):
            continue
        observed = xp.clip(xp.einsum("ij,ij->i", x, y), -1, 1)
        spectrum = xp.conj(fft.rfft(y[:, :m].astype(np.float32)))
        # twice round the circle, so that a shift is a slice
        circle = xp.concatenate([y[:, :m], y[:, :m]], axis=1)
        windows = xp.lib.stride_tricks.sliding_window_view(circle, m, axis=1)
        counts = xp.zeros(len(x))
        kept = []
        for number, order in enumerate(orders):
            mixed = x[:, order] if number else x
            rest = (mixed[:, m:] * y[:, m:]).sum(1)  # of the pictures that stay
            mixed = mixed[:, :m]
            nulls = fft.irfft(fft.rfft(mixed.astype(np.float32)) * spectrum, m)
            guard = _guard(nulls)
            nulls += rest.astype(np.float32)[:, None]
            widest = guard.max()
            first = int(number == 0)  # the shift by 0 of the first order is the data
            nulls = nulls[:, first:]
            top = maxima[number, first:]  # a view
            floor = xp.maximum(top, nulls.max(0) - widest) - widest
            above = nulls > (observed + guard).astype(np.float32)[:, None]
            near = above != (nulls >= (observed - guard).astype(np.float32)[:, None])
            counts += above.sum(1)
            doubtful = xp.flatnonzero(near | (nulls >= floor.astype(np.float32)))
            for some in blocks(len(doubtful), CHUNK):
                j, k = xp.divmod(doubtful[some], m - first)
                exact = xp.einsum("ij,ij->i", mixed[j], windows[j, m - first - k])
                exact += rest[j]
                # ties, as in data of few values, are at the mercy of the last bit
                reached = near[j, k] & (exact >= observed[j] - 1e-12)
                counts += xp.bincount(j, reached, minlength=len(x))
                xp.maximum.at(top, k, exact)
            if null == "pooled":
                pool += xp.bincount(_bin(nulls + guard[:, None]).ravel(), minlength=BINS + 1)
            elif null == "tail":
                kept.append(nulls)
        own = (1 + counts) / total
        if null == "tail":
            own = _tail(xp.concatenate(kept, axis=1), observed, counts, own)
        r[columns][valid], p[columns][valid] = observed, own
    known = xp.isfinite(r)
    if null == "pooled":
        reached = xp.cumsum(pool[::-1])[::-1]
        p[known] = (1 + reached[_bin(r[known] - 1e-12)]) / (1 + pool.sum())
    ranked = xp.sort(maxima.ravel()[1:])
    beyond = len(ranked) - xp.searchsorted(ranked, r - 1e-12, side="left")
    return p, xp.where(known, (1 + beyond) / total, xp.nan)


def _guard(nulls: Any) -> Any:
    """Most by which circular correlations (b, m) of rows of length 1 or less may be wrong in float32.

    An FFT is wrong by 6.7 u log2(m), u = 2^-24, of its length at most (Higham 2002, Accuracy and
    Stability, theorem 24.2, radix 2; taken as 7 here). Two spectra of length 1 enter, and their
    product's length is that of the correlations; 9 u are for what is rounded before, between and
    after. Some 50 times less is seen.
    """
    xp = array_module(nulls)
    length = xp.sqrt(xp.einsum("ij,ij->i", nulls, nulls))
    return (length + 2) * np.float32(7 * 2.0**-24 * math.log2(nulls.shape[1])) + np.float32(
        9 * 2.0**-24
    )


def _bin(r: Any) -> Any:
    """Bin of r, whose edges are BINS equal steps from -1 to 1."""
    xp = array_module(r)
    return xp.clip((r + 1) * (BINS / 2), 0, BINS).astype(np.int64)


def _tail(nulls: Any, r: Any, counts: Any, p: Any) -> Any:
    """p (b,), but a generalised Pareto tail's of nulls (b, k) where fewer than 10 ``counts`` reach r.

    The 250 largest nulls, or a quarter if fewer, are fitted by probability-weighted moments (Hosking
    & Wallis 1987, Technometrics 29:339). They are taken as -log(1 - r^2), which for independent
    Gaussians falls off almost exponentially all the way to r = 1; and a shape below 0, which would
    end the tail and give p = 0, as 0. Of 2,100 nulls p is right to a factor of 3 down to 1e-4; further
    out it errs by orders of magnitude, mostly upwards. p stays where the largest are all alike.
    """
    xp = array_module(nulls)
    few = counts < 10
    if not few.any():
        return p
    size = min(250, nulls.shape[1] // 4)
    if size < 10:
        return p
    with np.errstate(divide="ignore", invalid="ignore"):
        largest = xp.sort(nulls[few], axis=1)[:, -size - 1 :].astype(np.float64)
        largest = -xp.log1p(-largest * abs(largest))
        start = largest[:, :2].mean(1)  # between the last one in and the first one out
        excess = largest[:, 1:] - start[:, None]
        mean = excess.mean(1)
        weighted = (excess * xp.arange(size - 1, -1, -1)).mean(1) / (size - 1)
        shape = xp.maximum(2 - mean / (mean - 2 * weighted), 0)
        scale = xp.where(shape > 0, 2 * mean * weighted / (mean - 2 * weighted), mean)
        beyond = xp.maximum(-xp.log1p(-r[few] * abs(r[few])) - start, 0) / scale
        safe = xp.where(shape > 0, shape, 1)
        log_share = xp.where(shape > 0, -xp.log1p(safe * beyond) / safe, -beyond)
        fitted = size / nulls.shape[1] * xp.exp(log_share)
    p = p.copy()
    p[few] = xp.where(xp.isfinite(fitted), fitted, p[few])
    return p


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
    """Weights (n_boot, n) float64 of bootstrap samples; each row sums to 1. ValueError if there are none."""
    if n < 1 or n_boot < 1:
        raise ValueError(f"{n_boot} resamples of {n}: expected 1 at least of either")
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_boot) / n


def gain_r2(joint: Any, single: Any, measured: Any, n_boot: int, seed: int) -> tuple[Any, Any, Any]:
    """R2(joint) - R2(single) over test pictures, with a 95 % bootstrap interval, (t,) each.

    joint, single, measured (n, t). Pictures are resampled; the variance of ``measured`` is taken in
    each resample. NaN where ``measured`` is constant. Memory: (n_boot, 48) float64 a few times.
    ValueError for other shapes, numbers that are not finite, and ``n_boot`` below 1.
    """
    xp = checked(joint=joint, single=single, measured=measured)
    n, t = measured.shape
    weights = xp.asarray(resamples(n, n_boot, seed))
    found = xp.full((3, t), xp.nan)
    for columns in column_blocks(measured):
        saved, y = saved_error(*(x[:, columns] for x in (joint, single, measured)))
        with np.errstate(divide="ignore", invalid="ignore"):
            found[0, columns] = saved.mean(0) / (y**2).mean(0)
            gains = (weights @ saved) / (weights @ y**2 - (weights @ y) ** 2)  # (n_boot, b)
        found[1:, columns] = xp.quantile(gains, xp.asarray([0.025, 0.975]), axis=0)
    return found[0], found[1], found[2]


def gain_p(joint: Any, single: Any, measured: Any) -> np.ndarray:
    """One-sided p (t,) float64, on the host, of a gain in R2 that is not above 0.

    Student's t of the squared errors that ``joint`` saves, picture by picture. Where it adds nothing a
    saving is as likely a loss, and t of such differences, whose tails are heavy, is too large less often
    than it says, not more (Efron 1969, JASA 64:1278); the width of ``gain_r2``'s interval, taken for a
    standard error, is not as safe. 1 where no picture differs, NaN where ``measured`` is constant. joint,
    single, measured (n, t). Memory: some (n, 48) float64. ValueError as ``gain_r2``.
    """
    from scipy.stats import t as student

    xp = checked(joint=joint, single=single, measured=measured)
    n = len(measured)
    found = xp.full(measured.shape[1], xp.nan)
    for columns in column_blocks(measured):
        saved, y = saved_error(*(x[:, columns] for x in (joint, single, measured)))
        mean = saved.mean(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = mean / xp.sqrt(((saved - mean) ** 2).sum(0) / (n * (n - 1)))
        t = xp.where((saved == 0).all(0), -xp.inf, t)
        found[columns] = xp.where(xp.isfinite(y[0]), t, xp.nan)
    return student.sf(to_host(found), n - 1)


def saved_error(both: Any, one: Any, y: Any) -> tuple[Any, Any]:
    """Squared error that ``both`` saves over ``one``, and y about its mean, NaN where constant, (n, b) float64.

    Columns are scaled, alike in both: a gain is a ratio.
    """
    xp = array_module(y)
    both, one, y = (x.astype(np.float64) for x in (both, one, y))
    scale = _unit(xp.concatenate([both, one, y]).T)
    both, one, y = both * scale, one * scale, y * scale
    saved = (one - y) ** 2 - (both - y) ** 2
    return saved, xp.where(y.max(0) == y.min(0), xp.nan, y - y.mean(0))


def standard(x: Any) -> Any:
    """Columns (n, b) as rows (b, n) of mean 0 and length 1, float64; NaN where constant, to rounding."""
    xp = array_module(x)
    x = xp.ascontiguousarray(x.T, dtype=np.float64)
    x = x * _unit(x)[:, None]  # a new array: x may be the caller's
    mean = x.mean(1)
    x -= mean[:, None]
    length = xp.sqrt(xp.einsum("ij,ij->i", x, x))
    # what the mean's rounding leaves of a constant
    constant = length <= 1e-14 * x.shape[1] ** 0.5 * abs(mean)
    x /= xp.where(constant, xp.nan, length)[:, None]
    return x


def _unit(x: Any) -> Any:
    """Power of 2 (b,) that brings rows (b, n) below 1, so that no square is too large or 0; exact."""
    xp = array_module(x)
    power = xp.frexp(xp.maximum(x.max(1), -x.min(1)))[1]
    return xp.ldexp(xp.ones(len(x)), -xp.maximum(power, -1000))


def checked(**arrays: Any) -> Any:
    """numpy, cupy or whichever module all arrays are of; ValueError where they do not fit, naming one."""
    check_arrays(**arrays)
    shapes = {array.shape for array in arrays.values()}
    told = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
    if len(shapes) > 1 or len(min(shapes)) != 2 or 0 in min(shapes):
        raise ValueError(f"{told}: expected one shape (n, t), neither of them 0")
    modules = {array_module(array) for array in arrays.values()}
    if len(modules) > 1:
        raise ValueError(f"{told}: on the host and on a device, expected one of them")
    xp = modules.pop()
    for name, array in arrays.items():
        finite = xp.ones(array.shape[1], dtype=bool)
        for rows in blocks(len(array), CHUNK):
            finite &= xp.isfinite(array[rows]).all(0)
        if not bool(finite.all()):
            raise ValueError(
                f"{name} {array.shape}: column {int(finite.argmin())} is not finite, expected numbers; "
                "leave such columns out"
            )
    return xp


def _fft(xp: Any) -> Any:
    """FFTs of ``xp`` that keep float32; NumPy's own are slower than SciPy's."""
    if xp is np:
        return scipy.fft
    if xp.__name__ == "cupy":
        import cupyx.scipy.fft

        return cupyx.scipy.fft
    return xp.fft


def column_blocks(array: Any) -> Iterator[slice]:
    """Columns a few at a time: as fit a cache, or on a device as fill it."""
    return blocks(array.shape[1], BLOCK * (1 if array_module(array) is np else 32))
