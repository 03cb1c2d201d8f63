"""Scores of planted answers against figures by hand and other libraries; files that are refused."""

from __future__ import annotations

import json
import sys
from itertools import permutations

import krippendorff
import numpy as np
import pandas as pd
import pytest
from rating_runs import rater_file, sealed, write_run
from scipy.stats import binomtest
from scipy.stats import t as student
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from nsdcap.errors import DataError
from nsdcap.paths import Cell, sidecar
from nsdcap.rating.__main__ import main
from nsdcap.rating.make import make
from nsdcap.rating.score import agreement, mean_interval, score
from nsdcap.rating.study import read_study

# the trials of the key that each rater gets wrong; 20 and 21 are catch trials
WRONG = {"rater01": {0, 1}, "rater02": {0, 1, 2, 20}, "rater03": {0, 5, 6, 7, 8, 20, 21}}


@pytest.fixture
def folder(tmp_path):
    """A study of 20 pictures, 2 catch trials, 3 raters; nobody has handed in."""
    out = write_run(tmp_path / "out")
    made = {"raters": 3, "trials": 20, "catch": 2, "log": lambda line: None}
    make(out, tmp_path / "study", "captions", **made)
    (tmp_path / "study" / "answers").mkdir()
    return tmp_path / "study"


def hand_in(folder, rater: str, body: bytes | None = None):
    path = folder / "answers" / f"{rater}.json"
    path.write_bytes(rater_file(folder, rater, WRONG[rater]) if body is None else body)
    return path


def test_planted_answers_give_the_figures_by_hand(folder):
    for rater in WRONG:
        hand_in(folder, rater)
    found = score(folder)
    assert [row["percent"] for row in found["raters"]] == [90, 85, 75]
    assert [row["catch_percent"] for row in found["raters"]] == [100, 50, 0]
    assert (found["n_raters"], found["n_trials"], found["n_catch"]) == (3, 20, 2)
    assert found["percent"] == pytest.approx(250 / 3)
    assert found["sd"] == pytest.approx(np.sqrt(175 / 3))  # deviations 20/3, 5/3, -25/3; over n - 1
    exact = binomtest(50, 60).proportion_ci(method="exact")
    assert found["binomial_interval"] == pytest.approx([100 * exact.low, 100 * exact.high])
    correct = np.array([[k not in wrong for k in range(20)] for wrong in WRONG.values()], float)
    library = krippendorff.alpha(reliability_data=correct, level_of_measurement="nominal")
    assert found["alpha"] == pytest.approx(library)
    assert found["interval"] == pytest.approx(100 * np.array(mean_interval(correct)[1]))
    assert found["raters"][0]["median_ms"] > 900
    trials = read_study(folder).trials
    own = [k for k in range(20) if trials[k].subject == 1]
    assert found["by_subject"]["1"] == pytest.approx(100 * correct[:, own].mean())


def test_a_rater_who_may_have_guessed_is_named(tmp_path, capsys):
    """Exact 95 %: 15 of 20 begins at 50.9 %, 14 of 20 at 45.7 %."""
    folder = tmp_path / "study"
    made = {"raters": 3, "trials": 4, "catch": 20, "log": lambda line: None}
    make(write_run(tmp_path / "out"), folder, "captions", **made)
    (folder / "answers").mkdir()
    for rater, missed in (("rater01", 5), ("rater02", 6), ("rater03", 0)):
        body = rater_file(folder, rater, caught=set(range(4, 4 + missed)))
        (folder / "answers" / f"{rater}.json").write_bytes(body)
    assert main(["score", str(folder)]) == 0
    assert "\ncatch trials of rater02 are as of one who guesses" in capsys.readouterr().out


def test_pairs_that_read_the_same_count_and_are_told(tmp_path, capsys):
    out = write_run(tmp_path / "out", subjects=(1,))
    path = out / "caption" / "subj01.json"
    found = json.loads(path.read_text())
    for k, entry in enumerate(found["captions"].values()):
        entry["brain"] = ("a dog", "A dog.")[k % 2] if k < 6 else f"number {k}"
    path.write_text(json.dumps(found))
    folder = tmp_path / "study"
    make(out, folder, "captions", raters=2, trials=12, catch=0, seed=1, log=lambda line: None)
    trials = read_study(folder).trials
    same = {k for k, t in enumerate(trials) if "dog" in t.target and "dog" in t.foil}
    assert 0 < len(same) < 12
    (folder / "answers").mkdir()
    for rater in ("rater01", "rater02"):
        (folder / "answers" / f"{rater}.json").write_bytes(rater_file(folder, rater, same))
    found = score(folder)
    assert found["percent"] == pytest.approx(100 * (12 - len(same)) / 12)
    assert (found["n_same_words"], found["percent_other_words"]) == (len(same), 100)
    assert main(["score", str(folder)]) == 0
    assert f"{len(same)} of 12 pairs read the same, and chance decides there; 100.0 % without" in (
        capsys.readouterr().out
    )


def test_alpha_is_krippendorffs_by_its_definition_with_gaps():
    rng = np.random.default_rng(0)
    data = rng.integers(0, 2, (4, 15)).astype(float)
    data[rng.random(data.shape) < 0.2] = np.nan
    coincidences = np.zeros((2, 2))  # ordered pairs of ratings of a unit, over its ratings less one
    for unit in data.T:
        values = unit[np.isfinite(unit)].astype(int)
        for a, b in permutations(values, 2):
            coincidences[a, b] += 1 / (len(values) - 1)
    n = coincidences.sum(1)
    observed = coincidences[0, 1] + coincidences[1, 0]
    expected = 2 * n[0] * n[1] / (n.sum() - 1)
    assert agreement(data) == (pytest.approx(1 - observed / expected), "")
    for undefined in (np.ones((3, 5)), data[:1]):
        assert agreement(undefined)[0] is None


def test_without_the_library_alpha_is_not_computed_and_says_so(folder, capsys, monkeypatch):
    for rater in WRONG:
        hand_in(folder, rater)
    monkeypatch.setitem(sys.modules, "krippendorff", None)
    assert main(["score", str(folder)]) == 0
    assert 'alpha (nominal): not computed: pip install ".[metrics]"' in capsys.readouterr().out


def test_the_interval_is_that_of_mean_squares_of_another_library():
    rng = np.random.default_rng(1)
    ability, ease = rng.normal(0, 0.5, (5, 1)), rng.normal(1, 1, (1, 30))
    correct = (rng.random((5, 30)) < 1 / (1 + np.exp(-ability - ease))).astype(float)
    rows = [(r, p, correct[r, p]) for r in range(5) for p in range(30)]
    frame = pd.DataFrame(rows, columns=["rater", "picture", "y"])
    table = anova_lm(ols("y ~ C(rater) + C(picture)", frame).fit())
    squares = (table["sum_sq"] / table["df"]).to_numpy()
    assert (squares[:2] > squares[2]).all()  # or the case would not be the one to look at
    variance = squares[0] + squares[1] - squares[2]
    df = variance**2 / (squares**2 / table["df"].to_numpy()).sum()
    error = np.sqrt(variance / 150)
    mean, interval, p = mean_interval(correct)
    assert mean == correct.mean()
    assert interval == pytest.approx(mean + error * np.array(student.interval(0.95, df)), rel=1e-9)
    assert p == pytest.approx(2 * student.sf(abs(mean - 0.5) / error, df))


def test_the_interval_holds_the_truth_where_raters_and_pictures_differ():
    """Planted: chance of a correct answer by rater and picture. The binomial interval falls short there."""
    rng, n, holds, binomial = np.random.default_rng(2), 400, 0, 0
    for _ in range(n):
        chance = np.clip(0.7 + rng.normal(0, 0.06, (6, 1)) + rng.normal(0, 0.12, (1, 60)), 0, 1)
        correct = (rng.random((6, 60)) < chance).astype(float)
        low, high = mean_interval(correct)[1]
        holds += low <= 0.7 <= high
        found = binomtest(int(correct.sum()), correct.size).proportion_ci(method="exact")
        binomial += found.low <= 0.7 <= found.high
    assert 0.93 <= holds / n <= 0.99
    assert binomial / n < 0.87


def test_one_rater_and_all_alike_have_no_interval_of_spread():
    mean, interval, p = mean_interval(np.array([[1.0, 0, 1, 1]]))
    assert (mean, interval, p) == (0.75, None, None)
    alike = np.ones((3, 12))
    exact = binomtest(12, 12, 0.5)
    bounds = exact.proportion_ci(method="exact")
    assert mean_interval(alike)[1:] == ((bounds.low, bounds.high), exact.pvalue)


def test_the_command_prints_json_and_keeps_it_for_the_report(folder, capsys):
    for rater in WRONG:
        hand_in(folder, rater)
    out = folder.parent / "out"
    assert main(["score", str(folder), "--json", "--into", str(out)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"study", "percent", "sd", "interval", "binomial_interval", "alpha", "n_raters", "n_trials",
            "raters"} <= set(found)  # fmt: skip
    assert json.loads((out / "rating" / "captions.json").read_text()) == found
    assert main(["score", str(folder)]) == 0
    text = capsys.readouterr().out
    assert (
        "83.3 % ± 7.6 (sd over raters) chose the picture's own caption; 3 raters, 20 pictures"
        in text
    )
    assert main(["score", str(folder), "--into", str(folder)]) == 2


def test_scores_without_interval_or_of_another_run_are_not_kept(folder, capsys):
    hand_in(folder, "rater01")
    assert main(["score", str(folder), "--into", str(folder.parent / "out")]) == 2
    assert "found 1 raters and 20 pictures; the report's interval" in capsys.readouterr().err
    assert not (folder.parent / "out" / "rating").exists()
    other = write_run(folder.parent / "other", n=11)
    assert main(["score", str(folder), "--into", str(other)]) == 2
    assert f"--into {other}: its captions are not those of {folder}" in capsys.readouterr().err
    sidecar(other, Cell("caption", 2)).unlink()
    assert main(["score", str(folder), "--into", str(other)]) == 65
    assert "subj02.json.done.json: found no signature; run the caption" in capsys.readouterr().err
    assert not (other / "rating").exists()


def test_files_of_some_raters_will_do_and_the_others_are_named(folder, capsys):
    path = hand_in(folder, "rater02")
    path = path.rename(folder.parent / "download (1).json")
    assert main(["score", str(folder), str(path)]) == 0
    text = capsys.readouterr().out
    assert "85.0 % chose" in text
    assert "not known from one rater" in text
    assert "not handed in: rater01, rater03" in text
    assert main(["score", str(folder)]) == 65
    assert "no rater has handed in" in capsys.readouterr().err


def content(folder, rater: str = "rater01") -> dict:
    return json.loads(rater_file(folder, rater))


def lacks_one(folder):
    found = content(folder)
    found["answers"].pop()
    return sealed(found), "incomplete, found 21 of 22 answers"


def twice_one(folder):
    found = content(folder)
    found["answers"][1] = found["answers"][0]
    return sealed(found), "is answered 2 times, expected once"


def one_too_many(folder):
    found = content(folder)
    found["answers"].append(found["answers"][0])
    return sealed(found), "is answered 2 times, expected once"


def another_choice(folder):
    found = content(folder)
    one = found["answers"][3]
    one["choice"] = {"left": "right", "right": "left"}[one["choice"]]
    return json.dumps(found).encode(), "its checksum does not fit"


def another_time(folder):
    found = content(folder)
    found["answers"][3]["ms"] += 1
    return json.dumps(found).encode(), "its checksum does not fit"


def another_raters_trials(folder):
    found = content(folder)
    found["answers"] = content(folder, "rater02")["answers"]
    return sealed(found), "22 trials are not rater01's"


def another_study(folder):
    return sealed(
        content(folder) | {"study": "0" * 16}
    ), "found answers of study '0000000000000000'"


def unknown_rater(folder):
    return sealed(content(folder) | {"rater": "rater09"}), "found rater 'rater09', expected one of"


def unknown_choice(folder):
    found = content(folder)
    found["answers"][2]["choice"] = "both"
    return sealed(found), "answer 3 is broken"


def fraction_of_time(folder):
    found = content(folder)
    found["answers"][0]["ms"] = -1
    return sealed(found), "answer 1 is broken"


def no_time(folder):
    return sealed(content(folder) | {"begun": "today"}), "begun or finished is no time"


def more_keys(folder):
    return json.dumps(
        content(folder) | {"name": "A. Person"}
    ).encode(), "name, rater, study; expected"


def truncated(folder):
    return rater_file(folder, "rater01")[:-40], "broken off or not JSON"


def empty(folder):
    return b"", "broken off or not JSON"


def other_json(folder):
    return b"[1, 2]", "no rater's file"


def not_text(folder):
    return b"\xff\xfe\x00", "broken off or not JSON"


def list_for_name(folder):
    return json.dumps(content(folder) | {"rater": ["rater01"]}).encode(), "found rater ['rater01']"


@pytest.mark.parametrize(
    "damage",
    [lacks_one, twice_one, one_too_many, another_choice, another_time, another_raters_trials, another_study,
     unknown_rater, unknown_choice, fraction_of_time, no_time, more_keys, truncated, empty, other_json,
     not_text, list_for_name],
)  # fmt: skip
def test_a_file_that_is_not_whole_and_unchanged_is_refused_by_name(folder, capsys, damage):
    hand_in(folder, "rater02")
    body, says = damage(folder)
    path = hand_in(folder, "rater01", body)
    assert main(["score", str(folder)]) == 65
    said = capsys.readouterr().err
    assert said.startswith(f"nsdcap.rating: {path}: ")
    assert says in said
    assert said.count("\n") == 1


def test_two_files_of_one_rater_are_refused_both_named(folder):
    path = hand_in(folder, "rater01")
    copy = path.with_name("rater01 (1).json")
    copy.write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="doubled") as error:
        score(folder)
    assert str(path) in str(error.value)
    assert str(copy) in str(error.value)
    with pytest.raises(DataError, match=r"missing\.json: cannot be read"):
        score(folder, [path, folder / "missing.json"])
