"""BLEU against sacrebleu itself."""

from __future__ import annotations

import time

import numpy as np
import pytest
import sacrebleu
from sacrebleu.metrics import BLEU

from nsdcap.errors import UsageError
from nsdcap.metrics import bleu
from nsdcap.metrics.similarity import shuffled

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
    score, definition = bleu.bleu(hypotheses, references, order)
    assert score == pytest.approx(expected.score, abs=1e-9)
    assert str(metric.get_signature()) in definition
    assert f"BLEU-{order}" in definition


def test_default_is_corpus_bleu(corpus):
    hypotheses, references = corpus
    expected = sacrebleu.corpus_bleu(hypotheses, streams(references)).score
    assert bleu.bleu(hypotheses, references)[0] == pytest.approx(expected, abs=1e-9)


def test_repeated_words_are_clipped():
    hypotheses, references = ["the the the the the cat"], [["the cat is on the mat", "the dog"]]
    for order in (1, 2):
        expected = BLEU(max_ngram_order=order).corpus_score(hypotheses, streams(references)).score
        assert bleu.bleu(hypotheses, references, order)[0] == pytest.approx(expected)


def test_sentences_equal_sacrebleu(corpus):
    hypotheses, references = corpus
    each = [
        sacrebleu.sentence_bleu(h, refs).score
        for h, refs in zip(hypotheses, references, strict=True)
    ]
    counts = bleu.bleu_counts(hypotheses, references)
    assert np.diagonal(bleu.sentence_bleus(counts)) == pytest.approx(each, abs=1e-9)
    assert "eff:yes" in bleu.sentence_definition(counts, 4)


def test_shuffled_statistics_equal_sacrebleu(corpus):
    hypotheses, references = corpus
    counts = bleu.bleu_counts(hypotheses, references)
    found, expected = [], []
    rng = np.random.default_rng(5)
    for _ in range(4):
        order = rng.permutation(len(hypotheses))
        found.append(bleu.bleu_of(counts, columns=order)[3])
        moved = [references[i] for i in order]
        expected.append(sacrebleu.corpus_bleu(hypotheses, streams(moved)).score)
        for i in (0, 7):
            one = sacrebleu.sentence_bleu(hypotheses[i], moved[i]).score
            assert bleu.sentence_bleus(counts)[i, order[i]] == pytest.approx(one)
    assert found == pytest.approx(expected, abs=1e-9)
    chance = shuffled(lambda p: bleu.bleu_of(counts, columns=p)[3], 60, 4, seed=5)
    assert chance == pytest.approx((np.mean(expected), np.std(expected, ddof=1)), abs=1e-9)


def test_shuffles_at_full_size_are_fast():
    rng = np.random.default_rng(2)
    hypotheses = captions(982, rng, 6, 12)
    references = [captions(5, rng, 8, 14) for _ in hypotheses]
    start = time.process_time()
    counts = bleu.bleu_counts(hypotheses, references)
    mean, sd = shuffled(lambda p: bleu.bleu_of(counts, columns=p)[3], 982, 200, seed=0)
    assert time.process_time() - start < 30
    assert sd > 0
    assert mean == pytest.approx(bleu.bleu_of(counts)[3], abs=6 * sd)


def test_interval_covers_the_score(corpus):
    counts = bleu.bleu_counts(*corpus)
    low, high = bleu.bleu_interval(counts, 200, seed=0)
    scores = bleu.bleu_of(counts)
    assert (low < scores).all()
    assert (scores < high).all()


def test_empty_caption_scores_nothing():
    assert bleu.bleu(["", ""], [["a ball"], ["a box"]])[0] == 0


@pytest.mark.parametrize(
    ("hypotheses", "references"), [([], []), (["a"], []), (["a"], [[]]), (["a"], [["a"], ["b"]])]
)
def test_wrong_numbers_are_refused(hypotheses, references):
    with pytest.raises(UsageError, match="reference lists"):
        bleu.bleu(hypotheses, references)
    with pytest.raises(UsageError, match="style"):
        bleu.bleu(["a"], [["a"]], style="mine")
