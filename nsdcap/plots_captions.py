"""Figures 3, 4 and B.1: captions and pictures from brain activity beside what was shown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np

from nsdcap.errors import DataError
from nsdcap.paths import Cell, artefact
from nsdcap.plots_run import DPI, GREY, NORMAL, PALE, SMALL, WIDTH, Figure, Run
from nsdcap.tables import open_hdf5

SHOWN = 6  # pictures in figures 3 and 4
MORE = 8  # in figure B.1
LINE = 0.12  # inches from line to line
LETTER = 0.0575  # inches a letter takes on average
FIRST = "The pictures are the first by nsd_id; none was chosen by hand."


def caption_table(run: Run) -> tuple[list[str], list[list[str]], list[int]]:
    """What figure 3 shows: header, a row of texts for each of the first pictures, their nsd_id."""
    content = {s: run.captions(s) for s in run.subjects}
    first = content[run.subjects[0]]
    ids = _first_ids(run, SHOWN)
    header = ["human, first of its captions", *(f"subject {s}" for s in run.subjects)]
    header += ["captioner, from the picture itself"]
    rows = [
        [first[str(i)]["references"][0], *(content[s][str(i)]["brain"] for s in run.subjects),
         first[str(i)]["picture"]]
        for i in ids
    ]  # fmt: skip
    return header, rows, ids


def draw_captions(run: Run) -> Iterator[tuple[Any, Figure]]:
    """Figure 3: captions from brain activity."""
    header, rows, ids = caption_table(run)
    pictures = None if run.about["no_stimuli"] else _pictures(run, run.subjects[0], "shown", ids)
    left = 0.75 if pictures is not None else 0.6
    side = min(1.45, (WIDTH - left) / len(header))
    width = left + side * len(header)
    cells = [[_wrap(text, side - 0.12, 9) for text in texts] for texts in [header, *rows]]
    lines = [max(text.count("\n") + 1 for text in row) for row in cells]
    heights = [max(n * LINE + 0.14, 0.0 if pictures is None or k == 0 else 0.78)
               for k, n in enumerate(lines)]  # fmt: skip
    page = _Page(width, sum(heights))
    top = 0.0
    for k, (row, height) in enumerate(zip(cells, heights, strict=True)):
        middle, bold = top + height / 2, "bold" if k == 0 else "normal"
        for column, text in enumerate(row):
            colour = GREY if column in (0, len(row) - 1) else "black"
            at = left + column * side
            page.text(at, middle, text, weight=bold, color=colour, va="center", ha="left")
        if k == 0:
            name = "shown" if pictures is not None else "nsd_id"
            page.text(0, middle, name, weight=bold, va="center", ha="left")
        elif pictures is None:
            page.text(0, middle, str(ids[k - 1]), va="center", ha="left")
        else:
            page.picture(pictures[k - 1], 0, middle - 0.34, 0.68)
        top += height
        if k < len(cells) - 1:
            page.rule(top, GREY if k == 0 else PALE)
    n = run.counts(run.subjects[0])["n_test"]
    yield page.canvas, Figure(
        "fig3_captions", 3,
        f"Captions written from brain activity, {len(ids)} of {n} test pictures. {FIRST} In grey: a "
        "human caption, and what the captioner writes from the picture's own features."
        + (" Pictures are left out of this report." if pictures is None else ""),
        f"Table of captions for {len(ids)} pictures and {len(run.subjects)} subjects, repeated as "
        "text below the figure.",
    )  # fmt: skip


def draw_reconstructions(run: Run) -> Iterator[tuple[Any, Figure]]:
    """Figure 4, all subjects; figure B.1, each subject, more pictures and the coarse ones."""
    if run.about["no_stimuli"]:
        return
    yield _all_subjects(run)
    for subject in run.subjects:
        yield _one_subject(run, subject)


def _all_subjects(run: Run) -> tuple[Any, Figure]:
    """A row a picture: shown, then both arms of each subject over the caption."""
    ids = _first_ids(run, SHOWN)
    gap, between, header = 0.04, 0.16, 0.36
    n_pairs = len(run.subjects)
    side = min(0.9, (WIDTH - n_pairs * (between + gap)) / (2 * n_pairs + 1))
    pair = 2 * side + gap
    written = {s: {i: run.captions(s)[str(i)]["brain"] for i in ids} for s in run.subjects}
    texts = {s: [_wrap(written[s][i], pair, 5) for i in ids] for s in run.subjects}
    room = [max(texts[s][k].count("\n") + 1 for s in run.subjects) * LINE + 0.12
            for k in range(len(ids))]  # fmt: skip
    page = _Page(side + (between + pair) * len(run.subjects), header + sum(side + r for r in room))
    page.text(side / 2, header - 0.03, "shown", va="bottom", ha="center")
    pictures = {(s, name): _pictures(run, s, name, ids)
                for s in run.subjects for name in ("shown", "direct", "caption")}  # fmt: skip
    for column, s in enumerate(run.subjects):
        left = side + between + column * (between + pair)
        page.text(left + pair / 2, 0.02, f"subject {s}", weight="bold", va="top", ha="center")
        for k, name in enumerate(("direct", "caption")):
            middle = left + k * (side + gap) + side / 2
            page.text(middle, header - 0.03, f"{name} arm", va="bottom", ha="center")
    top = header
    for row in range(len(ids)):
        page.picture(pictures[run.subjects[0], "shown"][row], 0, top, side)
        for column, s in enumerate(run.subjects):
            left = side + between + column * (between + pair)
            for k, name in enumerate(("direct", "caption")):
                page.picture(pictures[s, name][row], left + k * (side + gap), top, side)
            page.text(left + pair / 2, top + side + 0.03, texts[s][row], va="top", ha="center")
        top += side + room[row]
    n, many = run.counts(run.subjects[0])["n_test"], len(run.subjects)
    said = "; ".join(f"subject {s}: {', '.join(written[s].values())}" for s in run.subjects)
    return page.canvas, Figure(
        "fig4_reconstructions", 4,
        f"Pictures from brain activity, {len(ids)} of {n} test pictures, {many} "
        f"subject{'s' * (many > 1)}, the first sample of each. {FIRST} Below each pair: the caption "
        "from the brain, which conditioned the caption arm; the direct arm is conditioned on c "
        "predicted from the brain. Both start from the same coarse picture (see figure B.1).",
        f"Grid of {len(ids)} rows: the shown picture, then the direct-arm and caption-arm pictures "
        f"of each subject. Captions by {said}.",
    )  # fmt: skip


def _one_subject(run: Run, subject: int) -> tuple[Any, Figure]:
    """Figure B.1: a column a picture."""
    written = run.captions(subject)
    ids = sorted(int(i) for i in written)[:MORE]
    rows = {"shown": "shown", "coarse": "coarse\n(z alone)", "direct": "direct\narm",
            "caption": "caption\narm"}  # fmt: skip
    label, gap, side = 0.55, 0.05, 0.78
    texts = [_wrap(written[str(i)]["brain"], side, 12) for i in ids]
    below = max(text.count("\n") + 1 for text in texts) * LINE + 0.05
    page = _Page(label + len(ids) * (side + gap) - gap, len(rows) * (side + gap) + below)
    for row, (name, title) in enumerate(rows.items()):
        top = row * (side + gap)
        page.text(0, top + side / 2, title, va="center", ha="left")
        for k, picture in enumerate(_pictures(run, subject, name, ids)):
            page.picture(picture, label + k * (side + gap), top, side)
    for k, text in enumerate(texts):
        at = label + k * (side + gap) + side / 2
        page.text(at, len(rows) * (side + gap), text, va="top", ha="center")
    n = run.counts(subject)["n_test"]
    return page.canvas, Figure(
        f"figB1_subj{subject:02d}", 4,
        f"B.1, subject {subject}: pictures from brain activity, {len(ids)} of {n} test pictures, the "
        f"first sample of each. {FIRST} Below: the caption that conditioned the caption arm. Both "
        "arms start from the coarse picture.",
        f"Grid of {len(ids)} columns: shown, coarse, direct-arm and caption-arm pictures of "
        f"subject {subject}. Captions: " + "; ".join(written[str(i)]["brain"] for i in ids) + ".",
    )  # fmt: skip


class _Page:
    """A canvas measured in inches from its upper left corner."""

    def __init__(self, width: float, height: float):
        import matplotlib.pyplot as plt

        self.canvas = plt.figure(figsize=(width, height))
        self.ax = self.canvas.add_axes((0, 0, 1, 1))
        self.width = width
        self.limits = {"xlim": (0, width), "ylim": (height, 0)}
        self.ax.set(**self.limits)
        self.ax.set_axis_off()

    def text(self, x: float, y: float, text: str, **how: Any) -> None:
        size = NORMAL if how.get("weight") == "bold" else SMALL
        self.ax.text(
            x, y, text, fontsize=size, linespacing=1.15, parse_math=False, **how
        )  # captions may cost $5

    def picture(self, picture: np.ndarray, x: float, y: float, side: float) -> None:
        how = "nearest" if len(picture) < side * DPI else "antialiased"
        self.ax.imshow(picture, extent=(x, x + side, y + side, y), aspect="auto", interpolation=how)
        self.ax.set(**self.limits)

    def rule(self, y: float, colour: str) -> None:
        self.ax.plot([0, self.width], [y, y], color=colour, linewidth=0.6)


def _wrap(text: str, width: float, most: int) -> str:
    """``text`` in lines of ``width`` inches, ``most`` of them at most."""
    return textwrap.fill(text, int(width / LETTER), max_lines=most, placeholder=" …")


def _first_ids(run: Run, many: int) -> list[int]:
    """The first pictures by nsd_id that all subjects have captions of."""
    content = [set(run.captions(s)) for s in run.subjects]
    return sorted(int(i) for i in set.intersection(*content))[:many]


def _pictures(run: Run, subject: int, name: str, ids: list[int]) -> np.ndarray:
    """Pictures (n, s, s, 3) uint8 of the given nsd_id, the first sample, thinned to what is printed."""
    path = artefact(run.out, Cell("reconstruct", subject))
    with open_hdf5(path, ("nsd_id", name)) as file:
        where = {int(i): row for row, i in enumerate(file["nsd_id"][:])}
        if not set(ids) <= set(where):
            raise DataError(
                f"{path}: lacks some of these pictures; run the reconstruct stage again"
            )
        found = [file[name][where[i]] for i in ids]
    stack = np.stack([x[0] if x.ndim == 4 else x for x in found])
    step = max(1, stack.shape[1] // DPI)
    side = stack.shape[1] // step * step
    blocks = stack[:, :side, :side].reshape(len(stack), side // step, step, side // step, step, 3)
    return blocks.mean((2, 4)).round().astype(np.uint8)
