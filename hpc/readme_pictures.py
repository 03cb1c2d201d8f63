"""The pictures of the README, from a run of the miniature.

    python hpc/readme_pictures.py OUT [--into FOLDER]

OUT is the folder of the run, as hpc/run-miniature makes it. Drawn are figures of the report: pictures and
captions of the first subject, a flat map of it, and r by layer over all subjects; made small enough for a
page, in few colours. A run on NSD is refused, for its pictures may not be shown to others.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from nsdcap import plots_captions, plots_cortex, plots_encoding
from nsdcap.config import load
from nsdcap.errors import NsdcapError, UsageError
from nsdcap.paths import atomic, config_file
from nsdcap.plots_run import STYLE, Run, open_run

FOLDER = Path(__file__).resolve().parents[1] / "nsdcap" / "miniature" / "pictures"
WIDTH = 900  # pixels
COLOURS = 256
Draw = Callable[[Run], Iterator[tuple[Any, Any]]]


def pictures(out: Path) -> Iterator[tuple[str, Image.Image]]:
    """Name and picture of each.

    Raises
    ------
    UsageError
        A run that is not the miniature's.
    DataError
        The run has no tables yet, or a result is missing or broken.
    """
    run = open_run(out, out / "aggregate")
    root = Path(load(config_file(out)).data.nsd_root)
    if not (root / "truth").is_dir():
        raise UsageError(
            f"{out}: its data, {root}, have no folder truth/ and so are not the miniature's; pictures of NSD "
            "may not be shown to others. Give a run of hpc/run-miniature"
        )
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    first = replace(run, about={**run.about, "subjects": run.subjects[:1]})
    wanted: list[tuple[str, Draw, Run, str]] = [
        ("pictures", plots_captions.draw_reconstructions, first, "figB1"),
        ("flat", plots_cortex.draw_cortex, first, "fig5_flat"),
        ("layers", plots_encoding.draw_layers, run, "fig6"),
    ]
    with plt.rc_context(STYLE):
        for name, draw, of, figure in wanted:
            for canvas, what in draw(of):
                if what.name.startswith(figure):
                    yield name, _small(canvas)
                plt.close(canvas)


def _small(canvas: Any) -> Image.Image:
    """As wide as a page shows it at most, in few colours."""
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", facecolor="white", bbox_inches="tight", pad_inches=0.04)
    picture = Image.open(buffer).convert("RGB")
    if picture.width > WIDTH:
        height = round(picture.height * WIDTH / picture.width)
        picture = picture.resize((WIDTH, height), Image.Resampling.LANCZOS)
    return picture.quantize(
        COLOURS, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder of the miniature's run")
    parser.add_argument("--into", type=Path, default=FOLDER, metavar="FOLDER", help=f"({FOLDER})")
    options = parser.parse_args(arguments)
    try:
        for name, picture in pictures(options.out):
            path = options.into / f"{name}.png"
            with atomic(path) as partial:
                picture.save(partial, format="PNG", optimize=True)
            print(f"{path}: {picture.width} x {picture.height}, {path.stat().st_size / 1e3:.0f} kB")
    except NsdcapError as error:
        print(f"readme_pictures: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
