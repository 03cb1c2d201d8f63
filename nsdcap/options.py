"""The options of the launcher, and the settings, executor, cluster and cells that they amount to."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsdcap.errors import UsageError
from nsdcap.paths import Cell

if TYPE_CHECKING:
    from nsdcap.config import Config
    from nsdcap.site import Site

STAGE_NAMES = (
    "prepare", "features", "decode", "caption", "reconstruct", "compare", "kernel", "encode",
    "aggregate",
)  # fmt: skip
MINIATURE_OUT = Path("nsdcap-miniature")

EPILOG = """\
With neither --config nor --nsd-root the built-in miniature is made (in OUT/nsd) and run.
Exit codes: 0 all done (slurm: all submitted), 1 a cell failed, 2 usage, 65 bad data, 69 SLURM does not
answer or refuses a task, or a file of the installation is not there, 74 the disk is full or cannot be
written, 75 incomplete, or another command works on this run (OUT/lock.json says whose): one at a time, also
for different stages.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m nsdcap.launch",
        description="Captions and pictures from brain activity, and encoding models of the cortex.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_run(parser)
    add = parser.add_argument
    add("--jobs", type=int, default=2, metavar="N", help="cells at a time of --executor local")
    add("--processes", type=int, default=1, metavar="N",
        help="that share a cell's pictures, one a GPU (features, caption, reconstruct; not slurm)")  # fmt: skip
    add("--dry-run", action="store_true",
        help="list cells, reasons, estimated cost, and what SLURM would be given; write nothing")  # fmt: skip
    add("--no-room-check", action="store_true",
        help="begin although the disk has less room than the estimate")  # fmt: skip
    add("--force", action="store_true", help="also compute cells that are done")
    add("--retry-failed", action="store_true",
        help="slurm: also cells that failed by themselves, with more memory or time where needed")  # fmt: skip
    return parser


def add_run(parser: argparse.ArgumentParser) -> None:
    """The options that say what a run is and where: the doctor's too."""
    add = parser.add_argument
    add("--stage", default="all", choices=(*STAGE_NAMES, "all"), help="what to run (default: all)")
    add("--config", type=Path, metavar="FILE.toml", help="settings; see a run's config.toml")
    add("--preset", choices=("paper", "released"),
        help="defaults of the paper or of its neighbour's code")  # fmt: skip
    add("--set", action="append", default=[], metavar="KEY=VALUE",
        help="one setting, as in decode.gain=cv")  # fmt: skip
    add("--subjects", type=int, nargs="+", metavar="N", help="subjects, 1 to 8")
    add("--layers", type=int, nargs="+", metavar="N",
        help="BERT layers to encode from, 0 the embeddings")  # fmt: skip
    add("--nsd-root", type=Path,
        help="the folder that holds nsddata/, nsddata_betas/, nsddata_stimuli/")  # fmt: skip
    add("--out", type=Path, help=f"folder of the results (miniature: {MINIATURE_OUT})")
    add("--executor", default="auto", choices=("auto", "inline", "local", "slurm"),
        help="default: slurm where a site file is given and sbatch is there, else inline")  # fmt: skip
    add("--site", type=Path, metavar="FILE.toml",
        help="your cluster, as slurm/example.toml (default: the variable NSDCAP_SITE)")  # fmt: skip
    add("--image", metavar="IMAGE.sif",
        help="run cells in this Apptainer image (local; slurm: in place of the site's)")  # fmt: skip


MOST_JOBS = 1024  # of cells or processes at a time on one machine


def check_options(options: argparse.Namespace) -> None:
    """Raise UsageError for numbers and paths that nothing could follow, whatever the settings are."""
    from nsdcap.ranges import check_path

    for name in ("jobs", "processes"):
        found = getattr(options, name)
        if not 1 <= found <= MOST_JOBS:
            raise UsageError(f"--{name}: found {found}, expected at least 1, at most {MOST_JOBS}")
    for name in ("out", "config", "nsd_root", "site", "image"):
        if (found := getattr(options, name)) is not None:
            if not str(found).strip():
                raise UsageError(
                    f"--{name.replace('_', '-')}: found {str(found)!r}, expected a path"
                )
            check_path(f"--{name.replace('_', '-')}", str(found))


def choose_executor(options: argparse.Namespace) -> tuple[str, str]:
    """Which executor runs the cells, and why that one.

    Raises
    ------
    UsageError
        An image that no executor would run, or processes that it does not take.
    """
    wanted, site = options.executor, site_file(options)
    if wanted == "auto":
        if site is None:
            found, why = "inline", "no site file is given (--site or NSDCAP_SITE)"
        elif shutil.which("sbatch") is None:
            found, why = "inline", f"site file {site}, but there is no sbatch on the PATH"
        else:
            found, why = "slurm", f"site file {site}, and sbatch is on the PATH"
    else:
        found, why = wanted, "by --executor"
    if found == "slurm" and options.processes > 1:
        raise UsageError(
            "--processes: on a cluster a task has as many as it has GPUs; set gpus of its stage in the site "
            "file"
        )
    if found == "inline" and options.image is not None:
        raise UsageError("--image: cells of this process run where it runs; add --executor local")
    return found, why


def site_file(options: argparse.Namespace) -> Path | None:
    """The site file, by option or by the environment."""
    if options.site is not None:
        return options.site
    return Path(os.environ["NSDCAP_SITE"]) if os.environ.get("NSDCAP_SITE") else None


def read_site(options: argparse.Namespace) -> Site:
    """The site file, or one that says nothing; ``--image`` over its image."""
    from dataclasses import replace

    from nsdcap import site

    file = site_file(options)
    found = site.load(file) if file is not None else site.Site()
    return replace(found, image=image_file(options)) if options.image else found


def image_file(options: argparse.Namespace) -> str:
    """The path of ``--image``, "" without one.

    Raises
    ------
    UsageError
        An address of a registry: an array must not pull it once a task.
    """
    if "://" in (options.image or ""):
        raise UsageError(
            f"--image {options.image}: pull it first (apptainer pull nsdcap.sif {options.image}), then give "
            "the file"
        )
    return str(Path(options.image).absolute()) if options.image else ""


def settle(options: argparse.Namespace, out: Path, miniature: bool) -> Config:
    """The settings that the options, the file and the preset amount to."""
    from nsdcap import config
    from nsdcap.typed_toml import to_toml

    given = list(options.set)
    if options.nsd_root:
        given.append(f"data.nsd_root={to_toml(str(options.nsd_root.absolute()))}")
    if options.subjects is not None:
        given.append(f"data.subjects={options.subjects}")
    if options.layers is not None:
        given.append(f"encode.layers={options.layers}")
    file = options.config
    if miniature:
        from nsdcap import miniature as built_in

        file = built_in.SETTINGS
        given = [*built_in.places(out / "nsd"), *given]
    return absolute(config.load(file, options.preset, tuple(given)))


def absolute(settings: Config) -> Config:
    """The settings with the paths of folders and files made absolute: they are read from elsewhere, later."""
    from dataclasses import fields, replace

    from nsdcap.model_files import local

    home: dict[str, Any] = {
        f.name: str(Path(where).expanduser())
        for f in fields(settings.models)
        if str(where := getattr(settings.models, f.name)).startswith("~")
    }
    settings = replace(settings, models=replace(settings.models, **home))
    models: dict[str, Any] = {
        name: str(path.absolute()) for name, path in local(settings.models).items()
    }
    data: dict[str, Any] = {
        name: str(Path(where).expanduser().absolute())
        for name in ("nsd_root", "annotations")
        if (where := getattr(settings.data, name))
    }
    return replace(
        settings, models=replace(settings.models, **models), data=replace(settings.data, **data)
    )


def chosen_cells(stage: str, settings: Config) -> list[Cell]:
    """The cells of a stage, or of all in the order of the table."""
    from nsdcap.stages import STAGES

    names = STAGE_NAMES if stage == "all" else (stage,)
    return [cell for name in names for cell in STAGES[name].cells(settings)]
