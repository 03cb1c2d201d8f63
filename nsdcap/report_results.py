"""The paper's results beside this run's, and why the two may not be compared."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from nsdcap.config import PHASES, STREAMS, Config, Models, dump
from nsdcap.errors import DataError
from nsdcap.plots import over_subjects
from nsdcap.plots_cortex import Run
from nsdcap.plots_encoding import FEW
from nsdcap.rating.study import signatures
from nsdcap.report_methods import Facts
from nsdcap.report_scores import Scores

HIGHER = ("ventral", "lateral", "parietal")
# the paper's run (3.1, A.1, A.2)
PAPER_SUBJECTS, PAPER_SESSIONS, PAPER_TESTS = (1, 2, 5, 7), 37, 982
PAPER_BLIP = ("model_base_capfilt_large.pth", "model_base.pth")
PAPER_DIFFUSION = "stable-diffusion-v1-4"
MINIATURE = "the miniature is the input"
# what changes speed or place, not results
_ALIKE = (
    "preset", "no_stimuli", "data.nsd_root", "data.annotations", "data.subjects", "data.sessions",
    *(f"models.{field.name}" for field in fields(Models) if field.name not in ("dtype", "normalise")),
    "ridge.block", "ridge.device", "reconstruct.batch", "encode.block", "seed", "encode.layers",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """A row of the table: one of the paper's results, and this run's, as texts."""

    about: str  # captions, pictures or encoding
    what: str
    paper: str
    ours: str
    definition: str = ""
    interval: str = ""
    each: tuple[str, ...] = ()
    chance: str = ""
    beside: tuple[tuple[str, str], ...] = ()  # label and value
    n: str = ""
    why: str = ""  # there is no value


def results(
    run: Run, scores: dict[str, list[dict]], ratings: dict[str, dict[str, Any]]
) -> list[Result]:
    """Every result of the paper with this run's, in the paper's order."""
    captions, pictures, encoding = scores["captions"], scores["pictures"], scores["encoding"]
    rows = []
    arms = (("picture", "from the picture itself"), ("brain_gain", "with gain"),
            ("nearest", "nearest picture’s caption"))  # fmt: skip
    bleus = dict.fromkeys(r["metric"] for r in captions if r["metric"].startswith("BLEU-4"))
    for k, metric in enumerate((*bleus, "CLIP cosine")):
        paper = "11.06 (chance 2.4 ± 1.7)" if k == 0 else "11.06, as above"
        if metric == "CLIP cosine":
            paper = "above chance, without a number"
        digits = 2 if "BLEU" in metric else 3
        own = Scores(captions, run.subjects, "brain", metric, digits)
        beside = [
            (label, Scores(captions, run.subjects, arm, metric, digits)) for arm, label in arms
        ]
        rows.append(_row("captions", f"Captions from the brain, {metric}", paper, own, beside))
    rows.append(
        _rated(
            "captions",
            "Captions, people choose between own and another picture’s",
            "90.1 ± 3.5 % (6 raters, 600 pictures; chance 50 %)",
            ratings,
        )
    )
    over = [(f"{arm} arm over coarse",
             Scores(pictures, run.subjects, f"{arm} over coarse", "CLIP wins", 1, 100))
            for arm in ("caption", "direct")]  # fmt: skip
    own = Scores(pictures, run.subjects, "caption over direct", "CLIP wins", 1, 100)
    what = "Caption arm closer to the shown picture than the direct arm, by CLIP"
    rows.append(_row("pictures", what, "75.6 % of pictures", own, over))
    rows.append(
        _rated(
            "pictures",
            "Caption arm closer than the direct arm, people choose",
            "64.6 % (6 raters, 400 pictures; chance 50 %)",
            ratings,
        )
    )
    r = mean_r(run, encoding)
    where = run.about["z_B_map"]
    rows.append(Result(
        "encoding", "z_v explains early visual cortex, z_B higher visual cortex",
        "early: z_v; higher: z_B (fig. 5, no number)", gradient(r)[0],
        f"Mean r over a stream's voxels, then over subjects; higher: mean of ventral, lateral and "
        f"parietal. z_B: layer "
        f"{where['layer']}, {where['phase']}.", n=_subjects(run),
        beside=(("z_v’s CLS token, early", f"{r['z_v_cls'][0]:.3f}"),
                ("z_v’s CLS token, higher", f"{r['z_v_cls'][1]:.3f}")),
    ))  # fmt: skip
    layer, phase, top, _ = best_layer(run, encoding)
    rows.append(Result(
        "encoding", "z_B: higher layers predict better, midway through the caption best",
        "higher layers; mid (fig. 6, no number)", f"layer {layer}, {phase}: r = {top:.3f}",
        "The BERT layer and third of the caption with the highest mean r over all voxels and "
        "subjects; 0 is the embeddings.", n=_subjects(run),
    ))  # fmt: skip
    listed, some, total = layers_by_stream(scores["layers"], "r")
    by_gain, adds, _ = layers_by_stream(scores["layers"], "gain")
    rows.append(Result(
        "encoding", "z_v and z_B together: the best layer rises along the visual hierarchy",
        "low to high from early to higher cortex (fig. 7, no number)", listed,
        "Mean BERT layer of the highest joint r, over the significant voxels of all subjects; beside it that "
        "of the largest gain over z_v, where z_B adds significantly.", n=_subjects(run),
        beside=(("voxels", f"{some} of {total}"), ("by gain", by_gain),
                ("voxels by gain", f"{adds} of {total}")),
    ))  # fmt: skip
    return rows


def not_comparable(
    row: Result, differences: list[tuple[str, str]], miniature: bool, ratings: dict[str, dict]
) -> list[str]:
    """Why a row and the paper's figure may not be held against each other; empty: nothing known."""
    if row.why or row.ours == "none":
        return []
    if miniature:
        return [MINIATURE]
    found = [text for about, text in differences if about in ("all", row.about)]
    if "BLEU" in row.what:
        found.append("the paper does not say which BLEU")
    elif "CLIP" in row.what:
        found.append("the paper does not say which CLIP")
    if row.definition.startswith("People") and ratings[row.about]["n_raters"] != 6:
        found.append(f"{ratings[row.about]['n_raters']} raters, the paper 6")
    return found


def differences(
    run: Run, settings: Config | None, facts: dict[int, Facts]
) -> list[tuple[str, str]]:
    """In what a run is not the paper's, as (all, captions, pictures or encoding; words)."""
    found: list[tuple[str, str]] = []
    if tuple(run.subjects) != PAPER_SUBJECTS:
        found.append(("all", f"subjects {_list(run.subjects)}, the paper {_list(PAPER_SUBJECTS)}"))
    sessions = {fact.sessions for fact in facts.values()}
    if sessions != {PAPER_SESSIONS}:
        found.append(("all", f"{_list(sorted(sessions))} sessions, the paper {PAPER_SESSIONS}"))
    tests = {fact.tests for fact in facts.values()}
    if tests != {PAPER_TESTS}:
        found.append(("all", f"{_list(sorted(tests))} test pictures, the paper {PAPER_TESTS}"))
    if settings is None:
        return [*found, ("all", "the settings are not known: config.toml is missing")]
    if settings.preset != "paper":
        found.append(("all", f"preset {settings.preset!r}, not 'paper'"))
    changed = changed_settings(settings)
    if changed:
        found.append(("all", "settings differ: " + ", ".join(changed)))
    blip, painter = (_last(where) for where in (settings.models.blip, settings.models.diffusion))
    if blip not in PAPER_BLIP:
        tuned = "captioning" in blip  # those of the hub by that name are tuned for COCO's captions
        why = "tuned for COCO captions" if tuned else "not known to be"
        text = f"captioner {blip!r}: {why}, the paper’s is BLIP base, pre-trained"
        found.append(("all", text))
    if painter != PAPER_DIFFUSION:
        text = f"diffusion model {painter!r}, the paper’s is Stable Diffusion 1.4"
        found.append(("pictures", text))
    return found


def changed_settings(settings: Config) -> list[str]:
    """Settings that change results and are not the default, as "section.key = value (default)"."""
    own, default = _flat(settings), _flat(Config())
    return [
        f"{key} = {value} ({default[key]})"
        for key, value in own.items()
        if key not in _ALIKE and value != default[key]
    ]


def read_ratings(out: Path) -> dict[str, dict[str, Any]]:
    """What people chose, of ``captions`` and ``pictures``, as ``nsdcap.rating score --into`` writes it.

    ``stale`` is true where what they judged is no longer this run's.

    Raises
    ------
    DataError
        A file is broken, or lacks one of percent, sd, interval, n_raters and n_trials.
    """
    found = {}
    for name in ("captions", "pictures"):
        path = out / "rating" / f"{name}.json"
        if not path.exists():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            low, high = content["interval"]
            numbers = [float(content["percent"]), float(low), float(high)]
            numbers += [int(content["n_raters"]), int(content["n_trials"])]
            sd, made_of = content["sd"], content.get("made_of")
            float(sd if sd is not None else 0)
            if not np.isfinite(numbers).all():
                raise ValueError("a number is not finite")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: found no rating results ({error!r}), expected percent, sd, interval [low, high], "
                f"n_raters and n_trials; write it again, python -m nsdcap.rating score STUDY --into {out}"
            ) from None
        stale = made_of is not None and signatures(out, name, made_of) != made_of
        found[name] = content | {"stale": stale}
    return found


def stream_table(run: Run, encoding: list[dict]) -> list[dict[str, Any]]:
    """By stream: mean r (over ceiling) and significant voxels of z_v, its CLS token, z_B, joint."""
    where = run.about["z_B_map"]
    models = (("z_v", "", ""), ("z_v_cls", "", ""), ("z_B", str(where["layer"]), where["phase"]),
              ("joint", str(where["layer"]), where["phase"]))  # fmt: skip
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
    """Figure 6's numbers: mean r over subjects by layer and phase, with half the t interval."""
    rows = []
    for layer in run.about["layers"]:
        cells = []
        for phase in PHASES:
            each = [float(r["mean_r"]) for r in encoding if r["roi"] == "all" and r["feature"] == "z_B"
                    and (r["layer"], r["phase"]) == (str(layer), phase)]  # fmt: skip
            mean, half = over_subjects(np.array(each))
            cells.append((float(mean), float(half)))
        rows.append({"layer": layer, "cells": cells})
    return rows


def mean_r(run: Run, encoding: list[dict]) -> dict[str, tuple[float, float]]:
    """Mean r in the early stream and in the higher ones, of z_v, its CLS token and z_B."""
    table = {
        row["roi"]: [cell["r"] for cell in row["cells"]] for row in stream_table(run, encoding)
    }
    higher = np.nanmean([table[roi] for roi in HIGHER], axis=0)
    names = ("z_v", "z_v_cls", "z_B")
    return {name: (table["early"][k], float(higher[k])) for k, name in enumerate(names)}


def gradient(r: dict[str, tuple[float, float]]) -> tuple[str, str]:
    """What figure 5 shows, in numbers, and what becomes of z_v and z_B on the way up, in words."""
    (z_v, z_v_up), (z_b, z_b_up) = r["z_v"], r["z_B"]
    numbers = f"early: z_v {z_v:.3f}, z_B {z_b:.3f}; higher: z_v {z_v_up:.3f}, z_B {z_b_up:.3f}"
    lost = ["loses" if below > above else "gains" for below, above in (r["z_v"], r["z_B"])]
    return numbers, f"z_v {lost[0]} and z_B {lost[1]} on the way up"


def best_layer(run: Run, encoding: list[dict]) -> tuple[int, str, float, bool]:
    """Layer and phase of the highest mean r, that r, and whether it is as in the paper."""
    top, layer, phase = max(
        (cell[0], row["layer"], name)
        for row in layer_table(run, encoding)
        for name, cell in zip(PHASES, row["cells"], strict=True)
    )
    return layer, phase, top, phase == "mid" and layer > max(run.about["layers"]) / 2


def layers_by_stream(layers: list[dict], by: str) -> tuple[str, int, int]:
    """Mean best layer of each stream as a text, and how many voxels have one, of how many.

    ``by``: "r" or "gain". Means are over the significant voxels of all subjects together; a stream that
    has fewer than ``FEW`` of them is left out.
    """
    own = [row for row in layers if row["by"] == by]
    known = []
    for roi in STREAMS:
        some = [row for row in own if row["roi"] == roi and row["mean_layer"]]
        counts = [int(row["n_significant"]) for row in some]
        if sum(counts) >= FEW:
            mean = np.average([float(row["mean_layer"]) for row in some], weights=counts)
            known.append(f"{roi} {mean:.1f}")
    total = [row for row in own if row["roi"] == "all"]
    found = sum(int(row["n_significant"]) for row in total)
    text = ", ".join(known) or f"no stream with {FEW} such voxels"
    return text, found, sum(int(row["n_voxels"]) for row in total)


def _row(
    about: str, what: str, paper: str, own: Scores, beside: list[tuple[str, Scores]]
) -> Result:
    also = tuple((label, score.mean) for label, score in beside if score.values)
    if not own.values:
        why = own.why or "no such row in the tables"
        return Result(about, what, paper, "none", own.definition, beside=also, n="0", why=why)
    return Result(
        about, what, paper, own.mean, own.definition, own.interval, tuple(own.each), own.chance, also,
        own.n,
    )  # fmt: skip


def _rated(about: str, what: str, paper: str, ratings: dict[str, dict[str, Any]]) -> Result:
    if about not in ratings:
        why = "no ratings yet; nsdcap.rating makes a study"
        return Result(about, what, paper, "none", why=why, chance="50 %")
    found = ratings[about]
    if found["stale"]:
        why = "the ratings are of an earlier state of this run; nsdcap.rating makes a new study"
        return Result(about, what, paper, "none", why=why, chance="50 %")
    spread = "" if found["sd"] is None else f" ± {float(found['sd']):.1f}"
    low, high = found["interval"]
    alpha = found.get("alpha")
    return Result(
        about, what, paper, f"{float(found['percent']):.1f}{spread} %",
        "People’s choices: per cent, ± sd over raters; the interval is over raters and pictures",
        f"{float(low):.1f} % to {float(high):.1f} %", chance="50 %",
        beside=() if alpha is None else (("Krippendorff’s alpha", f"{float(alpha):.2f}"),),
        n=f"{found['n_raters']} raters × {found['n_trials']}",
    )  # fmt: skip


def _flat(settings: Config) -> dict[str, str]:
    """Every setting as TOML by "section.key"."""
    found, section = {}, ""
    for line in dump(settings).splitlines():
        key, equals, value = line.partition(" = ")
        if equals:
            found[section + key] = value
        elif line.startswith("["):
            section = line.strip("[]") + "."
    return found


def _subjects(run: Run) -> str:
    return f"{len(run.subjects)} subject" + ("s" if len(run.subjects) > 1 else "")


def _list(items: Any) -> str:
    return ", ".join(str(item) for item in items)


def _last(where: str) -> str:
    return where.rstrip("/").rsplit("/", 1)[-1]


def _mean(rows: list[dict], key: str) -> float:
    values = [float(row[key]) for row in rows if row[key]]
    return float(np.mean(values)) if values else float("nan")
