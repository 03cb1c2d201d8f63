"""One self-contained HTML page of a run: results beside the paper's, figures, readings, limits."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nsdcap import __version__
from nsdcap.aggregate import results_time
from nsdcap.config import MODEL_NAMES, PHASES, STREAMS
from nsdcap.errors import DataError
from nsdcap.paths import config_file
from nsdcap.plots import caption_table, over_subjects
from nsdcap.plots_cortex import Run, open_run

HIGHER = ("ventral", "lateral", "parietal")
# the made-up world's own captioner; real pictures must never pass for it, so nothing looser will do
_MINIATURE = re.compile(r'^blip = ".*miniature/models/', re.MULTILINE)
# settings that may be paths
_PRIVATE = ("nsd_root", "annotations", "blip_tokenizer", "backbones", *MODEL_NAMES)


def write(out: Path, target: Path, log: Callable[[str], object] = print) -> Path:
    """Write ``target``/report.html from the tables and figures there; returns its path.

    Raises DataError where tables or figures are missing.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    run = open_run(out, target)
    listing = target / "figures" / "figures.json"
    if not listing.exists():
        raise DataError(f"{listing}: missing; draw the figures first, python -m nsdcap.plots {out}")
    scores = {
        name: run.table(name) for name in ("captions", "pictures", "encoding", "layers", "decoding")
    }
    settings = config_file(out).read_text() if config_file(out).exists() else ""
    header, rows, ids = caption_table(run)
    environment = Environment(
        loader=PackageLoader("nsdcap", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("report.html.j2").render(
        version=__version__,
        made=results_time(out),
        run=run.about,
        miniature=bool(_MINIATURE.search(settings)),
        results=results(run, scores),
        figures=_figures(target, json.loads(listing.read_text()), readings(run, scores)),
        captions={"header": header, "rows": list(zip(ids, rows, strict=True))},
        streams=stream_table(run, scores["encoding"]),
        layers=layer_table(run, scores["encoding"]),
        scores={"Captions": scores["captions"], "Pictures": scores["pictures"]},
        decoding=scores["decoding"],
        settings=_without_paths(settings),
        number=number,
    )
    path = target / "report.html"
    path.write_text(page, encoding="utf-8")
    log(f"report {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return path


def results(run: Run, scores: dict[str, list[dict]]) -> list[dict[str, str]]:
    """The paper's results and this run's, a row each, as texts."""
    captions, pictures, subjects = scores["captions"], scores["pictures"], run.subjects
    rows = []
    for metric, paper in (
        ("BLEU-4 sacrebleu", "11.06, which BLEU is not said (chance 2.4 ± 1.7)"),
        ("BLEU-4 coco", "the same; which BLEU is not said"),
        ("BLEU-4 sentence", "the same; which BLEU is not said"),
        ("CLIP cosine", "above chance"),
    ):
        digits = 2 if "BLEU" in metric else 3
        own = Scores(captions, subjects, "brain", metric, digits)
        others = [("picture's own features", "picture"), ("nearest training picture's caption", "nearest"),
                  ("with gain", "brain_gain")]  # fmt: skip
        beside = [
            f"{name} {Scores(captions, subjects, arm, metric, digits).mean}" for name, arm in others
        ]
        rows.append(own.row(f"Captions from the brain, {metric}", paper, "; ".join(beside)))
    won = Scores(captions, subjects, "brain", "CLIP wins over nearest", 1, 100)
    rows.append(
        won.row(
            "Brain caption closer than the nearest training picture's, CLIP", "not reported", ""
        )
    )
    beside = []
    for arm in ("caption", "direct"):
        own = Scores(pictures, subjects, f"{arm} over coarse", "CLIP wins", 1, 100)
        beside.append(f"{arm} arm over the coarse picture {own.mean}")
    own = Scores(pictures, subjects, "caption over direct", "CLIP wins", 1, 100)
    rows.append(
        own.row(
            "Caption arm closer than the direct arm, CLIP", "75.6 % of pictures", "; ".join(beside)
        )
    )
    for metric, digits, factor in (
        ("CLIP similarity", 3, 1), ("two-way among shown", 1, 100),
        ("two-way among predicted", 1, 100), ("PixCorr", 3, 1),
    ):  # fmt: skip
        beside = [
            f"{arm} {Scores(pictures, subjects, arm, metric, digits, factor).mean}"
            for arm in ("direct", "coarse")
        ]
        own = Scores(pictures, subjects, "caption", metric, digits, factor)
        if own.values:
            rows.append(own.row(f"Caption arm, {metric}", "not reported", "; ".join(beside)))
    for what, paper in (
        ("Captions, human two-choice", "90.1 ± 3.5 % (chance 50 %)"),
        ("Caption arm over direct arm, human raters", "64.6 %"),
    ):
        rows.append({
            "what": what, "definition": "needs human raters", "paper": paper,
            "ours": "not measured here", "interval": "", "each": "", "chance": "50 %", "beside": "", "n": "",
        })  # fmt: skip
    return rows


class Scores:
    """One metric of one arm over subjects; ``factor`` 100 for shares, shown as per cent."""

    def __init__(
        self,
        table: list[dict],
        subjects: list[int],
        arm: str,
        metric: str,
        digits: int,
        factor: int = 1,
    ):
        rows = [
            row for row in table if (row["arm"], row["metric"]) == (arm, metric) and row["value"]
        ]
        self.rows = [row for row in rows if int(row["subject"]) in subjects]
        self.values = [float(row["value"]) * factor for row in self.rows]
        self.digits, self.factor, self.unit = digits, factor, " %" if factor == 100 else ""
        bounded = factor == 100 or "BLEU" in metric
        self.bounds = (0, 100) if bounded else (-1, 1)  # all else is a cosine or a correlation

    @property
    def mean(self) -> str:
        return self._text(float(np.mean(self.values))) if self.values else "none"

    def row(self, what: str, paper: str, beside: str) -> dict[str, str]:
        """The row of the table of results."""
        if not self.values:
            return {"what": what, "definition": "", "paper": paper, "ours": "none", "interval": "",
                    "each": "", "chance": "", "beside": beside, "n": "0"}  # fmt: skip
        mean, half = over_subjects(np.array(self.values))
        low, high = np.clip((mean - half, mean + half), *self.bounds)
        interval = f"{self._text(low)} to {self._text(high)}"
        each = "; ".join(
            f"{row['subject']}: {self._text(value)} ({self._text(self._of(row, 'ci_low'))} to "
            f"{self._text(self._of(row, 'ci_high'))})"
            for row, value in zip(self.rows, self.values, strict=True)
        )
        return {
            "what": what, "definition": self.rows[0]["definition"], "paper": paper, "ours": self.mean,
            "interval": interval if len(self.values) > 1 else "one subject", "each": each,
            "chance": self._chance(), "beside": beside,
            "n": f"{len(self.values)} × {self.rows[0]['n']}",
        }  # fmt: skip

    def _chance(self) -> str:
        means = [self._of(row, "chance_mean") for row in self.rows]
        if not np.isfinite(means).all():
            return "not computed"
        sds = [self._of(row, "chance_sd") for row in self.rows]
        text = self._text(float(np.mean(means)))
        return f"{text} ± {self._text(float(np.mean(sds)))}" if np.isfinite(sds).all() else text

    def _of(self, row: dict, key: str) -> float:
        return float(row[key]) * self.factor if row[key] else float("nan")

    def _text(self, value: float) -> str:
        return f"{value:.{self.digits}f}{self.unit}"


def stream_table(run: Run, encoding: list[dict]) -> list[dict[str, Any]]:
    """By stream: mean r (over ceiling) and significant voxels of z_v, its CLS token, z_B, joint."""
    where = run.about["z_B_map"]
    models = (("z_v", "", ""), ("z_v_cls", "", ""), ("z_B", str(where["state"]), where["phase"]),
              ("joint", str(where["state"]), where["phase"]))  # fmt: skip
    rows = []
    for roi in (*STREAMS, "all"):
        cells = []
        for model in models:
            found = [
                r
                for r in encoding
                if (r["feature"], r["layer"], r["phase"]) == model and r["roi"] == roi
            ]
            cells.append(
                {
                    "r": _mean(found, "mean_r"), "over": _mean(found, "mean_r_over_ceiling"),
                    "n": sum(int(r["n_significant"]) for r in found),
                    "gaussian": sum(int(r["n_significant_gaussian"]) for r in found),
                    "of": sum(int(r["n_voxels"]) for r in found),
                    "left_out": sum(int(r["n_nan"]) for r in found),
                }
            )  # fmt: skip
        rows.append({"roi": roi, "cells": cells})
    return rows


def layer_table(run: Run, encoding: list[dict]) -> list[dict[str, Any]]:
    """Figure 6's numbers: mean r over subjects by state and phase, with half the t interval."""
    rows = []
    for state in run.about["states"]:
        cells = []
        for phase in PHASES:
            each = [float(r["mean_r"]) for r in encoding if r["roi"] == "all" and r["feature"] == "z_B"
                    and (r["layer"], r["phase"]) == (str(state), phase)]  # fmt: skip
            mean, half = over_subjects(np.array(each))
            cells.append((float(mean), float(half)))
        rows.append({"state": state, "cells": cells})
    return rows


def readings(run: Run, scores: dict[str, list[dict]]) -> dict[int, str]:
    """Plain words for each figure, from the numbers alone, whether they flatter or not."""
    captions, pictures, encoding = scores["captions"], scores["pictures"], scores["encoding"]
    bleu = {arm: Scores(captions, run.subjects, arm, "BLEU-4 sacrebleu", 1)
            for arm in ("brain", "picture", "nearest", "brain_gain")}  # fmt: skip
    values = {arm: float(np.mean(score.values)) for arm, score in bleu.items()}
    row = bleu["brain"].row("", "", "")
    against = "above" if values["brain"] > values["nearest"] else "not above"
    texts = {3: (
        f"Corpus BLEU-4 by sacrebleu of the captions from the brain is {row['ours']}; shuffled pictures "
        f"give {row['chance']}. That is {against} what copying a human caption of the nearest training "
        f"picture gives ({bleu['nearest'].mean}). From the picture itself the captioner reaches "
        f"{bleu['picture'].mean}; with one gain against ridge's shrinkage the brain reaches "
        f"{bleu['brain_gain'].mean}."
    )}  # fmt: skip
    won = {pair: Scores(pictures, run.subjects, pair, "CLIP wins", 1, 100)
           for pair in ("caption over direct", "caption over coarse", "direct over coarse")}  # fmt: skip
    pair = won["caption over direct"]
    above = sum(float(r["ci_low"]) > 0.5 for r in pair.rows)
    texts[4] = (
        f"The caption arm is closer to the shown picture than the direct arm in {pair.mean} of pictures "
        f"(the paper: 75.6 %; chance: 50 %); the interval lies above 50 % in {above} of {len(pair.rows)} "
        f"subjects. Both arms start from the coarse picture: the caption arm improves on it in "
        f"{won['caption over coarse'].mean}, the direct arm in {won['direct over coarse'].mean}."
    )
    r = {row["roi"]: [cell["r"] for cell in row["cells"]] for row in stream_table(run, encoding)}
    higher = np.nanmean([r[roi] for roi in HIGHER], axis=0)
    ratio = [r["early"][k] - higher[k] for k in (0, 2)]
    texts[5] = (
        f"Mean r of z_v is {r['early'][0]:.3f} in the early stream and {higher[0]:.3f} in the ventral, "
        f"lateral and parietal ones; of z_B {r['early'][2]:.3f} and {higher[2]:.3f}. So z_v "
        f"{'loses' if ratio[0] > 0 else 'gains'} and z_B {'loses' if ratio[1] > 0 else 'gains'} on the way "
        "up; the paper has z_v losing and z_B gaining. The CLS token of z_v, as narrow as z_B, reaches "
        f"{r['early'][1]:.3f} and {higher[1]:.3f}: part of z_v against z_B is their width."
    )  # fmt: skip
    table = layer_table(run, encoding)
    _, state, phase = max(
        (cell[0], row["state"], name)
        for row in table
        for name, cell in zip(PHASES, row["cells"], strict=True)
    )
    same = "as" if phase == "mid" and state > max(run.about["states"]) / 2 else "not as"
    texts[6] = (
        f"The highest mean r is at layer {state}, {phase} in the caption: {same} in the paper, where "
        "higher layers predict better and midway is best."
    )
    streams = {
        roi: _mean([x for x in scores["layers"] if x["roi"] == roi], "mean_layer")
        for roi in STREAMS
    }
    known = {roi: value for roi, value in streams.items() if np.isfinite(value)}
    total = [x for x in scores["layers"] if x["roi"] == "all"]
    some = sum(int(x["n_significant"]) for x in total), sum(int(x["n_voxels"]) for x in total)
    listed = ", ".join(f"{roi} {value:.1f}" for roi, value in known.items()) or "none"
    texts[7] = (
        f"z_B adds significantly to z_v in {some[0]} of {some[1]} voxels, all subjects together. Mean best "
        f"layer there: {listed}. The paper's layers rise along the visual hierarchy; a single voxel's best "
        "layer is unreliable, so compare streams, not voxels."
    )
    return texts


def number(text: str, digits: int = 3) -> str:
    """A table's number, rounded; other texts as they are."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return text
    return f"{value:.{digits}f}" if np.isfinite(value) and value != int(value) else text


def _mean(rows: list[dict], key: str) -> float:
    values = [float(row[key]) for row in rows if row[key]]
    return float(np.mean(values)) if values else float("nan")


def _figures(target: Path, listing: list[dict], texts: dict[int, str]) -> list[dict[str, Any]]:
    """Figures by number with their PNG as base64; a reading goes with the first of its number."""
    groups: dict[int, list[dict]] = {}
    for entry in listing:
        path = target / "figures" / f"{entry['name']}.png"
        if not path.exists():
            raise DataError(f"{path}: missing; draw the figures again")
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        groups.setdefault(entry["number"], []).append({**entry, "png": data})
    return [
        {"number": k, "reading": texts.get(k, ""), "parts": groups.get(k, [])}
        for k in sorted(set(groups) | set(texts))
    ]  # fmt: skip


def _without_paths(settings: str) -> str:
    """The settings with every folder cut to its last name: a report tells nobody's paths."""
    lines = []
    for line in settings.splitlines():
        key, equals, value = line.partition(" = ")
        if equals and key in _PRIVATE and value.startswith('"/'):
            line = f'{key} = ".../{value.rstrip(chr(34)).rstrip("/").rsplit("/", 1)[-1]}"'
        lines.append(line)
    return "\n".join(lines)
