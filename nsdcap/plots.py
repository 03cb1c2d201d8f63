"""The figures of a run from its tables and maps on disk, as PNG and SVG.

python -m nsdcap.plots OUT --figure 6 draws one again. 3: captions; 4: pictures, and B.1; 5: where z_v and
z_B predict the brain; 6: r by layer and phase; 7: best layer; 8, gain: what z_B adds to z_v; 9, alpha: the
penalties chosen; 10, ceiling: r against the noise ceiling; cortex: a page with a cortex that turns.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from nsdcap import plots_captions, plots_cortex, plots_encoding, plots_turning
from nsdcap.errors import DataError, NsdcapError, UsageError
from nsdcap.paths import Cell, artefact
from nsdcap.plots_captions import caption_table
from nsdcap.plots_encoding import over_subjects
from nsdcap.plots_run import STYLE, Figure, Run, open_run

__all__ = ["KINDS", "Figure", "caption_table", "draw", "open_run", "over_subjects"]

Drawn = Iterator[tuple[Any, Figure]]


@dataclass(frozen=True)
class Kind:
    """All that is drawn under one number; ``files``: patterns of the stems of its files."""

    number: int
    files: tuple[str, ...]
    draw: Callable[[Run], Drawn]


def _figure_5(run: Run) -> Drawn:
    return chain(plots_cortex.draw_cortex(run), plots_encoding.draw_r_by_stream(run))


def _figure_7(run: Run) -> Drawn:
    return chain(plots_cortex.draw_best_layers(run), plots_encoding.draw_streams(run))


KINDS: dict[str, Kind] = {
    "captions": Kind(3, ("fig3_*",), plots_captions.draw_captions),
    "pictures": Kind(4, ("fig4_*", "figB1_*"), plots_captions.draw_reconstructions),
    "maps": Kind(5, ("fig5_*",), _figure_5),
    "layers": Kind(6, ("fig6_*",), plots_encoding.draw_layers),
    "best": Kind(7, ("fig7_*",), _figure_7),
    "gain": Kind(8, ("fig8_*",), plots_cortex.draw_gain),
    "alpha": Kind(9, ("fig9_*",), plots_encoding.draw_alphas),
    "ceiling": Kind(10, ("fig10_*",), plots_encoding.draw_ceiling),
}
_BY_NUMBER = {str(kind.number): name for name, kind in KINDS.items()}
CORTEX = "cortex"  # the page, listed nowhere: it is no picture


def draw(
    out: Path,
    target: Path,
    figures: Sequence[int | str] = (*KINDS, CORTEX),
    log: Callable[[str], object] = print,
) -> list[Figure]:
    """Draw figures of the run in ``out`` from the tables in ``target`` into ``target``/figures.

    ``figures``: numbers or names. Pictures are left out where the tables were made without stimuli. What
    was drawn before under a number goes when that number is drawn. Writes figures.json, a list of every
    figure there, and returns those drawn now; the same tables give the same bytes.

    Raises
    ------
    UsageError
        A number or name that is no figure.
    DataError
        There are no tables, or one, a map or a stage's result is missing or broken: that figure stays
        as it was.
    """
    wanted = [_BY_NUMBER.get(str(figure), str(figure)) for figure in figures]
    unknown = sorted(
        {str(f) for f, w in zip(figures, wanted, strict=True) if w not in (*KINDS, CORTEX)}
    )
    if unknown:
        raise UsageError(f"figure: found {', '.join(unknown)}, expected some of {_known()}")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    run = open_run(out, target)
    folder = target / "figures"
    folder.mkdir(exist_ok=True)
    drawn: list[Figure] = []
    with plt.rc_context(STYLE):
        for name in dict.fromkeys(wanted):
            if name == CORTEX:
                path = plots_turning.write_page(run, folder / "cortex.html")
                log(
                    f"figure {path.name}"
                    if path
                    else "no cortex that turns: no subject has a surface"
                )
                continue
            try:
                canvases = list(KINDS[name].draw(run))
                _save(folder, KINDS[name], canvases)
            finally:
                plt.close("all")
            for _, figure in canvases:
                drawn.append(figure)
                log(f"figure {figure.name}")
    return drawn


def _save(folder: Path, kind: Kind, canvases: list[tuple[Any, Figure]]) -> None:
    """Put a kind's drawings in the place of those before, here and in figures.json."""
    for pattern in kind.files:
        for stale in folder.glob(pattern):
            stale.unlink()
    for canvas, figure in canvases:
        for suffix in ("png", "svg"):
            meta = {"Date": None} if suffix == "svg" else None
            canvas.savefig(
                folder / f"{figure.name}.{suffix}", metadata=meta, facecolor="white",
                bbox_inches="tight", pad_inches=0.04,
            )  # fmt: skip
    listing = folder / "figures.json"
    try:
        known = json.loads(listing.read_text()) if listing.exists() else []
        kept = [Figure(**entry) for entry in known if entry["number"] != kind.number]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{listing}: broken ({error!r}); remove it and draw all figures again"
        ) from error
    every = sorted([*kept, *(figure for _, figure in canvases)], key=lambda figure: figure.number)
    listing.write_text(json.dumps([asdict(figure) for figure in every], indent=1) + "\n")


def _known() -> str:
    return ", ".join([*(f"{kind.number} ({name})" for name, kind in KINDS.items()), CORTEX])


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m nsdcap.plots",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="a run's folder")
    parser.add_argument("--figure", action="append", metavar="FIGURE",
                        help=f"only this one, by number or name; may be given again: {_known()}")  # fmt: skip
    given = parser.parse_args(arguments)
    try:
        target = artefact(given.out, Cell("aggregate"))
        draw(given.out, target, given.figure or (*KINDS, CORTEX))
    except NsdcapError as error:
        print(f"nsdcap.plots: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # no room, no right to write, a file where a folder should be
        print(
            f"nsdcap.plots: {error.filename or given.out}: cannot be written ({error.strerror or error})",
            file=sys.stderr,
        )
        return UsageError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
