"""Decoding by ridge against scikit-learn and himalaya on single trials; the gain."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from sklearn.model_selection import PredefinedSplit
from test_ridge import (
    ALPHAS,
    REPEATS,
    World,
    scipy_ridge,
    scipy_scores,
    sklearn_ridge,
    trial_scores,
    world,
)

from nsdcap import decode_forms
from nsdcap.decode_bases import decode_bases
from nsdcap.decode_forms import flops, make_plan
from nsdcap.folds import grouped_folds
from nsdcap.ridge_decode import decode_cv
from nsdcap.streams import ahead


def decode(w: World, voxels, test, alphas=ALPHAS, latents=None, block=3, **options):
    """Blocks of decoding w's pictures' features, as latents, from voxels of trials."""
    latents = w.x if latents is None else latents
    bases = decode_bases(voxels, w.picture, test, w.folds, len(latents))
    read = lambda start, stop: latents[:, start:stop]  # noqa: E731
    return list(decode_cv(bases, read, latents.shape[1], alphas, block=block, **options))


def voxels_of(w: World, p: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    weights = rng.normal(size=(w.x.shape[1], p))
    noise = 5 * rng.normal(size=(len(w.picture), p))
    return w.x[w.picture] @ weights + noise + 1, w.test @ weights + 1


def joined(blocks, name: str) -> np.ndarray:
    return np.concatenate([getattr(block, name) for block in blocks], axis=-1)


@REPEATS
@pytest.mark.parametrize("p", [30, 200], ids=["primal", "dual"])
@pytest.mark.parametrize("per_target", [True, False], ids=["per_target", "common"])
@pytest.mark.parametrize("relative", [True, False], ids=["relative", "absolute"])
@pytest.mark.parametrize("form", ["basis", "pooled"])
def test_decode_equals_sklearn_on_trials(
    p: int, repeats: bool, per_target: bool, relative: bool, form: str
) -> None:
    w = world(7, repeats)
    voxels, test = voxels_of(w, p)
    blocks = decode(w, voxels, test, per_target=per_target, relative=relative, form=form)
    y = w.x[w.picture]
    scores = trial_scores(voxels, y, w.folds, ALPHAS, not relative)
    index = scores.argmax(0) if per_target else np.full(y.shape[1], scores.mean(1).argmax())
    assert [(block.start, block.stop) for block in blocks] == [(0, 3), (3, 6), (6, 7)]
    if per_target:
        np.testing.assert_allclose(joined(blocks, "cv_scores"), scores, rtol=1e-6, atol=1e-8)
    else:
        np.testing.assert_allclose(blocks[0].cv_scores[:, 0], scores.mean(1), rtol=1e-6)
    np.testing.assert_array_equal(joined(blocks, "alpha_index"), index)
    found = np.take_along_axis(scores, index[None], 0)[0]
    np.testing.assert_allclose(joined(blocks, "cv_r2"), found, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(joined(blocks, "y_mean"), y.mean(0))
    expected = sklearn_ridge(voxels, y, np.array(ALPHAS)[index], not relative).predict(test)
    np.testing.assert_allclose(joined(blocks, "predictions"), expected, rtol=1e-6)


def test_decode_in_float32_stays_near_float64() -> None:
    w = world(7, True)
    voxels, test = (a.astype("f4") for a in voxels_of(w, 200))
    latents = w.x.astype("f4")
    blocks = decode(w, voxels, test, latents=latents)
    predictions = joined(blocks, "predictions")
    assert predictions.dtype == np.float32
    alphas = np.array(ALPHAS)[joined(blocks, "alpha_index")]
    model = sklearn_ridge(voxels.astype("f8"), latents[w.picture].astype("f8"), alphas)
    expected = model.predict(test.astype("f8"))
    assert np.abs(predictions - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("per_target", [True, False], ids=["per_target", "common"])
def test_decode_equals_himalaya(per_target: bool) -> None:
    from himalaya.ridge import RidgeCV as Himalaya

    w = world(7, True)
    voxels, test = voxels_of(w, 30)
    alphas = [1.0, 10.0, 100.0, 1e3, 1e4, 1e5]
    blocks = decode(w, voxels, test, alphas=alphas, per_target=per_target, relative=False)
    model = Himalaya(
        alphas, fit_intercept=True, cv=PredefinedSplit(w.folds),
        solver_params={"local_alpha": per_target},
    ).fit(voxels, w.x[w.picture])  # fmt: skip
    np.testing.assert_allclose(np.array(alphas)[joined(blocks, "alpha_index")], model.best_alphas_)
    np.testing.assert_allclose(joined(blocks, "predictions"), model.predict(test), rtol=1e-6)


@pytest.mark.parametrize("p", [80, 400], ids=["primal", "dual"])
@pytest.mark.parametrize("form", ["basis", "pooled"])
def test_decoding_keeps_six_digits_at_every_penalty(form: str, p: int) -> None:
    """float32 voxels of condition 1e6, against SciPy in float64 on trials."""
    rng = np.random.default_rng(0)
    n = 150
    k = min(2 * n, p)
    picture = rng.permutation(np.repeat(np.arange(n), 2))
    left, right = (np.linalg.qr(rng.normal(size=(side, k)))[0] for side in (2 * n, p))
    voxels = (left * np.geomspace(1, 1e-6, k) @ right.T).astype("f4")
    y = rng.normal(size=(n, 20)).astype("f4")
    folds, test = grouped_folds(picture, 5, 0), voxels[:40] + voxels[40:80]
    bases = decode_bases(voxels, picture, test, folds, n)
    largest = np.linalg.norm(voxels.astype("f8") - voxels.mean(0, dtype="f8"), 2) ** 2
    for alpha in np.geomspace(1e-8, 1, 9) * largest:
        (block,) = decode_cv(bases, lambda a, b: y[:, a:b], 20, [alpha], relative=False, form=form)
        expected = scipy_ridge(voxels, y[picture], alpha, test)
        assert np.abs(block.predictions - expected).max() < 1e-6 * np.abs(expected).max()
        scores = scipy_scores(voxels, y[picture], alpha, folds)
        np.testing.assert_allclose(block.cv_scores[0], scores, rtol=1e-6, atol=1e-6)


def test_the_next_block_is_read_while_one_is_computed() -> None:
    started = [threading.Event() for _ in range(4)]

    def read(part: slice) -> int:
        started[part.start].set()
        return part.start

    for part, value in ahead(read, [slice(i, i + 1) for i in range(4)]):
        assert part.start == value
        if value < 3:  # else this would wait for ever, and the test fail
            assert started[value + 1].wait(10)


def test_an_error_of_reading_comes_where_its_block_would() -> None:
    def read(part: slice) -> int:
        if part.start == 2:
            raise OSError("truncated")
        return part.start

    stream = ahead(read, [slice(i, i + 1) for i in range(4)])
    assert [next(stream)[1], next(stream)[1]] == [0, 1]
    with pytest.raises(OSError, match="truncated"):
        next(stream)


def test_the_form_of_fewer_operations_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    w = world(7, True)
    voxels, test = voxels_of(w, 40)
    bases = decode_bases(voxels, w.picture, test, w.folds, len(w.x))
    for n_targets, expected in ((1, "basis"), (10**6, "pooled")):
        costs = flops(bases, 10, n_targets, False)
        assert min(costs, key=lambda form: costs[form]) == expected
        plan = make_plan(bases, 10, n_targets, False)
        assert (plan.form, plan.flop, plan.groups) == (expected, costs[expected], [slice(0, 10)])
    # half of the free memory holds five of ten matrices of 60 pictures, half of each, and no more
    size = 60 * (60 + 128) * 8 / 2
    for free, form, groups in (
        (2 * 5 * size, "pooled", [slice(0, 5), slice(5, 10)]),
        (2 * size - 1, "basis", [slice(0, 10)]),
    ):
        monkeypatch.setattr(decode_forms, "free_memory", lambda xp, free=free: free)
        plan = make_plan(bases, 10, 10**6, False)
        assert (plan.form, plan.groups) == (form, groups)


def test_decode_reads_each_target_once_a_pass() -> None:
    w = world(7, True)
    voxels, test = voxels_of(w, 30)
    bases = decode_bases(voxels, w.picture, test, w.folds, len(w.x))
    for per_target, passes in ((True, 1), (False, 2)):
        reads: list[int] = []

        def read(start: int, stop: int, reads: list[int] = reads) -> np.ndarray:
            reads.extend(range(start, stop))
            return w.x[:, start:stop]

        list(decode_cv(bases, read, 7, ALPHAS, block=3, per_target=per_target))
        assert reads == list(range(7)) * passes


@pytest.mark.parametrize(
    ("per_target", "groups"), [(True, 1), (True, 2), (False, 1)], ids=["one", "groups", "common"]
)
def test_decoding_goes_on_from_any_point_to_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, per_target: bool, groups: int
) -> None:
    """As if it had been stopped after each thing that it kept; what was kept is not read again."""
    w = world(7, True)
    voxels, test = voxels_of(w, 30)
    bases = decode_bases(voxels, w.picture, test, w.folds, len(w.x))
    held = -(-len(ALPHAS) // groups) + len(ALPHAS)  # matrices of errors, and the gain's of all
    monkeypatch.setattr(decode_forms, "free_memory", lambda xp: 2 * held * 60 * (60 + 128) * 8 / 2)

    def solve(kept: dict) -> tuple[list, dict, list[int]]:
        kept, blocks, reads = dict(kept), [], []

        def read(start: int, stop: int) -> np.ndarray:
            reads.append(start)
            return w.x[:, start:stop]

        for block in decode_cv(
            bases, read, 7, ALPHAS, block=3, per_target=per_target,
            form="pooled", finished=lambda part: kept.get(part.start), recall=kept.get,
            note=lambda name, array: kept.__setitem__(name, np.copy(array)),
        ):  # fmt: skip
            kept[block.start] = block
            blocks.append(block)
        return blocks, kept, reads

    whole, kept, reads = solve({})
    assert len(reads) == 3 * (groups if per_target else 2)
    for number in range(len(kept) + 1):
        before = dict(list(kept.items())[:number])
        blocks, _, again = solve(before)
        for found, expected in zip(blocks, whole, strict=True):
            for name, value in vars(expected).items():
                assert np.array_equal(getattr(found, name), value)
        # a read less for each block or pass's scores that were kept, and all of a first pass
        spared = sum(name != "form" for name in before) + 2 * ("scores" in before)
        assert len(again) == len(reads) - spared


@pytest.mark.parametrize("split", [False, True], ids=["grouped", "split"])
@pytest.mark.parametrize("form", ["basis", "pooled"])
def test_gain_sums_equal_an_explicit_loop(form: str, split: bool) -> None:
    w = world(7, True)
    if split:
        w = replace(w, folds=np.arange(len(w.picture)) * 5 // len(w.picture))
    voxels, test = voxels_of(w, 30)
    blocks = decode(w, voxels, test, form=form)
    y, alphas = w.x[w.picture], np.array(ALPHAS)[joined(blocks, "alpha_index")]
    truth = averaged = 0.0
    for train, left in PredefinedSplit(w.folds).split():
        mean = y[train].mean(0)
        p = sklearn_ridge(voxels[train], y[train], alphas).predict(voxels[left]) - mean
        for picture in np.unique(w.picture[left]):
            truth += ((w.x[picture] - mean) ** 2).sum()
            averaged += (p[w.picture[left] == picture].mean(0) ** 2).sum()
    np.testing.assert_allclose(sum(block.truth for block in blocks), truth, rtol=1e-6)
    np.testing.assert_allclose(sum(block.predicted for block in blocks), averaged, rtol=1e-6)
    assert truth > averaged  # ridge shrinks


def test_gain_undoes_a_planted_shrinkage() -> None:
    # white voxels: all eigenvalues are n_train, so a penalty of n_train halves every prediction
    rng = np.random.default_rng(2)
    n, p = 4000, 4
    voxels = rng.normal(size=(n, p))
    latents = voxels @ rng.normal(size=(p, 6))
    w = World(latents, np.arange(n), latents, grouped_folds(np.arange(n), 4, 0), voxels)
    blocks = decode(w, voxels, voxels[:50], alphas=[0.75 * n], relative=False)
    truth, predicted = (sum(getattr(b, name) for b in blocks) for name in ("truth", "predicted"))
    assert np.sqrt(truth / predicted) == pytest.approx(2, rel=0.03)


@pytest.mark.parametrize("form", ["basis", "pooled"])
def test_folds_that_split_pictures_equal_sklearn_too(form: str) -> None:
    """Preset released cuts the trials in order, so a picture may stand on both sides."""
    w = world(7, True)
    folds = np.arange(len(w.picture)) * 5 // len(w.picture)
    voxels, test = voxels_of(w, 30)
    blocks = decode(replace(w, folds=folds), voxels, test, form=form)
    expected = trial_scores(voxels, w.x[w.picture], folds, ALPHAS)
    np.testing.assert_allclose(joined(blocks, "cv_scores"), expected, rtol=1e-6, atol=1e-9)


def test_decoding_refuses_bad_input() -> None:
    w = world(7, True)
    voxels, test = voxels_of(w, 30)
    with pytest.raises(ValueError, match="alphas"):
        decode(w, voxels, test, alphas=[1.0, -1.0])
    holed = np.where(voxels == voxels[0, 0], np.nan, voxels)
    for arguments, match in (
        ((holed, w.picture, test, w.folds, 60), "not finite"),
        ((voxels, w.picture[1:], test, w.folds, 60), "picture"),
        ((voxels, w.picture, test[:, 1:], w.folds, 60), "test"),
        ((voxels[0], w.picture, test, w.folds, 60), "voxels"),
        ((voxels, w.picture, test, 0 * w.folds, 60), "folds"),
        ((voxels.astype("i2"), w.picture, test, w.folds, 60), "voxels are int16"),
        ((voxels * (np.arange(30) > 1), w.picture, test, w.folds, 60), "2 columns are the same"),
        ((voxels, w.picture - 1, test, w.folds, 60), "rows -1"),
        ((voxels, w.picture, test, w.folds, 59), "expected 0 to 58"),
    ):
        with pytest.raises(ValueError, match=match):
            decode_bases(*arguments)
    for latents in (w.x[:-1], np.where(w.x == w.x[0, 0], np.nan, w.x)):
        bases = decode_bases(voxels, w.picture, test, w.folds, 60)
        read = partial(lambda y, start, stop: y[:, start:stop], latents)
        with pytest.raises(ValueError, match="targets 0 to 3"):
            list(decode_cv(bases, read, 7, ALPHAS, block=3))
