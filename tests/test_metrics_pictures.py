"""Pictures' scores against explicit loops."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import structural_similarity

from nsdcap.errors import DataError, UsageError
from nsdcap.metrics.pictures import opened, pixcorr, squared, ssim, two_way, two_way_identification
from nsdcap.metrics.similarity import clip_similarity, wins


def test_two_way_equals_a_double_loop():
    rng = np.random.default_rng(0)
    shown = rng.normal(size=(17, 6))
    predicted = shown + 2 * rng.normal(size=shown.shape)
    n = len(shown)
    r = np.array([[np.corrcoef(p, s)[0, 1] for s in shown] for p in predicted])
    among_shown = [np.mean([r[i, i] > r[i, j] for j in range(n) if j != i]) for i in range(n)]
    among_predicted = [np.mean([r[i, i] > r[j, i] for j in range(n) if j != i]) for i in range(n)]
    found = two_way_identification(predicted, shown)
    np.testing.assert_allclose(found.among_shown, among_shown)
    np.testing.assert_allclose(found.among_predicted, among_predicted)
    assert not np.allclose(found.among_shown, found.among_predicted)


def test_two_way_extremes():
    shown = np.random.default_rng(0).normal(size=(8, 5))
    assert two_way_identification(shown, shown).among_shown.mean() == 1
    same = np.tile(shown[:1], (8, 1))
    assert two_way_identification(same, same).among_shown.mean() == pytest.approx(0.5)
    with pytest.raises(UsageError, match="two-way"):
        two_way_identification(shown[:1], shown[:1])


def test_clip_similarity_averages_samples():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 4)), rng.normal(size=(5, 3, 4))
    expected = [
        np.mean([x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in ys])
        for x, ys in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(clip_similarity(a, b), expected)
    np.testing.assert_allclose(clip_similarity(a, a), 1)


def test_wins_with_ties():
    found = wins(np.array([1.0, 2, 3, 4]), np.array([0.0, 2, 4, 0]))
    assert (found.value, found.n, found.ties) == (pytest.approx(2 / 3), 3, 1)
    assert found.low == pytest.approx(0.0943, abs=1e-3)  # Clopper-Pearson of 2 in 3
    assert np.isnan(wins(np.ones(2), np.ones(2)).value)


def test_pixcorr():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    b = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    expected = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(pixcorr(a, b), expected)
    assert np.isnan(pixcorr(np.zeros_like(a), b)).all()


def test_two_way_counts_ties_by_half_and_leaves_out_what_has_no_similarity():
    similarity = np.array([[0.5, 0.5, 0.1], [0.2, 0.3, 0.9], [0.4, np.nan, 0.4]])
    found = two_way(similarity)
    # its own entry against the two others of its row, and of its column
    np.testing.assert_allclose(found.among_shown, [0.75, 0.5, 0.5])
    np.testing.assert_allclose(found.among_predicted, [1, 0, 0.5])
    similarity[1, 1] = np.nan
    assert np.isnan(
        [two_way(similarity).among_shown[1], two_way(similarity).among_predicted[1]]
    ).all()
    np.testing.assert_allclose(two_way(similarity).among_shown[[0, 2]], [0.75, 0.5])
    assert np.isnan(two_way(np.ones((1, 1))).among_shown).all()


@pytest.mark.parametrize("side", [16, 40])
def test_ssim_is_scikit_images_on_grey(side):
    """The grey and the Gaussian's settings written out; the library's own function on them."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    b = np.clip(a + rng.normal(0, 40, a.shape), 0, 255).astype(np.uint8)
    grey = [x / 255 @ np.array([0.2125, 0.7154, 0.0721]) for x in (a, b)]
    expected = [
        structural_similarity(
            x,
            y,
            win_size=11,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
        )
        for x, y in zip(*grey, strict=True)
    ]
    np.testing.assert_allclose(ssim(a, b), expected, atol=1e-9)
    np.testing.assert_allclose(ssim(a, a), 1)
    with pytest.raises(UsageError, match="ssim: found"):
        ssim(a, b[:2])


def test_squared_is_what_torch_calls_antialiased_bilinear():
    from torch import from_numpy
    from torch.nn.functional import interpolate

    picture = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    given = {"mode": "bilinear", "antialias": True}
    expected = interpolate(from_numpy(picture).permute(2, 0, 1)[None].float(), (25, 25), **given)
    found = squared(picture, 25).astype(float)
    assert np.abs(found - expected[0].permute(1, 2, 0).numpy()).max() < 1
    np.testing.assert_array_equal(squared(picture[:, :60], 60), picture[:, :60])


def test_a_file_that_is_no_picture_or_far_too_large_is_told(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(path)
    assert opened(path).shape == (20, 20, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"a\.png: cannot be read as a picture \(Image size"):
        opened(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"a\.png: cannot be read as a picture"):
        opened(path)
