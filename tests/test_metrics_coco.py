"""COCO's metrics against pycocoevalcap's own classes, and what is said where they cannot run."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from nsdcap.metrics import bleu, captions, coco, overlap
from nsdcap.metrics.captions import COCO_METRICS, score_captions

needs_java = pytest.mark.skipif(
    shutil.which("java") is None, reason="needs Java (Debian: default-jre-headless)"
)
CORPUS = [
    ("a man riding a wave on a surfboard", ["A surfer rides a large wave.", "A man is surfing in the sea!"]),
    ("two dogs play with a ball ||| in the grass", ["Two dogs (big ones) play; one has a \"ball\"."]),
    ("a cat's bed isn't here", ["The cat's bed.", "A bed -- for cats -- isn't here", "a cat"]),
    ("a plate of food food food food", ["A plate with food and a fork"]),
    ("", ["A street at night"]),
    ("...", ["A café, 5 o'clock"]),
    ("A STREET AT NIGHT", ["a street\nat   night", "street"]),
    ("a", ["A train.", "..."]),
]  # fmt: skip


@pytest.fixture(scope="module")
def corpus() -> tuple[list[str], list[list[str]]]:
    """Tokens of the captions and of their references."""
    texts = [text for pair in CORPUS for text in (pair[0], *pair[1])]
    tokens = dict(zip(texts, coco.tokenise(texts), strict=True))
    return [tokens[text] for text, _ in CORPUS], [[tokens[t] for t in refs] for _, refs in CORPUS]


@pytest.fixture(scope="module")
def ours():
    with coco.Meteor() as meteor:
        yield meteor


@pytest.fixture(scope="module")
def library():
    from pycocoevalcap.meteor.meteor import Meteor

    return Meteor()


def as_library(own: list[str], known: list[list[str]]) -> tuple[dict, dict]:
    return dict(enumerate(known)), {i: [text] for i, text in enumerate(own)}


@needs_java
def test_tokens_are_the_librarys(corpus):
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    own, known = corpus
    given = {i: [{"caption": t} for t in [text, *refs]] for i, (text, refs) in enumerate(CORPUS)}
    found = PTBTokenizer().tokenize(given)
    assert found == {i: [own[i], *known[i]] for i in range(len(CORPUS))}
    assert own[2] == "a cat 's bed is n't here"


@needs_java
def test_meteor_is_the_librarys(corpus, ours, library):
    own, known = corpus
    counts = ours.statistics(own, known)
    score, each = library.compute_score(*as_library(own, known))
    assert ours.scores(counts) == pytest.approx(each, abs=1e-9)
    assert ours.scores(counts.sum(0)[None]) == pytest.approx([score], abs=1e-9)
    assert each[6] == 1.0  # a caption that matches as a whole counts in its own way
    assert 0.1 < score < 0.9


@needs_java
def test_bleu_rouge_and_cider_are_the_librarys(corpus):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    own, known = corpus
    order = np.roll(np.arange(len(own)), 3)  # and with shuffled pictures
    for rows in (np.arange(len(own)), order):
        given = as_library(own, [known[j] for j in rows])
        at = (np.arange(len(own)), rows)
        expected = Bleu(4).compute_score(*given, verbose=0)[0]
        counts = bleu.bleu_counts(own, known, style="coco")
        assert bleu.bleu_of(counts, None, rows) == pytest.approx(
            [100 * score for score in expected], abs=1e-9
        )
        assert overlap.rouge_l(own, known)[at] == pytest.approx(
            Rouge().compute_score(*given)[1], abs=1e-9
        )
        assert overlap.cider(own, known)[at] == pytest.approx(
            Cider().compute_score(*given)[1], abs=1e-9
        )


def test_captions_longer_than_a_machine_word():
    from pycocoevalcap.rouge.rouge import Rouge

    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdef"), size)) for size in (63, 64, 65, 200, 1)]
    known = [[texts[k - 1], texts[k]] for k in (1, 2, 3, 4, 0)]
    for some in (slice(0, 2), slice(0, 5)):
        found = overlap.rouge_l(texts[some], known[some])
        expected = Rouge().compute_score(*as_library(texts[some], known[some]))[1]
        assert np.diagonal(found) == pytest.approx(expected, abs=1e-12)


@needs_java
@pytest.mark.parametrize("options", ["-Duser.language=tr", "-Dfile.encoding=ISO-8859-1"])
def test_tokens_do_not_depend_on_the_users_locale(monkeypatch, options):
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", options)
    assert coco.tokenise(["A BIG ICE café", "I"]) == ["a big ice café", "i"]


@needs_java
def test_chance_and_intervals_against_slow_loops(corpus, ours, library):
    from pycocoevalcap.cider.cider import Cider

    own, known = corpus
    found = {score.metric: score for score in captions._coco(own, known, ours)}
    assert list(found) == list(COCO_METRICS)
    n, rng = len(own), np.random.default_rng(captions.SEED)
    orders = [rng.permutation(n) for _ in range(captions.SHUFFLES)]
    for metric, scorer, some in (
        ("METEOR", library, orders[: captions.METEOR_SHUFFLES]), ("CIDEr", Cider(), orders),
    ):  # fmt: skip
        chance = [
            scorer.compute_score(*as_library(own, [known[j] for j in order]))[0] for order in some
        ]
        score = found[metric]
        assert score.n_shuffles == len(chance)
        assert score.numbers[3:] == pytest.approx(
            (np.mean(chance), np.std(chance, ddof=1)), abs=1e-9
        )
    # a resample: the library on captions that are there several times
    drawn = np.rint(captions.resamples(n, captions.BOOTSTRAPS, captions.SEED) * n).astype(int)
    scores = []
    for counts in drawn:
        rows = np.repeat(np.arange(n), counts)
        given = as_library([own[i] for i in rows], [known[i] for i in rows])
        scores.append(library.compute_score(*given)[0])
    value, low, high = found["METEOR"].numbers[:3]
    assert (low, high) == pytest.approx(np.quantile(scores, [0.025, 0.975]), abs=1e-9)
    assert low < value < high
    assert "nothing is downloaded" in found["SPICE"].note or found["SPICE"].numbers


def test_without_java_rows_say_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    scores = score_captions({"x": (["a cat", "a dog"], [["A cat."], ["A dog."]])})["x"]
    without = {score.metric: score for score in scores if score.note}
    assert list(without) == list(COCO_METRICS)
    assert all(s.note == "needs Java: no java on the PATH" for s in without.values())
    assert not any(score.numbers for score in without.values())
    assert {score.metric: len(score.numbers) for score in scores if not score.note} == {
        **{f"BLEU-{k} sacrebleu": 5 for k in (1, 2, 3, 4)}, "BLEU-4 sentence": 5,
    }  # fmt: skip


def test_without_the_package_the_extra_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        coco, "find_spec", lambda name: None if name == "pycocoevalcap" else find(name)
    )
    scores = score_captions({"x": (["a cat", "a dog"], [["A cat."], ["A dog."]])})["x"]
    notes = [score.note for score in scores if score.metric in COCO_METRICS]
    assert all('pip install ".[metrics]"' in note for note in notes)
    assert len(notes) == len(COCO_METRICS)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the programs need of pycocoevalcap, to take things from; its big jars are links."""
    source = Path(importlib.util.find_spec("pycocoevalcap").submodule_search_locations[0])
    for part in ("meteor", "spice", "tokenizer"):
        shutil.copytree(
            source / part, tmp_path / "pycocoevalcap" / part,
            copy_function=lambda a, b: Path(b).symlink_to(a),
        )  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(
        coco,
        "find_spec",
        lambda name: importlib.machinery.PathFinder.find_spec(name, [str(tmp_path)]),
    )
    return tmp_path / "pycocoevalcap"


@needs_java
def test_nothing_is_written_into_the_package(package):
    before = sorted(package.rglob("*"))
    for folder in (package, *package.iterdir()):
        folder.chmod(0o555)
    assert coco.tokenise(["A cat."]) == ["a cat"]
    with pytest.raises(coco.NotComputed, match=r"stanford-corenlp-3\.6\.0\.jar.*nothing is downl"):
        coco.spice(["a cat"], [["a cat"]])
    for folder in (package, *package.iterdir()):
        folder.chmod(0o755)
    assert sorted(package.rglob("*")) == before


@needs_java
def test_a_java_program_that_fails_is_told(package):
    for name in coco.SPICE_NEEDS:
        (package / "spice/lib" / name).touch()
    with pytest.raises(coco.NotComputed, match=r"Java ended with code 1: .*(Error|Exception)"):
        coco.spice(["a cat"], [["a cat"]])
    (package / "meteor" / coco.METEOR).unlink()
    (package / "meteor" / coco.METEOR).write_bytes(b"no jar")
    with coco.Meteor() as meteor, pytest.raises(coco.NotComputed, match=r"ended early: Error.*jar"):
        meteor.statistics(["a cat"], [["a cat"]])
    (package / "tokenizer" / coco.TOKENIZER).unlink()
    with pytest.raises(coco.NotComputed, match="lacks tokenizer/stanford"):
        coco.tokenise(["a cat"])
