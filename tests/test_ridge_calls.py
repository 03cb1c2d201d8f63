"""What a newcomer calls: the examples of docstrings and SOLVER.md run, and wrong calls get one clear error."""

from __future__ import annotations

import doctest
import re
import warnings
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pandas
import pytest
from test_ridge import ALPHAS, world
from test_ridge_decode import voxels_of

from nsdcap import ridge_decode, ridge_encode, ridge_joint
from nsdcap.decode_bases import decode_bases
from nsdcap.folds import collapse, grouped_folds
from nsdcap.ridge_decode import decode_cv
from nsdcap.ridge_encode import encode_basis, encode_dual, encode_primal, kernel_basis
from nsdcap.ridge_joint import encode_joint, joint_bases
from nsdcap.stats import p_permutation, pearson

SOLVER = Path(__file__).parents[1] / "nsdcap" / "SOLVER.md"


@pytest.mark.parametrize(
    "module", [ridge_encode, ridge_joint, ridge_decode], ids=lambda m: m.__name__
)
def test_examples_of_the_docstrings_run(module) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 5
    assert found.failed == 0


@pytest.mark.parametrize(("n", "p"), [(300, 50), (200, 1000)])
def test_examples_of_the_document_run_and_do_not_warn(n: int, p: int) -> None:
    """On voxels planted with 5 % to all of their variance from features, and a few of noise."""
    examples = re.findall(r"```python\n(.*?)```", SOLVER.read_text(), re.DOTALL)
    rng = np.random.default_rng(0)
    picture = rng.permutation(np.repeat(np.arange(100, 100 + n), 3))
    of_pictures = rng.normal(size=(n, p)) * np.geomspace(1, 0.03, p)
    signal = of_pictures @ rng.normal(size=(p, 200))
    share = np.where(np.arange(200) < 10, 0, np.geomspace(0.05, 1, 200))
    voxels = (np.sqrt(share) * signal / signal.std(0))[picture - 100]
    voxels += np.sqrt(1 - share) * rng.normal(size=voxels.shape)
    given = {
        "features": of_pictures[picture - 100], "voxels": voxels, "picture_of_trial": picture,
        "features_of_pictures": of_pictures, "new_features": of_pictures[:5],
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for example in examples:
            exec(example, given)
    assert len(examples) == 2
    np.testing.assert_allclose(
        given["fit"].predictions, given["model"].predict(of_pictures[:5]), rtol=1e-6
    )


# --- wrong calls --------------------------------------------------------------------------------


def refused(call, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()


def test_trials_in_place_of_responses_by_picture() -> None:
    w = world(15, False)
    kernel, test, folds = w.x @ w.x.T, w.test @ w.x.T, w.picture_folds
    match = r"^data: found numpy.ndarray, expected responses by picture, as nsdcap.folds.collapse"
    basis, bases = (
        kernel_basis(kernel, np.ones(60), test),
        joint_bases(kernel, np.ones(60), folds, test),
    )
    refused(lambda: encode_primal(w.x, w.y, folds, ALPHAS, w.test), match)
    refused(lambda: encode_dual(kernel, w.y, folds, ALPHAS, test), match)
    refused(lambda: encode_basis(basis, w.y, folds, ALPHAS), match)
    refused(lambda: encode_joint(bases, [(w.x, w.test)], w.y, folds, ALPHAS, [1.0]), match)


@pytest.mark.parametrize("to", [list, pandas.DataFrame], ids=["list", "table"])
def test_what_is_no_array_is_named(to) -> None:
    w = world(15, True)
    kernel, test, folds, data = w.x @ w.x.T, w.test @ w.x.T, w.picture_folds, w.data
    counts, told = data.counts, f": found .*{to.__name__}, expected a NumPy or CuPy array$"
    bases = joint_bases(kernel, counts, folds, test)
    voxels, voxels_test = voxels_of(w, 30)
    refused(lambda: encode_primal(to(w.x), data, folds, ALPHAS, w.test), f"^features{told}")
    refused(lambda: encode_primal(w.x, data, folds, ALPHAS, to(w.test)), f"^test{told}")
    refused(lambda: encode_dual(to(kernel), data, folds, ALPHAS, test), f"^kernel{told}")
    refused(lambda: kernel_basis(to(kernel), counts, test), f"^kernel{told}")
    refused(lambda: kernel_basis(kernel, counts, to(test)), f"^others{told}")
    refused(lambda: joint_bases(kernel, counts, folds, to(test)), f"^test{told}")
    refused(
        lambda: encode_joint(bases, [(to(w.x), w.test)], data, folds, ALPHAS, [1]), f"^space{told}"
    )
    refused(lambda: decode_bases(to(voxels), w.picture, voxels_test, w.folds, 60), f"^voxels{told}")
    refused(lambda: decode_bases(voxels, w.picture, to(voxels_test), w.folds, 60), f"^test{told}")
    refused(lambda: pearson(w.y, to(w.y)), f"^b{told}")
    refused(lambda: p_permutation(to(w.y), w.y, 10, 0), f"^predicted{told}")
    refused(
        lambda: collapse(to(w.y), w.picture), r"^responses: found .*, expected a NumPy array or"
    )
    read = lambda start, stop: to(w.x[:, start:stop])  # noqa: E731
    made = decode_bases(voxels, w.picture, voxels_test, w.folds, 60)
    refused(
        lambda: list(decode_cv(made, read, 15, ALPHAS, block=4)),
        rf"^targets 0 to 4: read {to.__name__}, expected a NumPy array \(60, 4\)",
    )


def test_a_dataset_is_read_before_it_is_features(tmp_path: Path) -> None:
    w = world(15, True)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"], file["y"] = w.x, w.y
        refused(
            lambda: encode_primal(file["x"], w.data, w.picture_folds, ALPHAS, w.test),
            "^features: found h5py.*Dataset, expected a NumPy",
        )
        np.testing.assert_array_equal(collapse(file["y"], w.picture).deviation, w.data.deviation)


def spoilt(kernel: np.ndarray, value: float) -> np.ndarray:
    kernel = kernel.copy()
    kernel[3, 3] = value
    return kernel


@pytest.mark.parametrize("form", ["basis", "basis through0", "dual", "dual through0", "joint"])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda k: spoilt(k, np.nan), r"^kernel \(60, 60\): numbers that are not finite; make kernels"),
        (lambda k: spoilt(k, np.inf), r"^kernel \(60, 60\): numbers that are not finite; make kernels"),
        (lambda k: -k, r"^kernel \(60, 60\): not positive, .* expected features @ features.T"),
        (lambda k: spoilt(k, -k.trace() / 2), r"^kernel \(60, 60\): not positive, .* is"),
        (lambda k: k[:, 1:], r"^kernel \(60, 59\).*: expected "),
        (lambda k: k[1:, 1:], r"kernel \(59, 59\).*: expected "),
        (lambda k: k[0], r"kernel \(60,\).*: expected "),
        (lambda k: k + np.eye(60, k=1) * k.max(), "not symmetric"),
        (lambda k: np.ldexp(k, 1010), "^kernel .* so large that float64 does not hold"),
    ],
    ids=["nan", "inf", "negative", "indefinite", "width", "size", "axes", "asymmetric", "huge"],
)  # fmt: skip
def test_kernels_that_are_none(form: str, change, match: str) -> None:
    w = world(15, True)
    kernel, test, data, folds = w.x @ w.x.T, w.test @ w.x.T, w.data, w.picture_folds
    wrong = change(kernel)
    intercept = "through0" not in form
    call = {
        "basis": lambda: kernel_basis(wrong, data.counts, test, intercept),
        "dual": lambda: encode_dual(wrong, data, folds, ALPHAS, test, intercept=intercept),
        "joint": lambda: joint_bases(wrong, data.counts, folds, test),
    }
    with np.errstate(all="ignore"):
        refused(call[form.split()[0]], match)


@pytest.mark.parametrize("far", [0.1, 1e6])
def test_a_kernel_that_is_the_same_for_every_picture_is_told_so_and_not_called_negative(
    far,
) -> None:
    w = world(15, True)
    same = far * np.random.default_rng(0).normal(size=(1, 15))
    kernel = np.repeat(same, 60, 0) @ np.repeat(same, 60, 0).T
    for wrong in (kernel, 0 * kernel, (kernel / 3).astype("f4")):
        refused(
            lambda k=wrong: encode_dual(k, w.data, w.picture_folds, ALPHAS, k[:2]),
            "the same (for|in) every",
        )
        kernel_basis(wrong, w.data.counts, wrong[:2])


def test_counts_of_a_kernel() -> None:
    w = world(15, True)
    kernel, test = w.x @ w.x.T, w.test @ w.x.T
    refused(lambda: kernel_basis(kernel, w.data.counts[1:], test), r"counts \(59,\): expected")
    refused(
        lambda: kernel_basis(kernel, w.data.counts * 0, test), r"^counts \(60,\): expected numbers"
    )


def test_spaces_and_ratios() -> None:
    w = world(15, True)
    kernel, test = w.x @ w.x.T, w.test @ w.x.T
    bases = joint_bases(kernel, w.data.counts, w.picture_folds, test)
    fit = partial(encode_joint, bases, data=w.data, folds=w.picture_folds, alphas=ALPHAS)
    for spaces in ([w.x], [(w.x,)], (w.x, w.test), [(w.x, w.test, w.test)]):
        refused(
            lambda s=spaces: fit(s, ratios=[1.0]), r"^spaces: number 0 is a \w+, expected a list of"
        )
    for ratios in (1.0, "1", ["a"], None, [], [[1.0]], [-1.0], [np.nan]):
        match = "^ratios: found .*, expected a list of finite numbers, none below 0"
        refused(lambda r=ratios: fit([(w.x, w.test)], ratios=r), match)
    with np.errstate(all="ignore"):
        refused(lambda: fit([(w.x * 1e-200, w.test)], ratios=[1.0]), "^space: numbers so small")


def test_readers_of_targets() -> None:
    w = world(7, True)
    voxels, test = voxels_of(w, 30)
    bases = decode_bases(voxels, w.picture, test, w.folds, 60)
    solve = lambda read, n=7: list(decode_cv(bases, read, n, ALPHAS, block=5))  # noqa: E731
    refused(lambda: solve(w.x), "^read_targets: found ndarray, expected a function")
    refused(lambda: solve(lambda a, b: w.x), r"^targets 0 to 5: read \(60, 7\), expected \(60, 5\)")
    hole = w.x.copy()
    hole[3, 6] = np.nan
    refused(lambda: solve(lambda a, b: hole[:, a:b]), "^targets 5 to 7: target 6 is not finite")
    large, small = w.x.copy(), decode_bases(voxels.astype("f4"), w.picture, test, w.folds, 60)
    large[:, 6] *= 1e30
    refused(
        lambda: list(decode_cv(small, lambda a, b: large[:, a:b], 7, ALPHAS, block=5)),
        "^targets 5 to 7: target 6 is so large that float32 does not hold its squares",
    )
    solve(lambda a, b: large[:, a:b])
    for n in (None, 2.5, "7"):
        refused(
            lambda n=n: solve(lambda a, b: w.x[:, a:b], n), "^n_targets: found .* a whole number"
        )


@pytest.mark.parametrize("n_nulls", [10.5, "10", None, 0])
def test_nulls_are_a_whole_number(n_nulls) -> None:
    x = np.random.default_rng(0).normal(size=(20, 3))
    refused(lambda: p_permutation(x, x, n_nulls, 0), "^n_nulls: found .*, expected a whole number")


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_numbers_whose_squares_are_lost_are_told_truly(scale: float) -> None:
    w = world(15, True)
    match = (
        f"numbers so {'small' if scale < 1 else 'large'} that float64 does not hold their squares"
    )
    with np.errstate(all="ignore"):
        refused(
            lambda: encode_primal(w.x * scale, w.data, w.picture_folds, ALPHAS, w.test),
            f"^features: {match}",
        )
        y = w.y.copy()
        y[:, 4] *= scale
        refused(
            lambda: collapse(y, w.picture),
            "^responses: column 4 is of numbers whose squares float64 does",
        )
        for p in (30, 200):
            voxels, test = (a * scale for a in voxels_of(w, p))
            refused(
                lambda v=voxels, t=test: decode_bases(v, w.picture, t, w.folds, 60),
                f"^voxels: {match}",
            )


def test_groups_that_are_missing_are_refused() -> None:
    groups = np.array([1.0] * 30 + [np.nan] * 30)
    refused(lambda: collapse(world(15, False).y, groups), r"^groups \(60,\): found NaN, expected")
    refused(lambda: grouped_folds(groups, 2, 0), r"^groups \(60,\): found NaN, expected")
    for n_folds in (1, 2.5, None):
        refused(
            lambda n=n_folds: grouped_folds(np.arange(9), n, 0), "n_folds = .*: expected at least 2"
        )
    named = grouped_folds(np.array(["a", "b", "c"] * 3), 3, 0)
    np.testing.assert_array_equal(named[:3], named[3:6])
