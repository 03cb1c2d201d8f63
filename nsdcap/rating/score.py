"""What raters chose: per cent correct, its intervals, their agreement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nsdcap.errors import DataError
from nsdcap.rating.study import Answers, Study, read_answers, read_study, same_words
from nsdcap.stats import binomial_ci

INTERVAL = (
    "Student's t on the mean's two-way random-effects variance, raters and pictures both drawn at random "
    "(mean squares; Satterthwaite's degrees of freedom)"
)


def score(folder: Path, files: list[Path] | None = None) -> dict[str, Any]:
    """Scores of a study from its raters' files, those in ``folder``/answers unless ``files`` are given.

    percent, sd (over raters, n - 1), interval, binomial_interval in per cent; p against 50 %, two-sided;
    alpha: Krippendorff's, nominal, over which of the two each rater chose of each picture.
    n_same_words: pairs of captions that read the same, where only a guess is possible; they count in all of
    these, and percent_other_words leaves them out. None
    where two raters are needed (sd, interval, p, alpha) and one is there. Catch trials are counted apart.
    The binomial interval takes all judgements as independent, which those of one rater or of one picture
    are not: ``interval`` is the one to quote.

    Raises
    ------
    DataError
        No file, two of one rater, or one that ``read_answers`` refuses; each error names the file.
    """
    study = read_study(folder)
    paths = files if files else sorted((folder / "answers").glob("*.json"))
    if not paths:
        raise DataError(
            f"{folder / 'answers'}: no rater has handed in; serve the study, or give files"
        )
    answers: dict[str, Answers] = {}
    for path in paths:
        one = read_answers(path, study)
        if one.rater in answers:
            raise DataError(
                f"{path}: doubled, {answers[one.rater].path} is {one.rater}'s too; give one of them"
            )
        answers[one.rater] = one
    ordered = [answers[name] for name in study.raters if name in answers]
    asked = [k for k, trial in enumerate(study.trials) if not trial.catch]
    caught = [k for k, trial in enumerate(study.trials) if trial.catch]
    correct = table(ordered, asked)
    mean, interval, p = mean_interval(correct)
    alpha, note = agreement(correct)
    k, n = int(correct.sum()), correct.size
    same = np.array([same_words(study.trials[number]) for number in asked])
    return {
        "study": study.kind, "id": study.id, "arm": study.arm,
        "made_of": study.made_of,
        "percent": 100 * mean, "sd": sd_of(correct),
        "interval": percent(interval), "interval_is": INTERVAL,
        "binomial_interval": percent(binomial_ci(k, n)),
        "p": p, "alpha": alpha, "alpha_note": note,
        "n_same_words": int(same.sum()),
        "percent_other_words": None if same.all() else 100 * float(correct[:, ~same].mean()),
        "n_raters": len(ordered), "n_trials": len(asked), "n_catch": len(caught),
        "missing_raters": [name for name in study.raters if name not in answers],
        "by_subject": by_subject(study, asked, correct),
        "raters": [rater_row(one, asked, caught) for one in ordered],
    }  # fmt: skip


def table(answers: list[Answers], trials: list[int]) -> np.ndarray:
    """Whether each rater chose each trial's target, (n_raters, n_trials) float64 of 0 and 1."""
    return np.array([[one.chosen[k] for k in trials] for one in answers], dtype=np.float64)


def mean_interval(
    correct: np.ndarray, level: float = 0.95, chance: float = 0.5
) -> tuple[float, tuple[float, float] | None, float | None]:
    """Mean of (n_raters, n_pictures) float64, its interval and two-sided p against ``chance``.

    Both raters and pictures are samples, and every rater judged every picture. With the mean squares of
    raters, pictures and what is left, MS_r, MS_p and MS_e, the mean's variance is (MS_r + MS_p - MS_e) /
    (R P), and its degrees of freedom are Satterthwaite's (1946, Biometrics Bulletin 2:110); a component
    of variance below 0 counts as 0. With one rater or picture None: nothing is known of their spread. Where
    no two judgements differ, the exact binomial interval and p of one judgement a picture.
    """
    from scipy.stats import binomtest
    from scipy.stats import t as student

    n_raters, n_pictures = correct.shape
    mean = float(correct.mean())
    if min(correct.shape) < 2:
        return mean, None, None
    if np.ptp(correct) == 0:
        test = binomtest(round(mean * n_pictures), n_pictures, chance)
        found = test.proportion_ci(level, "exact")
        return mean, (float(found.low), float(found.high)), float(test.pvalue)
    raters, pictures = correct.mean(1, keepdims=True), correct.mean(0, keepdims=True)
    df = np.array([n_raters - 1, n_pictures - 1, (n_raters - 1) * (n_pictures - 1)])
    left = correct - raters - pictures + mean
    squares = np.array([
        n_pictures * ((raters - mean) ** 2).sum(), n_raters * ((pictures - mean) ** 2).sum(), (left**2).sum(),
    ]) / df  # fmt: skip
    squares[:2] = np.maximum(squares[:2], squares[2])
    variance = squares @ [1, 1, -1] / correct.size
    freedom = (squares @ [1, 1, -1]) ** 2 / (squares**2 / df).sum()
    error = np.sqrt(variance)
    half = student.ppf((1 + level) / 2, freedom) * error
    p = float(2 * student.sf(abs(mean - chance) / error, freedom))
    return mean, (max(0.0, mean - half), min(1.0, mean + half)), p


def agreement(correct: np.ndarray) -> tuple[float | None, str]:
    """Krippendorff's nominal alpha of (n_raters, n_trials), NaN where one did not judge; or None and why not.

    Where nearly all choices are the same one, alpha is low however seldom raters differ.
    """
    if len(correct) < 2 or np.ptp(correct[np.isfinite(correct)]) == 0:
        return None, "not defined with one rater, or where all choices are the same one"
    try:
        import krippendorff
    except ImportError:
        return None, 'not computed: pip install ".[metrics]"'
    return float(krippendorff.alpha(reliability_data=correct, level_of_measurement="nominal")), ""


def sd_of(correct: np.ndarray) -> float | None:
    """Standard deviation over raters of their per cent, n - 1; None with one rater."""
    return float(100 * correct.mean(1).std(ddof=1)) if len(correct) > 1 else None


def by_subject(study: Study, asked: list[int], correct: np.ndarray) -> dict[str, float]:
    """Per cent by the subject whose brain it was."""
    of = np.array([study.trials[k].subject for k in asked])
    return {str(s): float(100 * correct[:, of == s].mean()) for s in np.unique(of)}


def rater_row(one: Answers, asked: list[int], caught: list[int]) -> dict[str, Any]:
    """A rater's own figures."""
    right, catch = sum(one.chosen[k] for k in asked), sum(one.chosen[k] for k in caught)
    return {
        "rater": one.rater, "percent": 100 * right / len(asked), "correct": right, "n": len(asked),
        "binomial_interval": percent(binomial_ci(right, len(asked))),
        "catch_percent": 100 * catch / len(caught) if caught else None,
        "catch_correct": catch, "n_catch": len(caught),
        "median_ms": float(np.median([one.ms[k] for k in asked])),
    }  # fmt: skip


def guesses(row: dict[str, Any]) -> bool:
    """Whether a rater's catch trials went wrong, and as often as guessing may: 50 % in the exact interval."""
    right, n = row["catch_correct"], row["n_catch"]
    return right < n and bool(binomial_ci(right, n)[0] <= 0.5)


def percent(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else [100 * end for end in interval]


def told(found: dict[str, Any]) -> str:
    """The scores as text."""
    what = (
        "chose the picture's own caption"
        if found["study"] == "captions"
        else "chose the caption arm"
    )
    lines = [
        f"{'rater':10}{'correct':>10}{'%':>8}{'95 %, exact':>16}{'catch trials':>15}{'median s':>10}"
    ]
    for row in found["raters"]:
        low, high = row["binomial_interval"]
        lines.append(
            f"{row['rater']:10}{row['correct']:>5}/{row['n']:<4}{row['percent']:>8.1f}{low:>9.1f} to {high:.1f}"
            f"{row['catch_correct']:>10}/{row['n_catch']:<4}{row['median_ms'] / 1000:>10.1f}"
        )
    sd = "" if found["sd"] is None else f" ± {found['sd']:.1f} (sd over raters)"
    lines.append(
        f"\n{found['percent']:.1f} %{sd} {what}; {found['n_raters']} raters, {found['n_trials']} pictures, "
        f"chance 50 %, arm {found['arm']}"
    )
    if found["n_same_words"]:
        rest = found["percent_other_words"]
        lines.append(
            f"{found['n_same_words']} of {found['n_trials']} pairs read the same, and chance decides there"
            + ("" if rest is None else f"; {rest:.1f} % without them")
        )
    if found["interval"] is None:
        lines.append("95 % over raters and pictures: not known from one rater or picture")
    else:
        low, high = found["interval"]
        lines.append(
            f"95 % over raters and pictures: {low:.1f} to {high:.1f}, p against 50 %: {found['p']:.2g}"
        )
        lines.append(f"  by {found['interval_is']}")
    low, high = found["binomial_interval"]
    lines.append(
        f"95 % exact binomial: {low:.1f} to {high:.1f}, as if all judgements were independent"
    )
    alpha = (
        found["alpha_note"]
        if found["alpha"] is None
        else f"{found['alpha']:.3f}; low by nature where nearly all choices are the same one"
    )
    lines.append(f"agreement, Krippendorff's alpha (nominal): {alpha}")
    guessed = [row["rater"] for row in found["raters"] if guesses(row)]
    if guessed:
        lines.append(
            f"catch trials of {', '.join(guessed)} are as of one who guesses, and they count all the same; to "
            "leave raters out, give the FILEs of the others, and say so where you report it"
        )
    if found["missing_raters"]:
        lines.append(f"not handed in: {', '.join(found['missing_raters'])}")
    return "\n".join(lines)
