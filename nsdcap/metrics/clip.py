"""CLIP's scores of captions, of every caption with every picture (Hessel et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

PREFIX, WEIGHT = "A photo depicts ", 2.5
COSINE, CLIP_S, REFCLIP_S = METRICS = ("CLIP cosine", "CLIP-S", "RefCLIP-S")


def clip_pairs(
    embed: Callable[[list[str]], np.ndarray],
    arms: dict[str, list[str]],
    shown: np.ndarray,
    references: Sequence[Sequence[str]],
) -> dict[str, dict[str, np.ndarray]]:
    """``METRICS`` of every caption i with every picture j, (n, n) float64, for each arm.

    Cosine: of caption and picture. CLIP-S: 2.5 max(cosine, 0) of the caption after "A photo depicts ".
    RefCLIP-S: harmonic mean of CLIP-S and the largest cosine with one of the picture's references,
    both after that prefix, or 0. ``embed`` gives texts' CLIP embeddings (k, d) of unit length, ``shown``
    (n, d) are the pictures', ``arms`` the captions of each arm, ``references`` n lists.
    """
    starts = np.cumsum([0, *map(len, references[:-1])])
    pictures = shown.T.astype(np.float64)
    flat = [PREFIX + text for texts in references for text in texts]
    known = embed(flat).T.astype(np.float64)
    found = {}
    for arm, captions in arms.items():
        prefixed = embed([PREFIX + text for text in captions])
        picture = WEIGHT * np.maximum(prefixed @ pictures, 0)
        text = np.maximum(np.maximum.reduceat(prefixed @ known, starts, axis=1), 0)
        both = picture + text
        mean = np.divide(2 * picture * text, both, out=np.zeros_like(both), where=both > 0)
        cosine = embed(captions) @ pictures
        found[arm] = dict(zip(METRICS, (cosine, picture, mean), strict=True))
    return found


def definitions(model: str) -> dict[str, str]:
    """What each of ``METRICS`` is, computed by the CLIP of that name."""
    after = f'after "{PREFIX}", by {model}'
    return {
        COSINE: f"cosine of the caption's and the shown picture's embeddings, by {model}, mean",
        CLIP_S: f"2.5 max(cosine, 0) of caption and shown picture, {after}, mean; "
        "published ones are of ViT-B/32",
        REFCLIP_S: "harmonic mean of CLIP-S and the largest cosine of caption and reference, or 0, "
        f"{after}, mean over captions; published ones are of ViT-B/32",
    }
