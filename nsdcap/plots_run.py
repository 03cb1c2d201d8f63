"""A run's tables and maps as its figures read them, and what all figures have in common.

Colours: Okabe and Ito's for kinds, where markers and dashes differ as well; matplotlib's inferno for amounts
and magma for layers, which also without one kind of cone grow lighter throughout and are never the grey of
the cortex's folds (viridis' green is).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nsdcap.aggregate import COLUMNS
from nsdcap.errors import DataError
from nsdcap.maps import read_surface, read_volume
from nsdcap.paths import Cell, artefact
from nsdcap.tables import read_table

DPI = 200
WIDTH = 7.2  # inches, a page's text
SMALL, NORMAL = 7, 8  # points at that width
GREY, PALE = "#595959", "#d0d0d0"
BLUE, VERMILION, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
PHASE_STYLE: Any = {
    "early": {"color": BLUE, "marker": "o", "linestyle": "-"},
    "mid": {"color": VERMILION, "marker": "s", "linestyle": "--"},
    "late": {"color": GREEN, "marker": "^", "linestyle": "-."},
}
STREAM_STYLE: Any = {
    "early": {"color": "#000000", "linestyle": "-", "marker": "D"},
    "midventral": {"color": BLUE, "linestyle": "--", "marker": "o", "markerfacecolor": "white"},
    "midlateral": {
        "color": VERMILION,
        "linestyle": "--",
        "marker": "s",
        "markerfacecolor": "white",
    },
    "midparietal": {"color": GREEN, "linestyle": "--", "marker": "^", "markerfacecolor": "white"},
    "ventral": {"color": BLUE, "linestyle": "-", "marker": "o"},
    "lateral": {"color": VERMILION, "linestyle": "-", "marker": "s"},
    "parietal": {"color": GREEN, "linestyle": "-", "marker": "^"},
}
ABOUT = ("subjects", "layers", "no_stimuli", "counts", "on_surface", "z_B_map")  # of run.json
MARKERS = "osv^Dx+*"  # of subjects
STYLE: Any = {
    "font.size": NORMAL,
    "font.family": "DejaVu Sans",
    "axes.titlesize": NORMAL,
    "axes.labelsize": NORMAL,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "savefig.dpi": DPI,
    "svg.fonttype": "none",
    "svg.hashsalt": "nsdcap",
}


@dataclass(frozen=True)
class Figure:
    """What goes with a drawing: its file's stem, its caption and its text for those who cannot see it."""

    name: str
    number: int
    caption: str
    alt: str


@dataclass(frozen=True)
class Run:
    """A run on disk: the folder of all stages, that of the tables, and run.json.

    What is missing or broken raises DataError.
    """

    out: Path
    target: Path
    about: dict[str, Any]

    @property
    def subjects(self) -> list[int]:
        return self.about["subjects"]

    def counts(self, subject: int) -> dict[str, int]:
        """n_voxels, n_trials_train, n_test."""
        return self.about["counts"][str(subject)]

    def table(self, name: str) -> list[dict[str, str]]:
        return read_table(self.target / "tables" / f"{name}.csv", COLUMNS[name])

    def captions(self, subject: int) -> dict[str, dict[str, Any]]:
        """What the caption stage wrote, by nsd_id."""
        path = artefact(self.out, Cell("caption", subject))
        try:
            return json.loads(path.read_text())["captions"]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path}: cannot be read; run the caption stage") from error

    def volume(self, subject: int, name: str) -> np.ndarray:
        """A map (X, Y, Z) float64, from left to right, back to front, low to high; NaN outside."""
        return read_volume(self.target, self.about, subject, name)

    def surface(self, subject: int, name: str, hemi: str) -> np.ndarray:
        """A map's significant values on fsaverage5, (10242,), NaN elsewhere."""
        return read_surface(self.target, subject, name, hemi)


def open_run(out: Path, target: Path) -> Run:
    """Raises DataError where there are no tables yet, or those of another version."""
    path = target / "run.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{target}: has no run.json; run the aggregate stage first") from error
    except ValueError as error:
        raise DataError(
            f"{path}: broken ({error}); run the aggregate stage again, with --force"
        ) from error
    lacking = [key for key in ABOUT if not isinstance(about, dict) or key not in about]
    if lacking:
        raise DataError(
            f"{path}: lacks {', '.join(lacking)}; run the aggregate stage again, with --force"
        )
    return Run(out, target, about)


def number(row: dict[str, str], key: str) -> float:
    """A table's number; an empty cell is NaN."""
    return float(row[key]) if row[key] else float("nan")


def mean(values: list[float]) -> float:
    """NaN of none."""
    return float(np.mean(values)) if values else float("nan")
