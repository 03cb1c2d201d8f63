"""Captions' and pictures' scores against sacrebleu itself and against explicit loops."""

from __future__ import annotations

import time

import numpy as np
import pytest
import sacrebleu
from sacrebleu.metrics import BLEU

from nsdcap import metrics
from nsdcap.errors import UsageError

WORDS = (
    "a the red blue ball box, car. in on of near field beach street snow two is 12 Dog's dog-house"
)


def captions(n: int, rng: np.random.Generator, low: int = 3, high: int = 14) -> list[str]:
    words = WORDS.split()
    return [
        " ".join(rng.choice(words, rng.integers(low, high))).capitalize() + "." for _ in range(n)
    ]


@pytest.fixture(scope="module")
def corpus() -> tuple[list[str], list[list[str]]]:
    rng = np.random.default_rng(1)
    hypotheses = [text.lower().rstrip(".") for text in captions(60, rng)]
    references = [captions(int(rng.integers(1, 6)), rng) for _ in hypotheses]
    for i in range(0, 60, 3):
        references[i][0] = hypotheses[i].capitalize() + "."
    return hypotheses, references


def streams(references: list[list[str]]) -> list[list[str | None]]:
    """sacrebleu's form: the k-th reference of every hypothesis, None where there is none."""
    most = max(len(refs) for refs in references)
    return [[refs[k] if k < len(refs) else None for refs in references] for k in range(most)]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_bleu_equals_sacrebleu(corpus, order):
    hypotheses, references = corpus
    metric = BLEU(max_ngram_order=order)
    expected = metric.corpus_score(hypotheses, streams(references))
    score, definition = metrics.bleu(hypotheses, references, order)
    assert score == pytest.approx(expected.score, abs=1e-9)
    assert str(metric.get_signature()) in definition
    assert f"BLEU-{order}" in definition


def test_default_is_corpus_bleu(corpus):
    hypotheses, references = corpus
    expected = sacrebleu.corpus_bleu(hypotheses, streams(references)).score
    assert metrics.bleu(hypotheses, references)[0] == pytest.approx(expected, abs=1e-9)


def test_repeated_words_are_clipped():
    hypotheses, references = ["the the the the the cat"], [["the cat is on the mat", "the dog"]]
    for order in (1, 2):
        expected = BLEU(max_ngram_order=order).corpus_score(hypotheses, streams(references)).score
        assert metrics.bleu(hypotheses, references, order)[0] == pytest.approx(expected)


def test_sentence_mean_equals_sacrebleu(corpus):
    hypotheses, references = corpus
    each = [
        sacrebleu.sentence_bleu(h, refs).score
        for h, refs in zip(hypotheses, references, strict=True)
    ]
    score, definition = metrics.sentence_bleu_mean(hypotheses, references)
    assert score == pytest.approx(np.mean(each), abs=1e-9)
    assert "eff:yes" in definition


def test_shuffled_statistics_equal_sacrebleu(corpus):
    hypotheses, references = corpus
    counts = metrics.bleu_counts(hypotheses, references)
    found, expected = [], []
    rng = np.random.default_rng(5)
    for _ in range(4):
        order = rng.permutation(len(hypotheses))
        found.append(metrics.bleu_of(counts, 4, columns=order))
        moved = [references[i] for i in order]
        expected.append(sacrebleu.corpus_bleu(hypotheses, streams(moved)).score)
        for i in (0, 7):
            one = sacrebleu.sentence_bleu(hypotheses[i], moved[i]).score
            assert metrics.sentence_bleus(counts, 4, order)[i] == pytest.approx(one)
    assert found == pytest.approx(expected, abs=1e-9)
    chance = metrics.shuffled(lambda p: metrics.bleu_of(counts, 4, columns=p), 60, 4, seed=5)
    assert chance == pytest.approx((np.mean(expected), np.std(expected, ddof=1)), abs=1e-9)


def test_coco_like_ignores_case_and_punctuation():
    score, definition = metrics.bleu(
        ["a red ball lies on the beach"], [["A red ball, lies on the beach."]], style="coco-like"
    )
    assert score == pytest.approx(100.0)
    assert "not its PTB tokenizer" in definition
    assert (
        metrics.bleu(["a red ball lies on the beach"], [["A red ball, lies on the beach."]])[0] < 90
    )


def test_shuffles_at_full_size_are_fast():
    rng = np.random.default_rng(2)
    hypotheses = captions(982, rng, 6, 12)
    references = [captions(5, rng, 8, 14) for _ in hypotheses]
    start = time.process_time()
    counts = metrics.bleu_counts(hypotheses, references)
    mean, sd = metrics.shuffled(lambda p: metrics.bleu_of(counts, 4, columns=p), 982, 200, seed=0)
    assert time.process_time() - start < 30
    assert sd > 0
    assert mean == pytest.approx(metrics.bleu_of(counts, 4), abs=6 * sd)


def test_interval_covers_the_score(corpus):
    counts = metrics.bleu_counts(*corpus)
    low, high = metrics.bleu_interval(counts, 4, 200, seed=0)
    assert low < metrics.bleu_of(counts, 4) < high


def test_empty_caption_scores_nothing():
    assert metrics.bleu(["", ""], [["a ball"], ["a box"]])[0] == 0


@pytest.mark.parametrize(
    ("hypotheses", "references"), [([], []), (["a"], []), (["a"], [[]]), (["a"], [["a"], ["b"]])]
)
def test_wrong_numbers_are_refused(hypotheses, references):
    with pytest.raises(UsageError, match="reference lists"):
        metrics.bleu(hypotheses, references)
    with pytest.raises(UsageError, match="style"):
        metrics.bleu(["a"], [["a"]], style="mine")


def test_two_way_equals_a_double_loop():
    rng = np.random.default_rng(0)
    shown = rng.normal(size=(17, 6))
    predicted = shown + 2 * rng.normal(size=shown.shape)
    n = len(shown)
    r = np.array([[np.corrcoef(p, s)[0, 1] for s in shown] for p in predicted])
    among_shown = [np.mean([r[i, i] > r[i, j] for j in range(n) if j != i]) for i in range(n)]
    among_predicted = [np.mean([r[i, i] > r[j, i] for j in range(n) if j != i]) for i in range(n)]
    found = metrics.two_way_identification(predicted, shown)
    np.testing.assert_allclose(found.among_shown, among_shown)
    np.testing.assert_allclose(found.among_predicted, among_predicted)
    assert not np.allclose(found.among_shown, found.among_predicted)


def test_two_way_extremes():
    shown = np.random.default_rng(0).normal(size=(8, 5))
    assert metrics.two_way_identification(shown, shown).among_shown.mean() == 1
    same = np.tile(shown[:1], (8, 1))
    assert metrics.two_way_identification(same, same).among_shown.mean() == pytest.approx(0.5)
    with pytest.raises(UsageError, match="two-way"):
        metrics.two_way_identification(shown[:1], shown[:1])


def test_clip_similarity_averages_samples():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 4)), rng.normal(size=(5, 3, 4))
    expected = [
        np.mean([x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in ys])
        for x, ys in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(metrics.clip_similarity(a, b), expected)
    np.testing.assert_allclose(metrics.clip_similarity(a, a), 1)


def test_wins_with_ties():
    found = metrics.wins(np.array([1.0, 2, 3, 4]), np.array([0.0, 2, 4, 0]))
    assert (found.value, found.n, found.ties) == (pytest.approx(2 / 3), 3, 1)
    assert found.low == pytest.approx(0.0943, abs=1e-3)  # Clopper-Pearson of 2 in 3
    assert np.isnan(metrics.wins(np.ones(2), np.ones(2)).value)


def test_pixcorr():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    b = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    expected = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(metrics.pixcorr(a, b), expected)
    assert np.isnan(metrics.pixcorr(np.zeros_like(a), b)).all()
