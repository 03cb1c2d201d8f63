"""What the solvers refuse, each with its one error; constant targets; numbers far from 0."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import h5py
import numpy as np
import pytest
from test_ridge import ALPHAS, N_TARGETS, World, sklearn_ridge, trial_scores, world
from test_ridge_decode import decode, joined, voxels_of

from nsdcap.config import Config
from nsdcap.decode_bases import decode_bases
from nsdcap.folds import Collapsed, collapse
from nsdcap.kernel import Pictures, z_v_kernels
from nsdcap.paths import Cell, artefact
from nsdcap.ridge import blocks
from nsdcap.ridge_decode import decode_cv
from nsdcap.ridge_encode import encode_basis, encode_dual, encode_primal, kernel_basis
from nsdcap.ridge_estimator import RidgeCV
from nsdcap.ridge_joint import encode_joint, joint_bases
from nsdcap.streams import fitting_block, free_memory

pytestmark = pytest.mark.filterwarnings("ignore:.*targets want a penalty at an end:UserWarning")

FORMS = ["primal", "dual", "joint"]


def encode(form: str, w: World, data: Collapsed | None = None, folds=None, **options):
    """A model of the test's features, however it is solved."""
    data = w.data if data is None else data
    folds = w.picture_folds if folds is None else folds
    if form == "primal":
        return encode_primal(w.x, data, folds, ALPHAS, w.test, **options)
    kernel, test = w.x @ w.x.T, w.test @ w.x.T
    if form == "dual":
        return encode_dual(kernel, data, folds, ALPHAS, test, **options)
    if form == "basis":
        return encode_basis(
            kernel_basis(kernel, w.data.counts, test), data, folds, ALPHAS, **options
        )
    bases = joint_bases(kernel, w.data.counts, folds, test)
    return encode_joint(bases, [(w.x, w.test)], data, folds, ALPHAS, [1.0], **options)[1]


# --- targets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1000.7, -7e-9, 0.0])
@pytest.mark.parametrize("form", [*FORMS, "primal common", "dual common", "through0"])
def test_a_constant_target_of_encoding_scores_0(form: str, value: float, dtype: str) -> None:
    w = world(15, True)
    y = w.y.astype(dtype)
    y[:, 2] = value
    options = {"per_target": False} if "common" in form else {}
    options |= {"intercept": False} if form == "through0" else {}
    kind = "primal" if form == "through0" else form.split()[0]
    fit = encode(kind, w, collapse(y, w.picture), **options)
    assert (fit.cv_scores[:, 2] == 0).all()
    if form != "through0":
        np.testing.assert_allclose(fit.predictions[:, 2], y[0, 2], rtol=1e-6)
    others = np.arange(N_TARGETS) != 2
    expected = encode(kind, w, collapse(y[:, others], w.picture), **options)
    np.testing.assert_allclose(fit.cv_scores[:, others], expected.cv_scores, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(fit.alpha_index[others], expected.alpha_index)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1000.7, -7e-9, 0.0])
@pytest.mark.parametrize("form", ["basis", "pooled", "common"])
def test_a_constant_target_of_decoding_scores_0(form: str, value: float, dtype: str) -> None:
    w = world(7, True)
    voxels, test = (a.astype(dtype) for a in voxels_of(w, 30))
    latents = w.x.astype(dtype)
    latents[:, 2] = value
    options = {"per_target": False} if form == "common" else {"form": form}
    found = decode(w, voxels, test, latents=latents, **options)
    np.testing.assert_array_equal(joined(found, "cv_r2")[2], 0)
    np.testing.assert_allclose(joined(found, "predictions")[:, 2], latents[0, 2], rtol=1e-6)
    others = np.arange(7) != 2
    expected = decode(w, voxels, test, latents=latents[:, others], **options)
    np.testing.assert_array_equal(
        joined(found, "alpha_index")[others], joined(expected, "alpha_index")
    )
    if form == "common":  # the mean over targets, of which one scores 0
        np.testing.assert_allclose(
            found[0].cv_scores * 7 / 6, expected[0].cv_scores, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("form", FORMS)
def test_responses_far_from_0_keep_their_digits(form: str) -> None:
    """float32 responses about 1e4, whose repeats' means float32 holds to a thousandth."""
    w = world(15, True)
    y = (w.y / w.y.std(0) + 1e4).astype("f4")
    fit = encode(form, w, collapse(y, w.picture))
    wide = encode(form, w, collapse(y.astype("f8"), w.picture))
    np.testing.assert_allclose(fit.cv_scores, wide.cv_scores, atol=3e-7)


def test_latents_far_from_0_keep_their_digits() -> None:
    """float64 latents about 1e4, decoded in the voxels' float32."""
    w = world(7, True)
    voxels, test = (a.astype("f4") for a in voxels_of(w, 30))
    far = decode(w, voxels, test, latents=w.x + 1e4)
    near = decode(w, voxels, test, latents=w.x)
    for name in ("cv_scores", "alpha_index"):
        np.testing.assert_allclose(joined(far, name), joined(near, name), atol=1e-5)
    np.testing.assert_allclose(joined(far, "y_mean"), joined(near, "y_mean") + 1e4, rtol=1e-12)


# --- features far from 0 ------------------------------------------------------------------------


@pytest.mark.parametrize("p", [15, 120], ids=["primal", "dual"])
def test_estimator_of_features_far_from_0_equals_sklearn(p: int) -> None:
    w = world(p, True)
    x = w.x[w.picture] + 1e5
    model = RidgeCV(ALPHAS, cv=4).fit(x, w.y, w.picture)
    reference = sklearn_ridge(x, w.y, model.alpha_)
    expected = reference.predict(w.test + 1e5)
    np.testing.assert_allclose(model.coef_, reference.coef_, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(model.predict(w.test + 1e5), expected, rtol=1e-6)
    np.testing.assert_allclose(
        model.cv_scores_, trial_scores(x, w.y, w.folds, ALPHAS), rtol=1e-6, atol=1e-8
    )


def test_kernel_of_z_v_far_from_0_keeps_its_digits(tmp_path) -> None:
    rng = np.random.default_rng(0)
    ids, shown = np.arange(3, 33), rng.integers(1, 4, 30)
    found = {
        1: (ids, rng.normal(size=(30, 70))),
        None: (np.array([1, 2]), rng.normal(size=(2, 70))),
    }
    spaces = []
    for subject, (nsd_id, z_v) in found.items():
        file = artefact(tmp_path, Cell("features", subject))
        file.parent.mkdir(exist_ok=True)
        with h5py.File(file, "w") as written:
            written["nsd_id"], written["z_v"] = nsd_id, (z_v + 1e5).astype("f4")
        spaces.append((z_v + 1e5).astype("f4").astype("f8"))
    spaces = [x - np.average(spaces[0], 0, shown) for x in spaces]
    settings = replace(Config(), ridge=replace(Config().ridge, block=32, device="cpu"))
    pictures = Pictures(ids, shown, np.arange(30) % 5, np.array([1, 2]))
    kernels = z_v_kernels(1, pictures, tmp_path, settings)
    for kernel, x in zip(kernels, spaces, strict=True):
        np.testing.assert_allclose(kernel, x @ spaces[0].T, atol=1e-8)


# --- responses, kernels and bases that do not fit -----------------------------------------------


def spoilt(array: np.ndarray, value: float) -> np.ndarray:
    array = array.astype(np.result_type(array, np.float64))
    array[..., -1] = value
    return array


BAD_RESPONSES = [
    ("nan", lambda d: replace(d, deviation=spoilt(d.deviation, np.nan)), "column 6 is not finite"),
    ("inf", lambda d: replace(d, deviation=spoilt(d.deviation, np.inf)), "column 6 is not finite"),
    ("within", lambda d: replace(d, within=spoilt(d.within, np.nan)), r"within \(7,\)"),
    ("below 0", lambda d: replace(d, within=spoilt(d.within, -1)), r"within \(7,\)"),
    ("centre", lambda d: replace(d, centre=spoilt(d.centre, np.nan)), r"centre \(7,\)"),
    ("counts", lambda d: replace(d, counts=spoilt(d.counts, 0)), r"counts \(60,\)"),
    ("nan counts", lambda d: replace(d, counts=spoilt(d.counts, np.nan)), r"counts \(60,\)"),
    ("few counts", lambda d: replace(d, counts=d.counts[1:]), r"counts \(59,\): expected \(60,\)"),
    ("few within", lambda d: replace(d, within=d.within[1:]), r"within \(6,\): expected \(7,\)"),
    ("rows", lambda d: replace(d, deviation=d.deviation[1:]), r"deviation \(59, 7\): expected"),
    ("axes", lambda d: replace(d, deviation=d.deviation[:, 0]), r"responses \(60,\): expected"),
    ("integers", lambda d: replace(d, deviation=d.deviation.astype(int)), "responses are int64"),
    ("none", lambda d: replace(d, deviation=d.deviation[:, :0]), r"responses \(60, 0\)"),
]  # fmt: skip


@pytest.mark.parametrize("form", [*FORMS, "basis"])
@pytest.mark.parametrize(
    ("change", "match"),
    [case[1:] for case in BAD_RESPONSES],
    ids=[case[0] for case in BAD_RESPONSES],
)
def test_responses_that_do_not_fit_are_refused(form: str, change, match: str) -> None:
    w = world(15, True)
    data = change(w.data)
    with pytest.raises(ValueError, match=match):
        encode(form, w, data)


def test_bases_of_other_pictures_are_refused() -> None:
    w, other = world(15, True), world(15, True, seed=1)
    kernel, test = w.x @ w.x.T, w.test @ w.x.T
    assert (w.data.counts != other.data.counts).any()
    basis = kernel_basis(kernel, w.data.counts, test)
    few = collapse(w.y[w.picture < 59], w.picture[w.picture < 59])
    bases = joint_bases(kernel, w.data.counts, w.picture_folds, test)
    for data, match in ((other.data, "not those that the kernel"), (few, "for 60 pictures")):
        with pytest.raises(ValueError, match=match):
            encode_basis(basis, data, w.picture_folds, ALPHAS)
        with pytest.raises(ValueError, match=match):
            encode_joint(bases, [(w.x, w.test)], data, w.picture_folds, ALPHAS, [1.0])
    with pytest.raises(ValueError, match=r"folds \(59,\)"):
        encode_basis(basis, w.data, w.picture_folds[1:], ALPHAS)


def test_encode_basis_is_encode_dual_with_the_basis_made_before() -> None:
    w = world(40, True)
    kernel, test = w.x @ w.x.T, w.test @ w.x.T
    for intercept in (True, False):
        basis = kernel_basis(kernel, w.data.counts, test, intercept)
        found = encode_basis(basis, w.data, list(w.picture_folds), ALPHAS, 3)
        expected = encode_dual(kernel, w.data, w.picture_folds, ALPHAS, test, intercept=intercept)
        np.testing.assert_allclose(found.cv_scores, expected.cv_scores, rtol=1e-9)
        np.testing.assert_allclose(found.predictions, expected.predictions, rtol=1e-9)


@pytest.mark.parametrize("form", ["dual", "joint"])
def test_a_kernel_that_is_not_symmetric_is_refused(form: str) -> None:
    w = world(15, True)
    kernel, test = w.x @ w.x.T, w.test @ w.x.T
    kernel[3, 50] += 0.01 * abs(kernel).max()
    call = {
        "dual": lambda: encode_dual(kernel, w.data, w.picture_folds, ALPHAS, test),
        "joint": lambda: joint_bases(kernel, w.data.counts, w.picture_folds, test),
    }
    with pytest.raises(ValueError, match="not symmetric"):
        call[form]()


def test_a_kernel_of_float32_is_symmetric_enough() -> None:
    w = world(120, True)
    x = w.x.astype("f4")
    kernel = (x @ x.T.copy()).astype("f8")
    encode_dual(kernel, w.data, w.picture_folds, ALPHAS, w.test @ w.x.T)


# --- folds and blocks ---------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 3.3, 1e4])
@pytest.mark.parametrize("form", FORMS)
def test_a_fold_that_trains_on_features_all_the_same_is_named(form: str, offset: float) -> None:
    w = world(15, True)
    x = np.where(w.picture_folds[:, None] == 2, w.x, 0) + offset
    with pytest.raises(ValueError, match=r"fold 2: .* the same in every row that it trains on"):
        encode(form, replace(w, x=x))
    y = np.array([[1.0, 2.0], [3.0, 4.0]])
    two = World(w.x[:2], np.arange(2), y, np.arange(2), w.test)
    with pytest.raises(ValueError, match=r"fold 0: .* the same in every row that it trains on"):
        encode(form, two)


@pytest.mark.parametrize("offset", [0.0, 3.3, 1e3])
@pytest.mark.parametrize("p", [30, 200], ids=["primal", "dual"])
def test_a_fold_that_trains_on_voxels_all_the_same_is_named(p: int, offset: float) -> None:
    w = world(7, True)
    voxels, test = voxels_of(w, p)
    voxels = np.where(w.folds[:, None] == 2, voxels, 0) + offset
    for dtype in ("f4", "f8"):
        with pytest.raises(ValueError, match="fold 2: voxels are the same in every row that it"):
            decode_bases(voxels.astype(dtype), w.picture, test.astype(dtype), w.folds, 60)


def test_folds_are_numbers_for_each_row() -> None:
    w = world(15, True)
    folds = w.picture_folds.astype(float)
    encode("primal", w, folds=list(folds))
    voxels, test = voxels_of(w, 30)
    for bad, match in (
        (np.nan, "NaN among them"),
        (0.5, "0.5 among them"),
        ("a", "expected whole"),
    ):
        spoilt = folds.astype(object if bad == "a" else float)
        spoilt[3] = bad
        for form in FORMS:
            with pytest.raises(ValueError, match=match):
                encode(form, w, folds=spoilt)
        with pytest.raises(ValueError, match=match):
            decode_bases(voxels, w.picture, test, spoilt[w.picture], 60)
        pictures = w.picture.astype(spoilt.dtype)
        pictures[3] = bad
        with pytest.raises(ValueError, match=f"picture .*{match}"):
            decode_bases(voxels, pictures, test, w.folds, 60)
    whole = decode_bases(voxels, w.picture.astype(float), test, w.folds.astype(float), 60)
    assert len(whole.folds) == 4


@pytest.mark.parametrize("block", [0, -3, 2.5, None])
def test_blocks_are_whole_numbers_above_0(block) -> None:
    w = world(7, True)
    voxels, test = voxels_of(w, 30)
    bases = decode_bases(voxels, w.picture, test, w.folds, 60)
    read = partial(lambda y, start, stop: y[:, start:stop], w.x)
    for call in (
        lambda: blocks(10, block),  # at once
        lambda: collapse(w.y, w.picture, block),
        lambda: decode_cv(bases, read, 7, ALPHAS, block=block),
        lambda: RidgeCV(block=block).fit(w.x, w.y[:60]),
        lambda: fitting_block(np, block, 8.0),
        *(partial(encode, form, w, block=block) for form in FORMS),
    ):
        with pytest.raises(ValueError, match=r"block: found .*, expected a whole number above 0"):
            call()


def test_blocks_cover_all_and_fit_the_memory() -> None:
    assert [(part.start, part.stop) for part in blocks(7, np.int64(3))] == [(0, 3), (3, 6), (6, 7)]
    assert list(blocks(0, 3)) == []
    assert fitting_block(np, 2048, 1e30) == 2048

    class Device:
        """A GPU with 600 bytes free, 300 of them in its pool."""

        __name__ = "cupy"
        mem_info = (300, 1000)

        def free_bytes(self) -> int:
            return 300

    gpu = Device()
    gpu.cuda, gpu.Device, gpu.get_default_memory_pool = gpu, lambda: gpu, lambda: gpu
    assert free_memory(gpu) == 600
    assert [fitting_block(gpu, 64, size) for size in (1, 10, 1000)] == [64, 20, 1]


# --- columns that say nothing -------------------------------------------------------------------


@pytest.mark.parametrize("n", [60, 12], ids=["primal", "dual"])
def test_constant_columns_are_refused_however_it_is_solved(n: int) -> None:
    w = world(15, False)
    x, y = w.x[:n].copy(), w.y[:n]
    x[:, 3] = 0.1
    with pytest.raises(ValueError, match=r"X \(.*\): 1 columns are the same .* is column 3"):
        RidgeCV(cv=3).fit(x, y)
    # without an intercept it is one, and predicts
    model = RidgeCV(ALPHAS, cv=3, fit_intercept=False).fit(x, y)
    reference = sklearn_ridge(x, y, model.alpha_, intercept=False)
    np.testing.assert_allclose(model.coef_, reference.coef_, rtol=1e-6, atol=1e-9)
    assert abs(model.coef_[:, 3]).min() > 0
    x[:, 3] = 0
    with pytest.raises(ValueError, match=r"X \(.*\): 1 columns are 0 .* is column 3"):
        RidgeCV(cv=3, fit_intercept=False).fit(x, y)


@pytest.mark.parametrize("n", [0, 5])
def test_nothing_at_all_is_refused(n: int) -> None:
    w = world(7, True)
    voxels, test = voxels_of(w, 30)
    empty = np.zeros((n, 0)) if n else np.zeros((0, 3))
    with pytest.raises(ValueError, match=r"expected \(n_trials, t\)"):
        collapse(empty, np.zeros(n, dtype=int))
    with pytest.raises(ValueError, match="n and p above 0"):
        decode_bases(empty, np.zeros(n, dtype=int), empty, np.zeros(n), 5)
    bases = decode_bases(voxels, w.picture, test, w.folds, 60)
    with pytest.raises(ValueError, match="n_targets: found 0"):
        decode_cv(bases, lambda start, stop: w.x[:, start:stop], 0, ALPHAS)
    with pytest.raises(ValueError, match="expected two axes, and a column"):
        encode("primal", replace(w, x=w.x[:, :0], test=w.test[:, :0]))


def test_decoding_knows_two_forms() -> None:
    w = world(7, True)
    voxels, test = voxels_of(w, 30)
    with pytest.raises(ValueError, match="form: found 'pool', expected basis, pooled"):
        decode(w, voxels, test, form="pool")
