"""Tables of scores as a reader wants them: metric by metric, arm by arm, over subjects, as texts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nsdcap.plots import over_subjects
from nsdcap.plots_cortex import Run

_FOLDERS = re.compile(r"""(?<![\w.])~?/(?:[^\s/'",;:]+/)+""")
_TIES = re.compile(r"; \d+ ties left out")
ARMS = {
    "brain": "brain", "brain_gain": "brain, with gain",
    "picture": "picture’s own features", "nearest": "nearest training picture’s, human",
    "caption": "caption arm", "direct": "direct arm", "coarse": "coarse picture alone",
}  # fmt: skip
CORRELATIONS = ("CLIP cosine", "CLIP similarity", "PixCorr", "SSIM")


class Scores:
    """One metric of one arm over subjects.

    ``factor`` 100 turns shares into per cent; without it and ``digits`` both follow from the metric. A row
    without a value is none, and ``why`` is what its note says.
    """

    def __init__(
        self, table: list[dict], subjects: list[int], arm: str, metric: str,
        digits: int | None = None, factor: int | None = None,
    ):  # fmt: skip
        own = [row for row in table if (row["arm"], row["metric"]) == (arm, metric)]
        own = [row for row in own if int(row["subject"]) in subjects]
        self.arm, self.metric = arm, metric
        self.rows = [row for row in own if row["value"]]
        self.why = _notes(row for row in own if not row["value"])
        self.remarks = _notes(self.rows)
        self.definition = without_folders(next((row["definition"] for row in own), ""))
        if factor is None:
            share = self.definition.startswith("share ") or "wins" in metric or "two-way" in metric
            factor = 100 if share else 1
        self.values = [float(row["value"]) * factor for row in self.rows]
        if digits is None:
            largest = max((abs(value) for value in self.values), default=0)
            digits = 1 if factor == 100 else 2 if largest >= 1 or "BLEU" in metric else 3
        self.digits, self.factor, self.unit = digits, factor, " %" if factor == 100 else ""

    @property
    def label(self) -> str:
        """The arm in words; one that is not known by its own name."""
        return ARMS.get(self.arm, self.arm.replace("_", " "))

    @property
    def mean(self) -> str:
        """The mean over subjects as a text, "none" without values."""
        return self.text(float(np.mean(self.values))) if self.values else "none"

    @property
    def interval(self) -> str:
        """95 % by Student's t over subjects, within what the metric can be."""
        if not self.values:
            return ""
        if len(self.values) == 1:
            return "one subject"
        mean, half = over_subjects(np.array(self.values))
        low, high = np.clip((mean - half, mean + half), *self._bounds())
        return f"{self.text(low)} to {self.text(high)}"

    @property
    def each(self) -> list[str]:
        """Each subject's value with its interval over pictures."""
        found = []
        for row, value in zip(self.rows, self.values, strict=True):
            low, high = (self._of(row, key) for key in ("ci_low", "ci_high"))
            between = f" ({self.text(low)} to {self.text(high)})" if np.isfinite(low + high) else ""
            found.append(f"subject {row['subject']}: {self.text(value)}{between}")
        return found

    def of(self, subject: int) -> str:
        """One subject's value, "" where there is none."""
        pairs = zip(self.rows, self.values, strict=True)
        return next((self.text(v) for row, v in pairs if row["subject"] == str(subject)), "")

    @property
    def chance(self) -> str:
        """Mean and sd of chance, mean over subjects."""
        if not self.values:
            return ""
        means = [self._of(row, "chance_mean") for row in self.rows]
        if not np.isfinite(means).all():
            return "not computed"
        sds = [self._of(row, "chance_sd") for row in self.rows]
        text = self.text(float(np.mean(means)))
        return f"{text} ± {self.text(float(np.mean(sds)))}" if np.isfinite(sds).all() else text

    @property
    def shuffles(self) -> str:
        """How many shuffles chance is from, where the table says so."""
        counts = {row["n_shuffles"] for row in self.rows if row.get("n_shuffles")}
        return " or ".join(sorted(counts, key=float))

    @property
    def n(self) -> str:
        """Subjects x pictures."""
        return f"{len(self.values)} × {self.rows[0]['n']}" if self.rows else "0"

    def text(self, value: float) -> str:
        """A value of this metric in its digits and unit."""
        return f"{value:.{self.digits}f}{self.unit}".replace("-", "−")

    def _of(self, row: dict, key: str) -> float:
        return float(row[key]) * self.factor if row[key] else float("nan")

    def _bounds(self) -> tuple[float, float]:
        if self.factor == 100 or "BLEU" in self.metric:
            return 0, 100
        return (-1, 1) if self.metric in CORRELATIONS else (-np.inf, np.inf)


@dataclass(frozen=True)
class Metric:
    """A metric with every arm that has a row of it, in the table's order."""

    name: str
    definition: str
    arms: list[Scores]

    @property
    def computed(self) -> bool:
        """Whether any arm has a value."""
        return any(arm.values for arm in self.arms)

    @property
    def shuffles(self) -> str:
        """How many shuffles its chance is from."""
        return " or ".join(dict.fromkeys(arm.shuffles for arm in self.arms if arm.shuffles))


def by_metric(run: Run, table: list[dict]) -> list[Metric]:
    """All of a table of scores: each metric there, whether known today or not."""
    found = []
    for metric in dict.fromkeys(row["metric"] for row in table):
        arms = dict.fromkeys(row["arm"] for row in table if row["metric"] == metric)
        scores = [Scores(table, run.subjects, arm, metric) for arm in arms]
        # how many ties there were is each arm's own
        alike = {_TIES.sub("; ties left out", score.definition) for score in scores}
        digits = max((score.digits for score in scores if score.values), default=3)
        for score in scores:  # arms stand below each other
            score.digits = digits
        found.append(Metric(metric, alike.pop() if len(alike) == 1 else "", scores))
    return found


@dataclass(frozen=True)
class Column:
    """A column of any table: its name, whether it holds numbers, and its cells as texts."""

    name: str
    numeric: bool
    cells: list[str]


@dataclass(frozen=True)
class Overview:
    """A table of scores on one screen: the arms that it has most of, a row of means a metric."""

    arms: list[str]
    rows: list[tuple[Metric, list[Scores | None]]]


def overview(metrics: list[Metric]) -> Overview:
    """Means of every metric whose arms are not pairs of arms; None where an arm has no such row."""
    single = [m for m in metrics if not any(" over " in score.arm for score in m.arms)]
    arms = dict.fromkeys(score.arm for metric in single for score in metric.arms)
    rows: list[tuple[Metric, list[Scores | None]]] = []
    for metric in single:
        own = {score.arm: score for score in metric.arms}
        rows.append((metric, [own.get(arm) for arm in arms]))
    return Overview([ARMS.get(arm, arm.replace("_", " ")) for arm in arms], rows)


def columns(rows: list[dict[str, str]]) -> list[Column]:
    """A table's columns; numbers of one in the same digits, or in powers of ten where far apart."""
    found = []
    for name in rows[0] if rows else ():
        texts = [row[name] or "" for row in rows]
        values = [_float(text) for text in texts if text]
        if not all(np.isfinite(values)):
            found.append(Column(name, False, [without_folders(text) for text in texts]))
            continue
        sizes = [abs(value) for value in values if value]
        if all(value == int(value) and abs(value) < 1e7 for value in values):
            form = "{:.0f}"
        elif sizes and (max(sizes) >= 1e5 or (max(sizes) > 1e3 * min(sizes) and min(sizes) < 1e-3)):
            form = "{:.1e}"
        else:
            form = "{:.3f}"
        cells = [form.format(float(text)).replace("-", "−") if text else "" for text in texts]
        found.append(Column(name, True, cells))
    return found


def _notes(rows: Iterable[dict]) -> str:
    """Each note of some rows once; that nothing is computed is said where there is no value."""
    notes = dict.fromkeys(
        row["note"].removeprefix("not computed: ") for row in rows if row.get("note")
    )
    return without_folders("; ".join(notes))


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def without_folders(text: str) -> str:
    """A text with the folders of every path cut off: a report tells nobody's paths."""
    return _FOLDERS.sub(".../", text)
