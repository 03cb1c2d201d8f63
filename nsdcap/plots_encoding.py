"""Figures 6, 7 (by stream), 9 and 10: charts of the encoding models and of ridge's penalties."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from nsdcap.config import STREAMS
from nsdcap.encoded import inside, read_voxels
from nsdcap.plots_run import (
    BLUE,
    GREY,
    MARKERS,
    PHASE_STYLE,
    SMALL,
    STREAM_STYLE,
    VERMILION,
    WIDTH,
    Figure,
    Run,
    mean,
    number,
)

FEW = 5  # voxels: their mean is drawn hollow


def draw_r_by_stream(run: Run) -> Iterator[tuple[Any, Figure]]:
    """Figure 5, by stream: mean r of z_v and of z_B."""
    import matplotlib.pyplot as plt

    rows, where, n = run.table("encoding"), run.about["z_B_map"], len(run.subjects)
    z_b = f"z_B, layer {where['layer']}, {where['phase']}"
    lines: list[tuple[str, tuple, dict[str, Any]]] = [
        ("z_v", ("z_v",), {"color": BLUE, "marker": "o"}),
        (z_b, ("z_B", where["layer"], where["phase"]),
         {"color": VERMILION, "marker": "s", "linestyle": "--"}),
        ("z_v, CLS token alone", ("z_v_cls",), {"color": GREY, "marker": "^", "linestyle": ":"}),
    ]  # fmt: skip
    canvas, ax = plt.subplots(figsize=(5.6, 2.7), layout="constrained")
    x = np.arange(len(STREAMS))
    for k, (title, model, style) in enumerate(lines):
        each = np.array([
            [_mean_r([row for row in rows if row["roi"] == roi], s, *model) for roi in STREAMS]
            for s in run.subjects
        ])  # (subjects, streams)  # fmt: skip
        middle, half = over_subjects(each)
        at = x + 0.08 * (k - 1)
        ax.errorbar(at, middle, half if n > 1 else None, label=title, capsize=2, **style)
    ax.set_xticks(x, STREAMS, rotation=20, ha="right", rotation_mode="anchor")
    ax.set(ylabel="mean Pearson r, all voxels", xlabel="stream, early to higher visual cortex")
    ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
    ax.legend(bbox_to_anchor=(1.0, 0.5), loc="center left")
    bars = f"bars: 95 % t interval over {n} subjects" if n > 1 else "one subject, so no interval"
    counts = ", ".join(
        f"{roi} {sum(int(row['n_voxels']) for row in rows if _is(row, roi, 'z_v'))}"
        for roi in STREAMS
    )
    yield canvas, Figure(
        "fig5_streams", 5,
        f"Mean correlation over all voxels of a stream, significant or not; {bars}. Voxels of all "
        f"subjects: {counts}.",
        "Chart of mean correlation by stream for z_v, z_B and z_v's CLS token; its numbers are in the "
        "table of encoding results.",
    )  # fmt: skip


def draw_layers(run: Run) -> Iterator[tuple[Any, Figure]]:
    """Figure 6: mean r by BERT layer and phase, over subjects."""
    import matplotlib.pyplot as plt

    rows = [row for row in run.table("encoding") if row["roi"] == "all"]
    layers, n = run.about["layers"], len(run.subjects)
    canvas, ax = plt.subplots(figsize=(5.6, 3.1), layout="constrained")
    for k, (phase, style) in enumerate(PHASE_STYLE.items()):
        each = np.array(
            [[_mean_r(rows, s, "z_B", layer, phase) for layer in layers] for s in run.subjects]
        )  # (subjects, layers)
        middle, half = over_subjects(each)
        x = np.asarray(layers) + 0.08 * (k - 1)
        ax.errorbar(x, middle, half if n > 1 else None, label=f"z_B, {phase}", capsize=2, **style)
    for feature, dash, name in (
        ("z_v", ":", "z_v"),
        ("z_v_cls", (0, (1, 4)), "z_v, CLS token alone"),
    ):
        level = float(np.mean([_mean_r(rows, s, feature) for s in run.subjects]))
        ax.axhline(level, color=GREY, linestyle=dash, label=name)
    ax.set_xticks(layers, ["emb." if layer == 0 else str(layer) for layer in layers])
    ax.set(xlabel="BERT layer (emb.: embeddings)", ylabel="mean Pearson r, all voxels")
    order = [2, 3, 4, 0, 1]  # matplotlib lists bars last
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(
        [handles[k] for k in order], [labels[k] for k in order],
        bbox_to_anchor=(1.0, 0.5), loc="center left",
    )  # fmt: skip
    voxels = ", ".join(str(run.counts(s)["n_voxels"]) for s in run.subjects)
    bars = f"bars: 95 % t interval over {n} subjects" if n > 1 else "one subject, so no interval"
    yield canvas, Figure(
        "fig6_layers", 6,
        f"Mean correlation over all voxels ({voxels}) by BERT layer and time in the caption; {bars}. "
        "Grey lines: the picture's features z_v, and its CLS token, whose width is that of z_B.",
        "Line chart of mean correlation by BERT layer, a line for the early, middle and late third "
        "of the caption; its numbers are in the table below.",
    )  # fmt: skip


def draw_streams(run: Run) -> Iterator[tuple[Any, Figure]]:
    """Figure 7, by stream: mean best layer, and what each layer adds."""
    import matplotlib.pyplot as plt

    layers, n = run.about["layers"], len(run.subjects)
    rows = [row for row in run.table("layers") if row["by"] == "gain"]
    gains = [row for row in run.table("encoding") if row["feature"] == "joint"]
    canvas, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.9), layout="constrained")
    x = np.arange(len(STREAMS))
    for k, subject in enumerate(run.subjects):
        own = {row["roi"]: row for row in rows if row["subject"] == str(subject)}
        at = x + 0.13 * (k - (n - 1) / 2)
        means = np.array([number(own[roi], "mean_layer") for roi in STREAMS])
        few = np.array([int(own[roi]["n_significant"]) < FEW for roi in STREAMS])
        how: dict[str, Any] = {"s": 16, "marker": MARKERS[k % 8], "edgecolors": GREY}
        left.scatter(at[few], means[few], facecolors="white", zorder=2, **how)
        left.scatter(at[~few], means[~few], facecolors=GREY, zorder=2, **how)
        left.scatter([], [], facecolors=GREY, label=f"subject {subject}", **how)
    for roi in STREAMS:
        per_layer = np.array([
            [mean([number(r, "mean_gain") for r in gains if r["roi"] == roi
                   and r["subject"] == str(s) and r["layer"] == str(layer)]) for layer in layers]
            for s in run.subjects
        ])  # (subjects, layers)  # fmt: skip
        right.plot(layers, per_layer.mean(0), label=roi, **STREAM_STYLE[roi])
    left.set_xticks(x, STREAMS, rotation=35, ha="right", rotation_mode="anchor")
    limits = (min(layers) - 0.5, max(layers) + 0.5)
    left.set(ylabel="mean best BERT layer", xlim=(-0.6, len(STREAMS) - 0.4))
    left.set_yticks(layers)
    rise = 0.13 * (limits[1] - limits[0]) * -(-n // 4)  # room for the legend
    left.set_ylim(limits[0], limits[1] + rise)
    left.set_title("voxels with a significant gain")
    left.axhline(np.mean(layers), color=GREY, linestyle=":", linewidth=1)
    right.axhline(0, color=GREY, linewidth=0.8)
    right.set_xticks(layers)
    right.set(xlabel="BERT layer (0: embeddings)", ylabel="R²(joint) − R²(z_v)")
    right.set_title("all voxels, mean over phases and subjects")
    left.legend(ncols=4, loc="upper center", handletextpad=0.0, columnspacing=0.5, borderpad=0)
    right.legend(bbox_to_anchor=(1.0, 0.5), loc="center left")
    yield canvas, Figure(
        "fig7_streams", 7,
        f"Left: mean best layer by stream, voxels with a significant gain, {n} "
        f"subject{'s' * (n > 1)}; the dotted line is what layers picked at random would give; hollow: "
        f"fewer than {FEW} voxels, no mark: none. Right: what each layer adds to z_v, over all voxels of "
        "a stream, which needs no choice of voxels.",
        "Two charts by stream: mean best layer, and gain of the joint model by layer.",
    )  # fmt: skip


def draw_ceiling(run: Run) -> Iterator[tuple[Any, Figure]]:
    """Figure 10: r of each voxel against the highest r that its noise allows."""
    import matplotlib.pyplot as plt

    where = run.about["z_B_map"]
    names = {"z_v": "z_v", "z_B": f"z_B, layer {where['layer']}, {where['phase']}"}
    ceiling = [run.volume(s, "ceiling") for s in run.subjects]
    r = {name: [run.volume(s, f"{name}_r") for s in run.subjects] for name in names}
    known = [np.isfinite(c) & np.all([np.isfinite(r[name][k]) for name in names], axis=0)
             for k, c in enumerate(ceiling)]  # fmt: skip
    x = np.concatenate([c[k] for c, k in zip(ceiling, known, strict=True)])
    y = {
        name: np.concatenate([v[k] for v, k in zip(r[name], known, strict=True)]) for name in names
    }
    low = min(-0.1, *(float(np.quantile(v, 0.001)) for v in y.values())) if len(x) else -0.1
    canvas, axes = plt.subplots(
        1, 2, figsize=(WIDTH, 3.3), layout="constrained", sharex=True, sharey=True
    )
    drawn = []
    for ax, (name, title) in zip(axes, names.items(), strict=True):
        drawn.append(ax.hexbin(
            x, y[name], gridsize=(48, 32), extent=(-0.03, 1, low, 1), bins="log", mincnt=1,
            cmap="Blues", linewidths=0.1,
        ))  # fmt: skip
        ax.plot([0, 1], [0, 1], color="black", linewidth=1)
        ax.axhline(0, color=GREY, linewidth=0.6)
        ax.text(0.34, 0.36, "r = ceiling", ha="center", va="bottom", fontsize=SMALL, rotation=45,
                rotation_mode="anchor", transform_rotates_text=True)  # fmt: skip
        for roi, (at, level) in stream_means(run, ceiling, r[name]).items():
            style = STREAM_STYLE[roi] | {"linestyle": "none", "markersize": 5}
            ax.plot(at, level, label=roi, markeredgecolor=style["color"], **style)
        ax.set(xlabel="noise ceiling: highest r there can be", xlim=(-0.03, 1), ylim=(low, 1))
        ax.set_title(title)
    axes[0].set_ylabel("Pearson r, test pictures")
    top = max([2.0, *(float(hexes.get_array().max()) for hexes in drawn if hexes.get_array().size)])
    for hexes in drawn:
        hexes.set_clim(0.5, top)
    canvas.colorbar(drawn[-1], ax=axes, label="voxels", shrink=0.8, pad=0.01, aspect=30)
    handles, labels = axes[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=7, title="means by stream",
                  title_fontsize=SMALL, handletextpad=0.1, columnspacing=1.0)  # fmt: skip
    counts = ", ".join(
        f"subject {s}: {int(k.sum())}" for s, k in zip(run.subjects, known, strict=True)
    )
    yield canvas, Figure(
        "fig10_ceiling", 10,
        "r between predicted and measured responses of each voxel against its noise ceiling, the "
        f"square root of the share of variance that repeats agree on; {len(x)} voxels ({counts}), all "
        "that vary, significant or not. On the line a model explains all there is to explain; above it "
        "lie chance and the ceiling's own error. Marks: mean r over mean ceiling by stream, mean over "
        "subjects.",
        "Two charts, for z_v and z_B: density of voxels by noise ceiling and correlation, with the "
        "line where they are equal and the mean of each stream.",
    )  # fmt: skip


def stream_means(
    run: Run, ceiling: list[np.ndarray], r: list[np.ndarray]
) -> dict[str, tuple[float, float]]:
    """Mean ceiling and mean r of each stream, mean over subjects; maps (X, Y, Z), a list of subjects."""
    found: dict[str, list[tuple[float, float]]] = {roi: [] for roi in STREAMS}
    for subject, high, own in zip(run.subjects, ceiling, r, strict=True):
        voxels = read_voxels(run.out, subject)
        at = tuple(voxels.xyz.T)
        for roi in STREAMS:
            use = inside(voxels.stream, roi) & np.isfinite(own[at]) & np.isfinite(high[at])
            if use.any():
                found[roi].append((high[at][use].mean(), own[at][use].mean()))
    means = {roi: np.mean(pairs, axis=0) for roi, pairs in found.items() if pairs}
    return {roi: (float(high), float(own)) for roi, (high, own) in means.items()}


def draw_alphas(run: Run) -> Iterator[tuple[Any, Figure]]:
    """Figure 9: the penalties that cross-validation chose."""
    import matplotlib.pyplot as plt

    rows = run.table("alphas")
    models = list(dict.fromkeys((row["stage"], row["feature"]) for row in rows))
    canvas, axes = plt.subplots(
        2, 4, figsize=(WIDTH, 3.6), sharey=True, squeeze=False,
        gridspec_kw={"wspace": 0.08, "hspace": 0.6},
    )  # fmt: skip
    canvas.subplots_adjust(left=0.1, right=0.99, bottom=0.14, top=0.9)
    titles = {"z_v_cls": "z_v, CLS token", "joint": "z_v and z_B"}
    unit = "multiple of the mean eigenvalue" if not _absolute(rows) else "absolute"
    for ax in axes.ravel():
        ax.set_axis_off()
    places = {"decode": iter(axes[0]), "encode": iter(axes[1])}
    for model in models:
        ax = next(places[model[0]])
        ax.set_axis_on()
        grid, shares, targets = alpha_shares(rows, *model)
        edge = (grid == grid.min()) | (grid == grid.max())
        x = np.log10(grid)
        step = float(np.median(np.diff(x))) if len(x) > 1 else 1.0
        middle = 100 * shares.mean(0)
        ax.bar(x[~edge], middle[~edge], 0.85 * step, color=BLUE)
        ax.bar(x[edge], middle[edge], 0.85 * step, color=VERMILION, hatch="////",
               edgecolor="white", linewidth=0)  # fmt: skip
        for k in range(len(shares)):
            some = np.where(shares[k] > 0, 100 * shares[k], np.nan)
            ax.plot(x, some, MARKERS[k % 8], color="black", markersize=2,
                    fillstyle="none", markeredgewidth=0.5)  # fmt: skip
        name = titles.get(model[1], model[1])
        ax.set_title(
            f"{'to' if model[0] == 'decode' else 'from'} {name}\n{_many(targets)}", fontsize=SMALL
        )
        at_edge = middle[edge].sum()
        ax.text(0.03, 0.97, f"{at_edge:.1f} %\nat the edge", transform=ax.transAxes, va="top",
                ha="left", fontsize=SMALL, color=VERMILION if at_edge else GREY)  # fmt: skip
        ticks = np.arange(np.ceil(x.min()), x.max() + 1e-9)
        ticks = ticks[:: max(1, -(-len(ticks) // 5))]
        ax.set_xticks(ticks, [f"10$^{{{int(t)}}}$" for t in ticks])
    for ax, stage in zip(axes[:, 0], ("decoding", "encoding"), strict=True):
        ax.set_ylabel(f"{stage}: share of\ntargets, %")
    _legend_of_alphas(axes[0, 3], run.subjects)
    canvas.supxlabel(f"penalty alpha ({unit})", fontsize=8)
    n = len(run.subjects)
    yield canvas, Figure(
        "fig9_alpha", 9,
        f"Penalties that cross-validation chose, on the grid there was; bars: mean over {n} "
        f"subject{'s' * (n > 1)}, marks: each subject. Above: voxels to latents, a choice for each "
        "latent's feature. Below: features to voxels, a choice for each voxel (z_B and joint: in each "
        "model of layer and phase). Hatched: an end of the grid; if much lies there, widen ridge.alphas.",
        "Histograms of the chosen penalty for each model, with the share at the ends of the grid.",
    )  # fmt: skip


def _legend_of_alphas(ax: Any, subjects: list[int]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    keys: list[Any] = [Patch(color=BLUE, label="mean over subjects")]
    keys += [Patch(facecolor=VERMILION, edgecolor="white", hatch="////", label="end of the grid")]
    mark: dict[str, Any] = {"color": "black", "linestyle": "none", "fillstyle": "none",
                            "markersize": 4, "markeredgewidth": 0.5}  # fmt: skip
    keys += [Line2D([], [], marker=MARKERS[k % 8], label=f"subject {s}", **mark)
             for k, s in enumerate(subjects)]  # fmt: skip
    ax.legend(handles=keys, loc="center")


def alpha_shares(
    rows: list[dict[str, str]], stage: str, feature: str
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """The grid (k,), each subject's share of targets (subjects, k), and its targets."""
    own = [row for row in rows if (row["stage"], row["feature"]) == (stage, feature)]
    grid = np.array(sorted({float(row["alpha"]) for row in own}))
    subjects = list(dict.fromkeys(row["subject"] for row in own))
    counts = np.zeros((len(subjects), len(grid)))
    for row in own:
        counts[subjects.index(row["subject"]), np.searchsorted(grid, float(row["alpha"]))] += int(
            row["n"]
        )
    total = counts.sum(1, keepdims=True)
    return grid, counts / np.maximum(total, 1), [int(n) for n in total[:, 0]]


def over_subjects(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and half width of the 95 % t interval over axis 0; one subject: NaN width."""
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return values.mean(0), np.full(values.shape[1:], np.nan)
    return values.mean(0), t.ppf(0.975, n - 1) * values.std(0, ddof=1) / np.sqrt(n)


def _absolute(rows: list[dict[str, str]]) -> bool:
    return any(row["absolute"] == "True" for row in rows)


def _many(n: list[int]) -> str:
    """Targets a subject: one number, or from to."""
    return f"n = {min(n):,}" + (f" to {max(n):,}" if max(n) > min(n) else "")


def _is(row: dict[str, str], roi: str, feature: str) -> bool:
    return row["roi"] == roi and row["feature"] == feature


def _mean_r(
    rows: list[dict], subject: int, feature: str, layer: int | str = "", phase: str = ""
) -> float:
    wanted = (str(subject), feature, str(layer), phase)
    keys = ("subject", "feature", "layer", "phase")
    return next(number(r, "mean_r") for r in rows if tuple(r[key] for key in keys) == wanted)
