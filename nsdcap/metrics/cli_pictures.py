"""``python -m nsdcap.metrics pictures``: anyone's pictures against those that were shown."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nsdcap.errors import DataError, UsageError, bound
from nsdcap.metrics.cli_captions import NUMBERS
from nsdcap.metrics.pictures import opened

ENDINGS = (".png", ".jpg", ".jpeg")
BLOCK, BATCH = 64, 32  # pictures whose pixels are scored, and that go through a network, at a time
ARM = "pictures"


def add(subparsers: Any) -> None:
    """Add the command ``pictures`` to the sub-commands of ``python -m nsdcap.metrics``."""
    words = "pictures, by the measures that peers report"
    parser = subparsers.add_parser("pictures", help=words, description=f"Score {words}.")
    parser.add_argument(
        "reconstructed", type=Path, metavar="RECONSTRUCTED_DIR", help="folder of PNG or JPEG files"
    )
    parser.add_argument(
        "shown",
        type=Path,
        metavar="SHOWN_DIR",
        help="folder of the shown ones, under the same names",
    )
    parser.add_argument("--json", action="store_true", help="JSON in place of a table")
    parser.add_argument(
        "--clip", default="", metavar="MODEL", help="a hub id or folder of a CLIP; peers': ViT-L/14"
    )
    parser.add_argument(
        "--backbones", default="", metavar="FOLDER", help="folder of the other networks' weights"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:1")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Score and print; returns the exit code.

    Raises
    ------
    UsageError, DataError
        A folder that is missing or holds no pictures, names that do not match, fewer than two pictures, a
        broken file, a model that cannot be read.
    """
    if options.backbones and not Path(options.backbones).is_dir():
        raise UsageError(
            f"--backbones {options.backbones}: there is no such folder{bound()}; give the one with the weights"
        )
    made, shown = paired(options.reconstructed, options.shown)
    rows = scores(made, shown, options.clip, options.backbones, options.device)
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        _print_table(rows, len(made))
    return 0


def paired(reconstructed: Path, shown: Path) -> tuple[list[Path], list[Path]]:
    """The picture files of two folders, in the order of their names without ending."""
    ours, theirs = _pictures(reconstructed), _pictures(shown)
    for one, other, place in ((ours, theirs, shown), (theirs, ours, reconstructed)):
        if lone := sorted(set(one) - set(other)):
            few = ", ".join(one[name].name for name in lone[:3]) + (" ..." if len(lone) > 3 else "")
            raise DataError(
                f"{place}: lacks {len(lone)} of {len(one)} pictures of {one[lone[0]].parent}: {few}; expected "
                "files of the same names in both folders, whatever their endings"
            )
    names = sorted(ours)
    if len(names) < 2:
        raise DataError(f"{reconstructed}: found one picture, expected at least two to tell apart")
    return [ours[name] for name in names], [theirs[name] for name in names]


def scores(
    made: Sequence[Path], shown: Sequence[Path], clip: str = "", backbones: str = "",
    device: str = "auto",
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each metric: metric, definition, value, ci_low, ci_high, chance_mean, chance_sd (of
    shuffled pictures), n, n_shuffles, and ``note``, why it was not computed: the keys of the command
    ``captions`` and the columns of a run's tables. Pictures are read as they are needed."""
    # first: a torchvision that does not fit this torch must not be on its way when transformers looks for one
    rows = _clip_rows(made, shown, clip, device)
    return [*rows, *_pixel_rows(made, shown), *_network_rows(made, shown, backbones, device)]


def read(paths: Sequence[Path], rows: slice) -> list[np.ndarray]:
    """Pictures (h, w, 3) uint8 of some rows."""
    return [opened(path) for path in paths[rows]]


def _clip_rows(
    made: Sequence[Path], shown: Sequence[Path], clip: str, device: str
) -> list[dict[str, Any]]:
    from nsdcap.tables_pictures import clip_rows

    if not clip:
        note = "not computed: no CLIP was named, --clip MODEL"
        names = ("CLIP similarity", "two-way among shown", "two-way among predicted")
        return [_row(name, "by CLIP picture embeddings", len(made), note=note) for name in names]
    from nsdcap.config import Models
    from nsdcap.hub import at_hand
    from nsdcap.score import Clip

    at_hand("clip", clip)
    model = Clip(Models(clip=clip, device=device, batch=BATCH))
    a, b = (_embedded(model, paths) for paths in (shown, made))
    return [_told(row) for row in clip_rows(0, ARM, a, b[:, None], model.name)]


def _embedded(model: Any, paths: Sequence[Path]) -> np.ndarray:
    from nsdcap.ridge import blocks

    parts = [model.pictures(read(paths, rows)) for rows in blocks(len(paths), BLOCK)]
    return np.concatenate(parts).astype(np.float64)


def _pixel_rows(made: Sequence[Path], shown: Sequence[Path]) -> list[dict[str, Any]]:
    from functools import partial

    from nsdcap.compare import CHANCE, pixel_scores
    from nsdcap.metrics.peers import PIXEL_METRICS
    from nsdcap.metrics.pictures import why_no_ssim
    from nsdcap.ridge import blocks

    why, n = why_no_ssim(), len(made)
    readers = {ARM: partial(read, made)}
    parts = [
        pixel_scores(partial(read, shown), readers, rows, n, [ARM], not why)[ARM]
        for rows in blocks(n, BLOCK)
    ]
    found = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    rows = []
    for metric in PIXEL_METRICS:
        if metric.key in found:
            others = found[metric.key + CHANCE]
            rows.append(_scored(metric, found[metric.key], float(np.nanmean(others))))
        else:
            rows.append(_row(metric.name, metric.definition, n, note=f"not computed: {why}"))
    return rows


def _network_rows(
    made: Sequence[Path], shown: Sequence[Path], backbones: str, device: str
) -> list[dict[str, Any]]:
    from functools import partial

    from nsdcap.backbones import Extractor, NotComputed, compare
    from nsdcap.compare import CHANCE
    from nsdcap.devices import choose_device
    from nsdcap.metrics.peers import BACKBONE_METRICS

    n = len(made)
    rows = []
    for key, metrics in BACKBONE_METRICS.items():
        try:
            extractor = Extractor(key, backbones, choose_device(device), BATCH)
        except NotComputed as error:
            note = f"not computed: {error}"
            rows += [_row(metric.name, metric.definition, n, note=note) for metric in metrics]
            continue
        found = compare(extractor, partial(read, shown), {ARM: partial(read, made)}, n)[ARM]
        for metric in metrics:
            rows.append(
                _scored(metric, found[metric.key], float(found.get(metric.key + CHANCE, 0.5)))
            )
    return rows


def _scored(metric: Any, values: np.ndarray, chance: float) -> dict[str, Any]:
    from nsdcap.tables import mean_interval

    known = values[np.isfinite(values)]
    if not len(known):
        return _row(metric.name, metric.definition, 0, note="defined for none of the pictures")
    lost = len(values) - len(known)
    note = f"{lost} pictures left out, where it is not defined" if lost else ""
    return _row(
        metric.name, metric.definition, len(known), (*mean_interval(known), chance), note=note
    )


def _told(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the run's table as one of ours."""
    numbers = [row.get(key) for key in NUMBERS]
    return _row(row["metric"], row["definition"], row["n"], numbers, row["n_shuffles"])


def _row(
    metric: str,
    definition: str,
    n: int,
    numbers: Sequence[float | None] = (),
    n_shuffles: int | None = None,
    note: str = "",
) -> dict[str, Any]:
    """One of ``scores``; ``numbers`` from value to chance_sd, some or none."""
    row: dict[str, Any] = {"metric": metric, "definition": definition, **dict.fromkeys(NUMBERS)}
    known = zip(NUMBERS, numbers, strict=False)
    row |= {key: float(x) for key, x in known if x is not None and np.isfinite(x)}
    return row | {"n": n, "n_shuffles": n_shuffles, "note": note}


def _print_table(rows: list[dict[str, Any]], n: int) -> None:
    """The numbers as a table; below it each one's definition, and what is not computed and why."""
    from rich.console import Console
    from rich.table import Table

    table = Table(caption=f"{n} pictures; intervals by bootstrap over them")
    table.add_column("metric")
    for name in ("value", "95 % interval", "chance ± sd", "n"):
        table.add_column(name, no_wrap=True, justify="right")
    console = Console()
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row["note"]:
            notes.setdefault(row["note"], []).append(row["metric"])
        if row["value"] is None:
            continue
        value, low, high, chance, sd = (
            "" if row[key] is None else f"{row[key]:.4f}" for key in NUMBERS
        )
        chance += f" ± {sd}" if sd else ""
        table.add_row(row["metric"], value, f"{low} to {high}", chance, str(row["n"]))
    console.print(table)
    told = [f"{row['metric']}: {row['definition']}." for row in rows if row["value"] is not None]
    told += [f"{', '.join(names)}: {note}." for note, names in notes.items()]
    for line in told:
        console.print(line, markup=False, highlight=False)


def _pictures(folder: Path) -> dict[str, Path]:
    """A folder's picture files by their names without ending."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder{bound()}; give a folder of pictures")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in ENDINGS or path.name.startswith("."):
            continue
        if path.stem in found:
            raise DataError(
                f"{folder}: found {found[path.stem].name} and {path.name}, expected one picture of a name"
            )
        found[path.stem] = path
    if not found:
        raise DataError(
            f"{folder}: found no pictures, expected files ending in {', '.join(ENDINGS)}"
        )
    return found
