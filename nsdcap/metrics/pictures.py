"""How near predicted pictures are to those shown."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from nsdcap.errors import DataError, UsageError, first_line
from nsdcap.metrics.similarity import unit


class TwoWay(NamedTuple):
    """Share (n,) of wrong pictures that each right one beats; the mean is the score, chance 0.5.

    ``among_shown``: the prediction is held, the shown pictures are told apart (the usual direction).
    ``among_predicted``: the shown picture is held, the predictions are told apart.
    """

    among_shown: np.ndarray
    among_predicted: np.ndarray


def two_way_identification(predicted: np.ndarray, shown: np.ndarray) -> TwoWay:
    """Two-way identification by Pearson r over all pairs; a tie counts one half.

    predicted (n, d), shown (n, d), n at least 2. Both directions: see ``TwoWay``.

    Raises
    ------
    UsageError
        Shapes differ or n < 2.
    """
    if predicted.shape != shown.shape or len(predicted) < 2:
        raise UsageError(
            f"two-way identification: found shapes {predicted.shape} and {shown.shape}, expected "
            "two equal shapes (n, d) with n of 2 or more"
        )
    return two_way(unit(_centred(predicted)) @ unit(_centred(shown)).T)


def two_way(similarity: np.ndarray) -> TwoWay:
    """Two-way identification from the similarity (n, n) of each prediction, a row, with each shown picture.

    A tie counts one half. What has no similarity (NaN: features that do not vary) has no share, and is no
    rival of others'.
    """
    right = np.diag(similarity)
    return TwoWay(*(_beaten(s, right) for s in (similarity, similarity.T)))


def _beaten(similarity: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Share (n,) of the other entries of each row that ``right`` (n,), its own on the diagonal, beats."""
    rivals = np.isfinite(similarity).sum(1) - 1.0
    below, equal = (similarity < right[:, None]).sum(1), (similarity == right[:, None]).sum(1)
    known = np.isfinite(right) & (rivals > 0)
    beaten = (below + 0.5 * (equal - 1)) / np.where(known, rivals, 1)
    return np.where(known, beaten, np.nan)


def pixcorr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson r (n,) over all pixels and channels of pictures a and b, both (n, S, S, 3).

    A picture of one colour: NaN.
    """
    _agree("pixcorr", a, b)
    x, y = (_centred(p.reshape(len(p), -1)) for p in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity (n,) of pictures a and b, both (n, S, S, 3) uint8, S at least 11.

    By scikit-image on grey in [0, 1]: Gaussian weights, sigma 1.5, population covariance, data range 1.
    """
    from skimage.color import rgb2gray
    from skimage.metrics import structural_similarity

    _agree("ssim", a, b)
    given = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return np.array(
        [
            structural_similarity(rgb2gray(x), rgb2gray(y), data_range=1.0, **given)
            for x, y in zip(a, b, strict=True)
        ]
    )


def why_no_ssim() -> str:
    """Why SSIM cannot be computed here; "" if it can."""
    try:
        import skimage.metrics  # noqa: F401
    except ImportError as error:
        return (
            f"scikit-image cannot be imported ({first_line(error)}): pip install 'nsdcap[metrics]'"
        )
    return ""


def squared(picture: np.ndarray, size: int) -> np.ndarray:
    """A picture (h, w, 3) uint8 resized to (size, size, 3) uint8 by antialiased bilinear filtering."""
    if picture.shape[:2] == (size, size):
        return picture
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR))


def opened(path: Path) -> np.ndarray:
    """A picture file's pixels (h, w, 3) uint8. DataError where it cannot be read as one."""
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: cannot be read as a picture ({first_line(error)}); write it again as PNG or JPEG"
        ) from error


def _agree(name: str, a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise UsageError(f"{name}: found {a.shape} and {b.shape}, expected equal shapes")


def _centred(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    return x - x.mean(-1, keepdims=True)
