"""``python -m nsdcap.report OUT``: one self-contained HTML page of a run, from its tables and figures on disk.

It is written anew, without computing anything, as OUT/aggregate/report.html. What it holds: the paper's
results and this run's, figures with their readings, a gallery, all scores, times, methods, provenance,
limits. The same files and settings give the same bytes.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nsdcap import __version__, config
from nsdcap.aggregate import COLUMNS, results_time
from nsdcap.errors import DataError, NsdcapError, UsageError
from nsdcap.pages import fill
from nsdcap.paths import Cell, artefact, atomic, config_file
from nsdcap.plots import caption_table
from nsdcap.plots_cortex import Run, open_run
from nsdcap.report_costs import bytes_text, cells_of, costs
from nsdcap.report_gallery import gallery
from nsdcap.report_methods import methods, read_facts
from nsdcap.report_provenance import commit, settings_text, versions, versions_of_cells, weights
from nsdcap.report_readings import readings
from nsdcap.report_results import (
    differences,
    layer_table,
    not_comparable,
    read_ratings,
    results,
    stream_table,
)
from nsdcap.report_scores import Scores, by_metric, columns, overview, without_folders
from nsdcap.tables import SEED, read_table

BUDGET = 15e6  # bytes that a report of four subjects stays under
HEAVY = 400_000  # bytes of a figure's PNG above which the report holds it as WebP
TABLES = ("captions", "pictures", "encoding", "layers", "decoding")
LONG = 150  # rows from which a table that is not known here is only given as a file
# the made-up world's own captioner; real pictures must never pass for it, so nothing looser will do
_MINIATURE = re.compile(r'^blip = ".*miniature/models/', re.MULTILINE)
TITLES = {
    3: "Captions from brain activity", 4: "Pictures from brain activity",
    5: "Where z_v and z_B predict the brain", 6: "BERT layer and time in the caption",
    7: "The BERT layer of the best joint model", 8: "What z_B adds to z_v", 9: "The penalties chosen",
    10: "Prediction against the noise ceiling",
}  # fmt: skip


def write(
    out: Path,
    target: Path,
    log: Callable[[str], object] = print,
    *,
    no_stimuli: bool = False,
    file: Path | None = None,
) -> Path:
    """Write ``file``, by default ``target``/report.html, from the tables and figures in ``target``.

    ``no_stimuli``: no picture of NSD nor one made from brain activity is in it, whatever the run's setting
    was; figures are then drawn without, elsewhere. Returns the file's path.

    Raises
    ------
    DataError
        Tables, figures or results that they are made from are missing or broken.
    UsageError
        The file cannot be written.
    """
    run = open_run(out, target)
    tables = read_tables(target)
    if not (target / "figures" / "figures.json").exists():
        raise DataError(
            f"{target / 'figures' / 'figures.json'}: missing; draw the figures first, "
            f"python -m nsdcap.plots {out}"
        )
    with figures_without(run, no_stimuli) as (run, folder):
        page = render(run, tables, folder)
    path = file or target / "report.html"
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "is a folder")
        with atomic(path) as partial:
            partial.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"report {path}: cannot be written ({error.strerror}); give a file in a folder that you may "
            "write to, --output FILE"
        ) from None
    size = path.stat().st_size
    over = f", more than the {bytes_text(BUDGET)} that it should be" if size > BUDGET else ""
    log(f"report {path} ({bytes_text(size)}{over})")
    return path


def render(run: Run, tables: dict[str, list[dict]], folder: Path) -> str:
    """The page of a run whose figures lie in ``folder``."""
    text = config_file(run.out).read_text() if config_file(run.out).exists() else ""
    settings = config.load(config_file(run.out)) if text else None
    seed = settings.seed if settings else 0
    miniature = bool(_MINIATURE.search(text))
    facts = read_facts(run.out, run, settings)
    notes = cells_of(run)
    ratings = read_ratings(run.out)
    rows, differ = results(run, tables, ratings), differences(run, settings, facts)
    metrics = list(
        dict.fromkeys(
            r["metric"] for k in ("captions", "pictures") for r in tables[k] if r["value"]
        )
    )
    paragraphs, references = (
        methods(run, settings, facts, metrics, miniature) if settings else ([], [])
    )
    header, lines, ids = caption_table(run)
    return fill(
        "nsdcap", "report.html.j2",
        version=__version__,
        made=results_time(run.out),
        run=run.about,
        facts=facts,
        miniature=miniature,
        cards=cards(run, tables),
        results=[(row, not_comparable(row, differ, miniature, ratings)) for row in rows],
        differences=[differ_text for _, differ_text in dict.fromkeys(differ)],
        figures=_figures(folder, readings(run, tables)),
        cortex=cortex(run.target / "figures" / "cortex.html"),
        captions={"header": header, "rows": list(zip(ids, lines, strict=True))},
        gallery=[] if run.about["no_stimuli"] else gallery(run, seed),
        streams=stream_table(run, tables["encoding"]),
        layers=layer_table(run, tables["encoding"]),
        scores={
            title: (metrics := by_metric(run, tables[name]), overview(metrics))
            for name, title in (("captions", "Captions"), ("pictures", "Pictures"))
        },
        decoding=tables["decoding"],
        others={name: rows for name, rows in tables.items() if name not in TABLES},
        files={name: _csv_uri(run.target / "tables" / f"{name}.csv") for name in tables},
        long=LONG,
        costs=costs(run, notes),
        methods=paragraphs,
        references=references,
        versions=versions(),
        commit=commit(),
        made_by=versions_of_cells(notes),
        weights=weights(notes),
        seeds=[("run (folds, noise, permutations, this gallery)", str(seed)),
               ("shuffles and bootstraps of the tables", str(SEED))],
        settings=settings_text(text),
        columns=columns,
    )  # fmt: skip


def read_tables(target: Path) -> dict[str, list[dict[str, str]]]:
    """All tables (CSV) in ``target``/tables by name, those of TABLES first.

    Raises DataError where one of TABLES is missing, lacks a column or has no rows.
    """
    folder, found = target / "tables", {}
    names = [*TABLES, *sorted(p.stem for p in folder.glob("*.csv") if p.stem not in TABLES)]
    for name in names:
        path = folder / f"{name}.csv"
        found[name] = read_table(path, COLUMNS[name] if name in TABLES else ())
        if name in TABLES and not found[name]:
            raise DataError(f"{path}: holds no rows; run the aggregate stage again")
    return found


@contextmanager
def figures_without(run: Run, no_stimuli: bool) -> Iterator[tuple[Run, Path]]:
    """The run and the folder of its figures; with ``no_stimuli`` both without pictures of NSD.

    Which figures hold pictures only ``plots`` knows, so they are drawn again, into a folder that is removed.
    """
    if run.about["no_stimuli"] or not no_stimuli:
        yield run, run.target / "figures"
        return
    from nsdcap import plots

    about = {**run.about, "no_stimuli": True}
    with TemporaryDirectory() as name:
        folder = Path(name)
        for entry in run.target.iterdir():
            if entry.name not in ("run.json", "figures", "report.html"):
                (folder / entry.name).symlink_to(entry.resolve())
        (folder / "run.json").write_text(json.dumps(about))
        plots.draw(run.out, folder, log=lambda line: None)
        yield replace(run, about=about), folder / "figures"


def cards(run: Run, tables: dict[str, list[dict]]) -> list[dict[str, str]]:
    """The few numbers that a reader looks for first, each with chance and the paper's."""
    found = []
    for title, table, arm, metric, digits, paper in (
        ("Captions, BLEU-4 (sacrebleu)", "captions", "brain", "BLEU-4 sacrebleu", 1, "11.06, BLEU not said"),
        ("Captions, CLIP cosine", "captions", "brain", "CLIP cosine", 3, "above chance"),
        ("Caption arm over direct arm", "pictures", "caption over direct", "CLIP wins", 1, "75.6 %"),
        ("Two-way identification, CLIP", "pictures", "caption", "two-way among shown", 1, "not reported"),
    ):  # fmt: skip
        own = Scores(tables[table], run.subjects, arm, metric, digits)
        if own.values:
            found.append({"title": title, "value": own.mean, "chance": own.chance, "paper": paper})
    return found


def cortex(path: Path) -> dict[str, Any] | None:
    """The turning cortex's page, packed as base64 of gzip, and its sizes as texts; None without one."""
    if not path.exists():
        return None
    raw = path.read_bytes()
    packed = gzip.compress(raw, 9, mtime=0)  # without the time: the same page, the same bytes
    return {"packed": base64.b64encode(packed).decode("ascii"), "size": bytes_text(len(raw))}


def figure_uri(path: Path) -> str:
    """A figure's PNG as a data URI; above HEAVY as WebP, which is several times smaller for photographs."""
    raw, kind = path.read_bytes(), "png"
    if len(raw) > HEAVY:
        from PIL import Image

        buffer = io.BytesIO()
        with Image.open(path) as image:
            image.convert("RGB").save(buffer, "WEBP", quality=90, method=6)
        if buffer.tell() < len(raw):
            raw, kind = buffer.getvalue(), "webp"
    return f"data:image/{kind};base64," + base64.b64encode(raw).decode("ascii")


def _csv_uri(path: Path) -> str:
    text = without_folders(path.read_text(encoding="utf-8"))
    return "data:text/csv;base64," + base64.b64encode(text.encode()).decode("ascii")


def _figures(folder: Path, texts: dict[int, str]) -> list[dict[str, Any]]:
    """Figures in the listing's order with their PNG as base64; a reading goes with the first of its number.

    A figure without a number stands by its name, behind the paper's.
    """
    groups: dict[Any, list[dict]] = {}
    try:
        listing = json.loads((folder / "figures.json").read_text())
    except ValueError as error:
        raise DataError(
            f"{folder / 'figures.json'}: broken ({error}); draw the figures again"
        ) from None
    for entry in listing:
        path = folder / f"{entry['name']}.png"
        if not path.exists():
            raise DataError(f"{path}: missing; draw the figures again")
        part = {**entry, "uri": figure_uri(path)}
        groups.setdefault(entry.get("number") or entry["name"], []).append(part)
    keys = sorted(set(groups) | set(texts), key=lambda key: (isinstance(key, str), key))
    found = []
    for key in keys:
        numbered = str(key)[0].isdigit() or "." in str(key)
        title = TITLES.get(key) or next(
            (p["title"] for p in groups.get(key, []) if "title" in p), ""
        )
        words = str(key).replace("_", " ").capitalize()
        found.append({
            "key": re.sub(r"\W", "-", str(key)), "reading": texts.get(key, ""),
            "label": f"Figure {key}" if numbered else title or words,
            "title": title if numbered else "", "number": key, "parts": groups.get(key, []),
        })  # fmt: skip
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 2 on bad usage, 65 where results are missing or broken."""
    parser = argparse.ArgumentParser(
        prog="python -m nsdcap.report",
        description="Write a run's report anew, one HTML file, from its tables and figures on disk.",
        epilog="Exit codes: 0 written, 2 usage, 65 tables, figures or results are missing or broken.",
    )
    parser.add_argument("out", type=Path, help="a run's folder, which holds config.toml")
    parser.add_argument("--no-stimuli", action="store_true",
                        help="leave out every picture of NSD and those made from brain activity")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE",
                        help="write there (default: OUT/aggregate/report.html)")  # fmt: skip
    given = parser.parse_args(arguments)
    try:
        if not config_file(given.out).is_file():
            raise UsageError(
                f"{given.out}: found no config.toml there; give the folder of a run (--out)"
            )
        target = artefact(given.out, Cell("aggregate"))
        write(given.out, target, no_stimuli=given.no_stimuli, file=given.output)
    except NsdcapError as error:
        print(f"nsdcap.report: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
