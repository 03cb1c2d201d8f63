"""How a table is written, what its rows have in common, and the table of what ridge chose."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nsdcap.artefacts import Artefact, open_file
from nsdcap.errors import DataError
from nsdcap.paths import Cell, artefact
from nsdcap.stats import bootstrap_ci

SHUFFLES, BOOTSTRAPS, SEED = 1000, 1000, 0
SCORE_COLUMNS = (
    "subject", "arm", "metric", "definition", "value", "ci_low", "ci_high", "chance_mean",
    "chance_sd", "n", "n_shuffles", "note",
)  # fmt: skip
DECODING_COLUMNS = (
    "subject", "latent", "n_targets", "n_constant", "alpha_median", "alpha_low", "alpha_high", "edge_share",
    "gain", "mean_cv_r2", "share_cv_r2_above_0",
)  # fmt: skip


def write_table(path: Path, columns: Sequence[str], rows: list[dict]) -> None:
    """CSV with a header; NaN and None become empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _cell(row.get(key)) for key in columns})


def read_table(path: Path, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a CSV as texts.

    Raises DataError when it cannot be read or lacks one of ``columns``.
    """
    again = "run the aggregate stage again, python -m nsdcap.launch --stage aggregate --force"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows, found = list(reader), reader.fieldnames or ()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {again}") from error
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: broken ({error}); {again}") from error
    lacking = [column for column in columns if column not in found]
    if lacking:
        raise DataError(f"{path}: lacks {', '.join(lacking)}; {again}")
    if any(None in row or None in row.values() for row in rows):
        raise DataError(f"{path}: broken, rows differ in length; {again}")
    return rows


def decoding_rows(out: Path, subject: int) -> list[dict]:
    """What ridge chose for each latent; alphas where the file has its grid, else their indices.

    Targets that never vary, with a cv_r2 of exactly 0, chose none: they are counted and left out.
    """
    rows = []
    with open_hdf5(artefact(out, Cell("decode", subject)), ("z_v", "c", "z")) as file:
        for latent in ("z_v", "c", "z"):
            group = file[latent]
            index, cv_r2 = group["alpha_index"][:], group["cv_r2"][:]
            varied = (cv_r2 != 0) | (cv_r2 == 0).all()
            chosen = np.asarray(group.attrs["alphas"])[index] if "alphas" in group.attrs else index
            chosen, cv_r2 = chosen[varied], cv_r2[varied]
            rows.append(
                {
                    "subject": subject, "latent": latent, "n_targets": int(group.attrs["n_targets"]),
                    "n_constant": int((~varied).sum()), "alpha_median": np.median(chosen),
                    "alpha_low": chosen.min(), "alpha_high": chosen.max(),
                    "edge_share": group.attrs["edge_share"],
                    "gain": group.attrs["gain"], "mean_cv_r2": np.nanmean(cv_r2),
                    "share_cv_r2_above_0": np.mean(cv_r2 > 0),
                }
            )  # fmt: skip
    return rows


def score_row(
    subject: int,
    arm: str,
    metric: str,
    definition: str,
    n: int,
    numbers: Sequence[float],
    n_shuffles: int | None = None,
    note: str = "",
) -> dict[str, Any]:
    """A row of a table of scores; ``numbers`` are the columns from value to chance_sd, some or all.

    ``n_shuffles``: of the pictures, that chance is from. ``note``: why there is no value.
    """
    names = ("value", "ci_low", "ci_high", "chance_mean", "chance_sd")
    row: dict[str, Any] = dict(zip(names, numbers, strict=False))
    row |= {"subject": subject, "arm": arm, "metric": metric, "definition": definition, "n": n}
    return row | {"n_shuffles": n_shuffles, "note": note}


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval of values (n,)."""
    mean, low, high = bootstrap_ci(values, BOOTSTRAPS, SEED)
    return float(mean), float(low), float(high)


def open_hdf5(path: Path, keys: Sequence[str]) -> Artefact:
    """A stage's HDF5 file opened for reading; NaN is let through.

    Raises DataError when it is broken or lacks one of ``keys``, see ``artefacts.open_file``.
    """
    return open_file(path, path.parent.name, keys, finite=False)


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float | np.floating) and not np.isfinite(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float | np.floating) else value
