"""The solvers on an array type that refuses every implicit conversion, and on a GPU where there is one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import refusing_arrays
from test_ridge import ALPHAS, world
from test_ridge_decode import joined, voxels_of

from nsdcap.decode_bases import decode_bases
from nsdcap.ridge_decode import decode_cv
from nsdcap.ridge_encode import encode_dual, encode_primal
from nsdcap.ridge_joint import encode_joint, joint_bases
from nsdcap.stats import gain_p, gain_r2, p_permutation, pearson
from nsdcap.stats_means import mean_gain_error, mean_r_error


@pytest.fixture(params=["refusing", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request):
    return refusing_arrays if request.param == "refusing" else request.getfixturevalue("cupy")


def close(found, expected) -> None:
    """Fits on another device; the same sums in another order on a GPU."""
    np.testing.assert_allclose(found.cv_scores, expected.cv_scores, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(found.alpha_index, expected.alpha_index)
    np.testing.assert_array_equal(found.ratio_index, expected.ratio_index)
    np.testing.assert_allclose(found.predictions, expected.predictions, rtol=1e-6)


@pytest.mark.parametrize("intercept", [True, False], ids=["intercept", "through0"])
def test_primal_and_dual(xp, intercept: bool) -> None:
    w = world(15, True)
    kernel, kernel_test = w.x @ w.x.T, w.test @ w.x.T
    rest = (w.data, w.picture_folds, ALPHAS)
    options = {"intercept": intercept, "block": 3}
    close(
        encode_primal(xp.asarray(w.x), *rest, xp.asarray(w.test), return_weights=True, **options),
        encode_primal(w.x, *rest, w.test, **options),
    )
    close(
        encode_dual(xp.asarray(kernel), *rest, xp.asarray(kernel_test), **options),
        encode_dual(kernel, *rest, kernel_test, **options),
    )


@pytest.mark.parametrize("ratios", [[1.0], [0.1, 0.5, 1.0, 2.0, 10.0]], ids=len)
def test_joint(xp, ratios) -> None:
    w, other = world(90, True), world(5, True, seed=1)
    kernel, kernel_test = w.x @ w.x.T, w.test @ w.x.T
    expected, found = (
        encode_joint(
            joint_bases(to(kernel), w.data.counts, w.picture_folds, to(kernel_test)),
            [(to(other.x), to(other.test))], w.data, w.picture_folds, ALPHAS, ratios, 3,
        )
        for to in (np.asarray, xp.asarray)
    )  # fmt: skip
    for one, two in zip(found, expected, strict=True):
        close(one, two)


@pytest.mark.parametrize("p", [30, 200], ids=["primal", "dual"])
@pytest.mark.parametrize("form", ["basis", "pooled"])
@pytest.mark.parametrize("per_target", [True, False], ids=["per_target", "common"])
@pytest.mark.parametrize("grouped", [True, False], ids=["grouped", "split"])
def test_decode(xp, p: int, form: str, per_target: bool, grouped: bool) -> None:
    w = world(7, True)
    voxels, test = voxels_of(w, p)
    folds = w.folds if grouped else np.arange(len(w.picture)) * 5 // len(w.picture)
    expected, found = (
        list(
            decode_cv(
                decode_bases(to(voxels), w.picture, to(test), folds, len(w.x)),
                lambda start, stop: w.x[:, start:stop], w.x.shape[1], ALPHAS, block=3,
                per_target=per_target, form=form,
            )
        )
        for to in (np.asarray, xp.asarray)
    )  # fmt: skip
    for name in ("predictions", "y_mean", "cv_r2"):
        np.testing.assert_allclose(
            joined(found, name), joined(expected, name), rtol=1e-6, atol=1e-9
        )
    np.testing.assert_array_equal(joined(found, "alpha_index"), joined(expected, "alpha_index"))
    for name in ("truth", "predicted"):
        sums = [sum(getattr(block, name) for block in blocks) for blocks in (found, expected)]
        assert sums[0] == pytest.approx(sums[1], rel=1e-6)


@pytest.mark.parametrize("null", ["own", "pooled", "tail"])
def test_correlation_and_its_null(xp, null: str) -> None:
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=(60, 70)).astype("f4")
    measured = rng.normal(size=(60, 70)) + 0.3 * predicted
    measured[:, 7] = 0.1
    there = xp.asarray(predicted), xp.asarray(measured)
    np.testing.assert_allclose(pearson(*there).get(), pearson(predicted, measured), rtol=1e-9)
    found = p_permutation(*there, 200, 0, null)
    for one, other in zip(found, p_permutation(predicted, measured, 200, 0, null), strict=True):
        assert np.isnan(other[7])
        # a null within rounding of a bin's edge or the tail's start may go either way on a GPU
        np.testing.assert_allclose(one.get(), other, rtol=1e-12 if null == "own" else 1e-3)


def test_gain(xp) -> None:
    joint, single, measured = np.random.default_rng(0).normal(size=(3, 60, 70))
    found = gain_r2(*(xp.asarray(x) for x in (joint, single, measured)), 50, 3)
    for one, other in zip(found, gain_r2(joint, single, measured, 50, 3), strict=True):
        np.testing.assert_allclose(one.get(), other, rtol=1e-8)
    there = [xp.asarray(x) for x in (joint, single, measured)]
    np.testing.assert_allclose(gain_p(*there), gain_p(joint, single, measured), rtol=1e-8)
    groups = np.arange(70) % np.array([[2], [3]]) == 0
    for error, k in ((mean_gain_error, 3), (mean_r_error, 2)):
        here = error(*(joint, single, measured)[-k:], groups)
        np.testing.assert_allclose(error(*there[-k:], groups).get(), here, rtol=1e-8)


def test_cupy_is_not_imported_for_numpy_arrays() -> None:
    """A finder before all others records every import of CuPy, installed or not."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parent,
    )  # fmt: skip
    assert done.stdout.split() == ["[]", "['cupy',", "'cupyx']"]


PROBE = """
import sys

class Finder:
    seen = []

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("cupy", "cupyx"):
            self.seen.append(name)

sys.meta_path.insert(0, Finder())
from test_ridge_input import ALPHAS, FORMS, encode, world
from test_ridge_decode import decode, voxels_of
from nsdcap.stats import p_permutation

w = world(7, True)
for form in FORMS:
    encode(form, w)
decode(w, *voxels_of(w, 30))
p_permutation(w.y, w.y, 10, 0)
print(Finder.seen)
for name in ("cupy", "cupyx"):  # and it would have been seen
    try:
        __import__(name)
    except ImportError:
        pass
print([name for name in Finder.seen if "." not in name])
"""


def test_the_double_refuses_what_a_gpu_refuses() -> None:
    device, host = refusing_arrays.asarray(np.ones((2, 2))), np.ones((2, 2))
    for mix in (
        lambda: device @ host,
        lambda: host @ device,
        lambda: host + device,
        lambda: np.asarray(device),
        lambda: np.sqrt(device),
        lambda: device[np.array([0])],
        lambda: refusing_arrays.einsum("ij,ij->j", device, host),
    ):
        with pytest.raises(TypeError):
            mix()
