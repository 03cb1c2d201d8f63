"""All cells' files -> tables and maps in one folder; a gap anywhere is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nsdcap.config import Config
from nsdcap.encoded import best_layer, read_models, read_voxels
from nsdcap.errors import DataError
from nsdcap.maps import Fixed, maps_of, write_listing, write_surfaces, write_volumes
from nsdcap.paths import DONE, Cell, artefact
from nsdcap.tables import (
    BOOTSTRAPS,
    DECODING_COLUMNS,
    SCORE_COLUMNS,
    SHUFFLES,
    decoding_rows,
    write_table,
)
from nsdcap.tables_alpha import ALPHA_COLUMNS, alpha_rows
from nsdcap.tables_captions import caption_rows, read_captions
from nsdcap.tables_encoding import (
    ENCODING_COLUMNS,
    GROUP_COLUMNS,
    LAYER_COLUMNS,
    encoding_rows,
    group_rows,
    layer_rows,
)
from nsdcap.tables_pictures import picture_rows

COLUMNS = {
    "encoding": ENCODING_COLUMNS, "encoding_group": GROUP_COLUMNS, "layers": LAYER_COLUMNS,
    "captions": SCORE_COLUMNS, "pictures": SCORE_COLUMNS, "decoding": DECODING_COLUMNS,
    "alphas": ALPHA_COLUMNS,
}  # of each table  # fmt: skip
INPUTS = ("prepare", "decode", "caption", "reconstruct", "compare", "encode")  # stages


def run(cell: Cell, config: Config, nsd: Any, out: Path, target: Path) -> None:
    """The stage: tables, maps, figures and the report, into the folder ``target``."""
    from nsdcap import plots, report
    from nsdcap.stages import encode_layers

    subjects, layers = list(config.data.subjects), list(encode_layers(config))
    aggregate(out, target, subjects, layers, surfaces=nsd, no_stimuli=config.no_stimuli)
    plots.draw(out, target)
    report.write(out, target, log=lambda line: None)  # the launcher names the place it ends in


def aggregate(
    out: Path,
    target: Path,
    subjects: list[int],
    layers: list[int],
    *,
    surfaces: Any = None,
    no_stimuli: bool = False,
    log: Callable[[str], object] = print,
) -> None:
    """Read every result of the run in ``out``; write tables, maps and run.json into ``target``.

    Significance is Benjamini-Hochberg at 0.05 over all voxels of a map; voxels whose p is NaN (they
    never varied) are left out and counted. ``layers``: BERT's, from 0, the embeddings.
    ``surfaces``: an ``nsd.NSD``, whose transforms take maps to fsaverage; without them, or where a
    subject lacks them, maps stay in the volume. ``target`` is made; the caller renames it. The same
    results give the same bytes. Memory: one subject's maps at a time, 0.3 GB for 15,000 voxels and 80
    models.

    Raises
    ------
    DataError
        Files are missing (all are named), or one is broken or does not agree with another.
    """
    _refuse_gaps(out, subjects, layers)
    for folder in ("tables", "maps"):
        (target / folder).mkdir(parents=True, exist_ok=True)
    encoding: list[dict] = []
    best_layers: list[dict] = []
    written: dict[int, dict] = {}
    pictures: list[dict] = []
    decoding: list[dict] = []
    alphas: list[dict] = []
    counts, on_surface, listing = {}, [], []
    fixed = Fixed(max(layers))
    for subject in subjects:
        voxels = read_voxels(out, subject)
        models = list(read_models(out, subject, layers, voxels))
        for model in models:
            encoding += encoding_rows(subject, model, voxels)
        for by in ("r", "gain"):
            best_layers += layer_rows(subject, by, *best_layer(models, by), voxels)
        maps = maps_of(models, voxels)
        listing += write_volumes(target / "maps", subject, maps, voxels)
        if surfaces is not None:
            there = write_surfaces(target / "maps", subject, maps, voxels, surfaces, fixed, log)
            listing += there
            on_surface += [subject] if there else []
        written[subject] = read_captions(out, subject)
        shown = {int(i) for i in written[subject]["captions"]}
        rows = picture_rows(out, subject, shown)
        pictures += rows
        decoding += decoding_rows(out, subject)
        alphas += alpha_rows(out, subject, models)
        counts[subject] = {
            "n_voxels": len(voxels.stream),
            "n_trials_train": voxels.n_trials,
            "n_test": len(shown),
        }
        log(f"aggregate subj{subject:02d}: {counts[subject]}")
    tables = {
        "encoding": encoding, "encoding_group": group_rows(encoding), "layers": best_layers,
        "captions": caption_rows(written), "pictures": pictures, "decoding": decoding, "alphas": alphas,
    }  # fmt: skip
    for name, columns in COLUMNS.items():
        write_table(target / "tables" / f"{name}.csv", columns, tables[name])
    write_listing(target / "maps", listing)
    summary = {
        "subjects": subjects, "layers": layers, "no_stimuli": no_stimuli, "counts": counts,
        "on_surface": on_surface, "z_B_map": {"layer": fixed.layer, "phase": fixed.phase},
        "shuffles": SHUFFLES, "bootstraps": BOOTSTRAPS,
    }  # fmt: skip
    (target / "run.json").write_text(json.dumps(summary, indent=1) + "\n")


def results_time(out: Path) -> str:
    """When the newest of the results in ``out`` that tables are made from was, as "results as of ...".

    By the sidecars, so the same cells tell the same time whenever their tables are made.
    """
    ended = [
        json.loads(path.read_text())["ended"]
        for stage in INPUTS
        for path in (out / stage).glob(f"*{DONE}")
    ]
    if not ended:
        return "results of an unknown time"
    newest = max(datetime.fromisoformat(time) for time in ended).astimezone(UTC)
    return newest.strftime("results as of %d %B %Y, %H:%M UTC")


def _refuse_gaps(out: Path, subjects: list[int], layers: list[int]) -> None:
    cells = [Cell(stage, subject) for stage in INPUTS[:-1] for subject in subjects]
    cells += [Cell("encode", subject, layer) for subject in subjects for layer in (None, *layers)]
    missing = [path for path in (artefact(out, cell) for cell in cells) if not path.is_file()]
    if missing:
        names = ", ".join(str(path.relative_to(out)) for path in missing)
        raise DataError(
            f"{out}: {len(missing)} of {len(cells)} results are missing: {names}; run their stages"
        )
