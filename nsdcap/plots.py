"""The paper's figures 3 to 7 from a run's tables and maps on disk, as PNG and SVG.

python -m nsdcap.plots OUT --figure 6 draws one again.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nsdcap.config import STREAMS
from nsdcap.errors import NsdcapError, UsageError
from nsdcap.paths import Cell, artefact
from nsdcap.plots_cortex import Run, map_rows, open_run, significant

SHOWN = 6  # pictures in figures 3 and 4
PIXELS = 192  # their side there, at most
# Okabe and Ito's colours, told apart with any colour vision; markers and dashes differ too
PHASE_STYLE: dict[str, Any] = {
    "early": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "mid": {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    "late": {"color": "#009E73", "marker": "^", "linestyle": "-."},
}
_STREAM_STYLE: dict[str, Any] = {
    "early": {"color": "#000000", "linestyle": "-"},
    "midventral": {"color": "#0072B2", "linestyle": "--"},
    "midlateral": {"color": "#D55E00", "linestyle": "--"},
    "midparietal": {"color": "#009E73", "linestyle": "--"},
    "ventral": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "lateral": {"color": "#D55E00", "linestyle": "-", "marker": "s"},
    "parietal": {"color": "#009E73", "linestyle": "-", "marker": "^"},
}
GREY = "#595959"
FIRST = "The pictures are the first by nsd_id; none was chosen by hand."


@dataclass(frozen=True)
class Figure:
    """What goes with a drawing: its file's stem, its caption and its text for those who cannot see it."""

    name: str
    number: int
    caption: str
    alt: str


def draw(
    out: Path,
    target: Path,
    figures: tuple[int, ...] = (3, 4, 5, 6, 7),
    log: Callable[[str], object] = print,
) -> list[Figure]:
    """Draw figures of the run in ``out`` from the tables in ``target`` into ``target``/figures.

    Pictures are left out where the tables were made without stimuli. Writes figures.json, a list of
    every figure there, and returns those drawn now. Raises DataError where there are no tables,
    UsageError for a number that is no figure.
    """
    unknown = set(figures) - set(_FIGURES)
    if unknown:
        raise UsageError(f"figure: found {sorted(unknown)}, expected some of {sorted(_FIGURES)}")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    run = open_run(out, target)
    folder = target / "figures"
    folder.mkdir(exist_ok=True)
    listing = folder / "figures.json"
    known = json.loads(listing.read_text()) if listing.exists() else []
    kept = [Figure(**entry) for entry in known if entry["number"] not in figures]
    drawn: list[Figure] = []
    style: Any = {
        "font.size": 9,
        "svg.fonttype": "none",
        "svg.hashsalt": "nsdcap",
        "font.family": "DejaVu Sans",
    }
    with plt.rc_context(style):
        for number in figures:
            for stale in folder.glob(f"fig{number}_*"):
                stale.unlink()
            for canvas, figure in _FIGURES[number](run):
                for suffix in ("png", "svg"):
                    meta = {"Date": None} if suffix == "svg" else None
                    canvas.savefig(
                        folder / f"{figure.name}.{suffix}", dpi=150, metadata=meta,
                        facecolor="white", bbox_inches="tight",
                    )  # fmt: skip
                plt.close(canvas)
                drawn.append(figure)
                log(f"figure {figure.name}")
    every = sorted([*kept, *drawn], key=lambda figure: (figure.number, figure.name))
    listing.write_text(json.dumps([asdict(figure) for figure in every], indent=1) + "\n")
    return drawn


def caption_table(run: Run) -> tuple[list[str], list[list[str]], list[int]]:
    """What figure 3 shows: header, a row of texts for each of the first pictures, their nsd_id."""
    content = {s: json.loads(artefact(run.out, Cell("caption", s)).read_text())["captions"]
               for s in run.subjects}  # fmt: skip
    first = content[run.subjects[0]]
    ids = sorted(int(i) for i in set.intersection(*(set(c) for c in content.values())))[:SHOWN]
    header = ["human, first of its captions", *(f"subject {s}" for s in run.subjects)]
    header += ["captioner, from the picture itself"]
    rows = [
        [first[str(i)]["references"][0], *(content[s][str(i)]["brain"] for s in run.subjects),
         first[str(i)]["picture"]]
        for i in ids
    ]  # fmt: skip
    return header, rows, ids


def _captions(run: Run) -> Iterator[tuple[Any, Figure]]:
    """Figure 3: captions from brain activity."""
    import matplotlib.pyplot as plt

    header, rows, ids = caption_table(run)
    pictures = None if run.about["no_stimuli"] else _pictures(run, run.subjects[0], "shown", ids)
    columns = (["shown"] if pictures is not None else ["nsd_id"]) + header
    widths, height = [0.9, *[1.5] * len(header)], 0.5 if pictures is None else 1.0
    canvas, axes = plt.subplots(
        len(rows) + 1, len(columns), squeeze=False, layout="constrained",
        figsize=(sum(widths), height * len(rows) + 0.5),
        gridspec_kw={"width_ratios": widths, "height_ratios": [0.5, *[height] * len(rows)]},
    )  # fmt: skip
    for ax in axes.ravel():
        ax.set_axis_off()
    for column, title in enumerate(columns):
        _text(axes[0, column], title, weight="bold")
    for k, texts in enumerate(rows):
        if pictures is not None:
            axes[k + 1, 0].imshow(pictures[k])
        else:
            _text(axes[k + 1, 0], str(ids[k]))
        for column, text in enumerate(texts, 1):
            _text(axes[k + 1, column], text)
    n = run.about["counts"][str(run.subjects[0])]["n_test"]
    yield canvas, Figure(
        "fig3_captions", 3,
        f"Captions written from brain activity, {len(ids)} of {n} test pictures. {FIRST} The last "
        "column is what the captioner writes from the picture's own features."
        + (" Pictures are left out of this report." if pictures is None else ""),
        f"Table of captions for {len(ids)} pictures and {len(run.subjects)} subjects, repeated as "
        "text below the figure.",
    )  # fmt: skip


def _text(ax: Any, text: str, weight: str = "normal") -> None:
    wrapped = textwrap.fill(text, 22)
    ax.text(0, 0.5, wrapped, va="center", ha="left", fontsize=7.5, weight=weight, clip_on=False)


def _pictures(run: Run, subject: int, name: str, ids: list[int]) -> np.ndarray:
    """Pictures (n, s, s, 3) uint8 of the given nsd_id, the first sample, thinned to PIXELS."""
    with h5py.File(artefact(run.out, Cell("reconstruct", subject)), "r") as file:
        where = {int(i): row for row, i in enumerate(file["nsd_id"][:])}
        found = [file[name][where[i]] for i in ids]
    stack = np.stack([x[0] if x.ndim == 4 else x for x in found])
    step = max(1, -(-stack.shape[1] // PIXELS))
    side = stack.shape[1] // step * step
    blocks = stack[:, :side, :side].reshape(len(stack), side // step, step, side // step, step, 3)
    return blocks.mean((2, 4)).round().astype(np.uint8)


def _reconstructions(run: Run) -> Iterator[tuple[Any, Figure]]:
    """Figures 4 and B.1: both arms beside the shown and the coarse picture, each subject."""
    import matplotlib.pyplot as plt

    if run.about["no_stimuli"]:
        return
    rows = {
        "shown": "shown",
        "coarse": "coarse\n(z alone)",
        "direct": "direct arm",
        "caption": "caption arm",
    }
    for subject in run.subjects:
        written = json.loads(artefact(run.out, Cell("caption", subject)).read_text())["captions"]
        ids = sorted(int(i) for i in written)[:SHOWN]
        canvas, axes = plt.subplots(
            4, len(ids), squeeze=False, layout="constrained", figsize=(1.35 * len(ids) + 0.6, 6.0)
        )
        for row, (name, label) in enumerate(rows.items()):
            for k, picture in enumerate(_pictures(run, subject, name, ids)):
                ax = axes[row, k]
                ax.imshow(picture)
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
                if k == 0:
                    ax.set_ylabel(label, fontsize=8)
                if name == "caption":
                    text = textwrap.fill(written[str(ids[k])]["brain"], 22)
                    ax.set_xlabel(text, fontsize=7)
        n = run.about["counts"][str(subject)]["n_test"]
        yield canvas, Figure(
            f"fig4_subj{subject:02d}", 4,
            f"Subject {subject}: pictures from brain activity, {len(ids)} of {n} test pictures, the "
            f"first sample of each. {FIRST} Below: the caption that conditioned the caption arm. Both "
            "arms start from the coarse picture.",
            f"Grid of {len(ids)} columns: shown, coarse, direct-arm and caption-arm pictures of "
            f"subject {subject}. Captions: " + "; ".join(written[str(i)]["brain"] for i in ids) + ".",
        )  # fmt: skip


def _cortex(run: Run) -> Iterator[tuple[Any, Figure]]:
    """Figure 5: where z_v and z_B predict the brain."""
    top = max(
        float(np.nanquantile(np.where(significant(run, s, f), run.volume(s, f"{f}_r"), 0), 0.999))
        for s in run.subjects
        for f in ("z_v", "z_B")
    )
    where = run.about["z_B_map"]
    names = {"z_v_r": "z_v", "z_B_r": f"z_B, state {where['state']}, {where['phase']}"}
    canvas, how = map_rows(run, names, "viridis", (0.0, max(top, 0.05)), "Pearson r, test pictures")
    counts = []
    for subject in run.subjects:
        found = {f: int(significant(run, subject, f).sum()) for f in ("z_v", "z_B")}
        total = run.about["counts"][str(subject)]["n_voxels"]
        counts.append(
            f"subject {subject}: z_v {found['z_v']}, z_B {found['z_B']} of {total} voxels"
        )
    yield canvas, Figure(
        "fig5_cortex", 5,
        f"Where z_v and z_B (state {where['state']}, {where['phase']}, fixed beforehand) predict held "
        f"out responses, {how}. Significant voxels only (permutation, FDR 0.05): "
        + "; ".join(counts) + ".",
        "Maps of the prediction's correlation for each subject, z_v beside z_B. Numbers by stream "
        "are in the table of encoding results.",
    )  # fmt: skip


def _layers(run: Run) -> Iterator[tuple[Any, Figure]]:
    """Figure 6: mean r by BERT state and phase, over subjects."""
    import matplotlib.pyplot as plt

    rows = [row for row in run.table("encoding") if row["roi"] == "all"]
    states, n = run.about["states"], len(run.subjects)
    canvas, ax = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for k, (phase, style) in enumerate(PHASE_STYLE.items()):
        each = np.array(
            [[_mean_r(rows, s, "z_B", state, phase) for state in states] for s in run.subjects]
        )  # (subjects, states)
        mean, half = over_subjects(each)
        x = np.asarray(states) + 0.08 * (k - 1)
        ax.errorbar(x, mean, half if n > 1 else None, label=f"z_B, {phase}", capsize=2, **style)
    for feature, dash, name in (
        ("z_v", ":", "z_v"),
        ("z_v_cls", (0, (1, 4)), "z_v, CLS token alone"),
    ):
        level = float(np.mean([_mean_r(rows, s, feature) for s in run.subjects]))
        ax.axhline(level, color=GREY, linestyle=dash, linewidth=1.2, label=name)
    ax.set_xticks(states, ["emb." if state == 0 else str(state) for state in states])
    ax.set(xlabel="BERT layer", ylabel="mean Pearson r, all voxels")
    ax.spines[["top", "right"]].set_visible(False)
    order = [2, 3, 4, 0, 1]  # matplotlib lists bars last
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(
        [handles[k] for k in order], [labels[k] for k in order], frameon=False, fontsize=8,
        bbox_to_anchor=(1.0, 0.5), loc="center left",
    )  # fmt: skip
    voxels = ", ".join(str(run.about["counts"][str(s)]["n_voxels"]) for s in run.subjects)
    bars = f"bars: 95 % t interval over {n} subjects" if n > 1 else "one subject, so no interval"
    yield canvas, Figure(
        "fig6_layers", 6,
        f"Mean correlation over all voxels ({voxels}) by BERT layer and time in the caption; {bars}. "
        "Grey lines: the picture's features z_v, and its CLS token, whose width is that of z_B.",
        "Line chart of mean correlation by BERT layer, a line for the early, middle and late third "
        "of the caption; its numbers are in the table below.",
    )  # fmt: skip


def _best_layers(run: Run) -> Iterator[tuple[Any, Figure]]:
    """Figure 7: the BERT state that adds most to z_v, on the cortex and by stream."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    states, n = run.about["states"], len(run.subjects)
    rows = run.table("layers")
    colours = mpl.colormaps["plasma"].resampled(len(states))
    limits = (min(states) - 0.5, max(states) + 0.5)
    title = {"best_layer": "best BERT layer"}
    canvas, how = map_rows(run, title, colours, limits, "BERT layer (0: embeddings)", states)
    total = {row["subject"]: row for row in rows if row["roi"] == "all"}
    counts = "; ".join(
        f"subject {s}: {total[str(s)]['n_significant']} of {total[str(s)]['n_voxels']}"
        for s in run.subjects
    )
    yield canvas, Figure(
        "fig7_best_layer", 7,
        f"The BERT layer that adds most to z_v, {how}. Only voxels whose gain is significant (corrected "
        f"for picking the best model, FDR 0.05): {counts} voxels. A single voxel's layer is unreliable"
        + ("; a vertex shows the mean over three depths." if run.about["on_surface"] else "."),
        "Maps of the best BERT layer for each subject; means by stream are in the next figure.",
    )  # fmt: skip
    canvas, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.8), layout="constrained")
    gains = [row for row in run.table("encoding") if row["feature"] == "joint"]
    x = np.arange(len(STREAMS))
    for k, subject in enumerate(run.subjects):
        means = [_number(r, "mean_layer") for roi in STREAMS for r in rows
                 if (r["subject"], r["roi"]) == (str(subject), roi)]  # fmt: skip
        at = x + 0.1 * (k - (n - 1) / 2)
        left.scatter(
            at, means, s=18, marker="osv^Dx+*"[k % 8], color=GREY, label=f"subject {subject}"
        )
    for roi in STREAMS:
        per_state = np.array([
            [_mean([_number(r, "mean_gain") for r in gains if r["roi"] == roi
                    and r["subject"] == str(s) and r["layer"] == str(state)]) for state in states]
            for s in run.subjects
        ])  # (subjects, states)  # fmt: skip
        right.plot(states, per_state.mean(0), label=roi, **_STREAM_STYLE[roi])
    left.set_xticks(x, STREAMS, rotation=35, ha="right")
    left.set(ylabel="mean best BERT layer", ylim=limits, xlim=(-0.6, len(STREAMS) - 0.4))
    left.set_title("voxels with a significant gain", fontsize=9)
    left.axhline(np.mean(states), color=GREY, linestyle=":", linewidth=1)
    right.axhline(0, color=GREY, linewidth=0.8)
    right.set_xticks(states)
    right.set(xlabel="BERT layer (0: embeddings)", ylabel="R²(joint) − R²(z_v)")
    right.set_title("all voxels, mean over phases and subjects", fontsize=9)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize=7)
    right.legend(frameon=False, fontsize=7, bbox_to_anchor=(1.0, 0.5), loc="center left")
    yield canvas, Figure(
        "fig7_streams", 7,
        f"Left: mean best layer by stream, voxels with a significant gain, {n} subjects; the dotted "
        "line is what layers picked at random would give; no mark: no such voxel. Right: what each "
        "layer adds to z_v, over all voxels of a stream, which needs no choice of voxels.",
        "Two charts by stream: mean best layer, and gain of the joint model by layer.",
    )  # fmt: skip


def over_subjects(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and half width of the 95 % t interval over axis 0; one subject: NaN width."""
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return values.mean(0), np.full(values.shape[1:], np.nan)
    return values.mean(0), t.ppf(0.975, n - 1) * values.std(0, ddof=1) / np.sqrt(n)


def _mean_r(
    rows: list[dict], subject: int, feature: str, state: int | str = "", phase: str = ""
) -> float:
    wanted = (str(subject), feature, str(state), phase)
    keys = ("subject", "feature", "layer", "phase")
    return next(_number(r, "mean_r") for r in rows if tuple(r[key] for key in keys) == wanted)


def _number(row: dict[str, str], key: str) -> float:
    return float(row[key]) if row[key] else float("nan")


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


_FIGURES: dict[int, Callable[[Run], Iterator[tuple[Any, Figure]]]] = {
    3: _captions, 4: _reconstructions, 5: _cortex, 6: _layers, 7: _best_layers,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m nsdcap.plots", description=__doc__)
    parser.add_argument("out", type=Path, help="a run's folder")
    parser.add_argument("--figure", type=int, action="append", choices=sorted(_FIGURES),
                        help="draw only this one; may be given again")  # fmt: skip
    given = parser.parse_args(arguments)
    try:
        target = artefact(given.out, Cell("aggregate"))
        draw(given.out, target, tuple(given.figure or sorted(_FIGURES)))
    except NsdcapError as error:
        print(f"nsdcap: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
