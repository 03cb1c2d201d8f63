"""The words that start a task's Python: on this host, or inside an Apptainer image."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path

from nsdcap import weights
from nsdcap.cells import Ledger
from nsdcap.errors import DataError, NsdcapError, absent
from nsdcap.model_files import local
from nsdcap.paths import atomic
from nsdcap.shards import THREADS
from nsdcap.site import Site

SIF_MAGIC = (32, b"SIF_MAGIC")  # where it stands in a SIF file
SIF_HEADER = 128  # bytes


class MissingError(NsdcapError):
    """A program or file of the installation that is not there."""

    exit_code = 69


def command(ledger: Ledger, site: Site, *, threads: int, gpus: list[str] | int | None) -> list[str]:
    """Words that run Python by the run's copy of ``containers/run.sh``, in the site's image if it has one.

    In an image the run's folder, NSD, the models, also what links in them lead to, and the site's binds are
    bound at the same places;
    beside them it sees what Apptainer itself binds (home, /tmp and the working folder, by default).
    ``threads`` bounds those of the numerical libraries. ``gpus`` names those to be seen, or is how many
    SLURM gives.
    """
    words = ["bash", str(_script(ledger.out))]
    environment = dict.fromkeys(THREADS, str(threads))
    if isinstance(gpus, list):
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    cache = site.cache or os.environ.get("HF_HOME", "")
    if cache:
        environment["HF_HOME"] = cache
    if site.cache:
        environment["HF_HUB_CACHE"] = f"{cache}/hub"
    if not site.image:  # which says so itself
        environment["HF_HUB_OFFLINE"] = os.environ.get("HF_HUB_OFFLINE") or "1"
    for name, value in environment.items():
        words += ["--env", f"{name}={value}"]
    if not site.image:
        return [*words, "--", sys.executable]
    words += ["--image", site.image, *(["--nv"] if site.nv and gpus else [])]
    for path in [*_folders(ledger), *([cache] if cache else [])]:
        words += ["--bind", str(path)]
    for bind in site.binds:
        words += ["--bind", bind]
    return [*words, "--", "python"]


def image_command(site: Site) -> list[str]:
    """Words that run Python in the site's image as tasks do, but for the folders of a run."""
    words = ["bash", str(run_sh()), "--image", site.image]
    words += ["--nv"] if site.nv and visible_gpus() else []
    for bind in site.binds:
        words += ["--bind", bind]
    return [*words, "--", "python"]


def place_script(out: Path) -> None:
    """Copy ``containers/run.sh`` into a run's folder, which all of a cluster's nodes see."""
    script, source = _script(out), run_sh()
    if not script.exists() or script.read_bytes() != source.read_bytes():
        with atomic(script) as partial:
            shutil.copy(source, partial)


def _script(out: Path) -> Path:
    return out / "jobs" / "run.sh"


def check_image(image: str) -> None:
    """Refuse what is not a whole SIF file here.

    Raises
    ------
    DataError
        No such file, another kind of file, or one that was cut short.
    """
    if not image:
        return
    path, (offset, magic) = Path(image), SIF_MAGIC
    try:
        with path.open("rb") as file:
            head = file.read(SIF_HEADER)
            size = os.fstat(file.fileno()).st_size
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        why = getattr(error, "strerror", None) or error
        raise absent(f"image {path}: {why}; build it (containers/build.sh) or pull it") from None
    if head[offset : offset + len(magic)] != magic:
        raise DataError(f"image {path}: not an Apptainer image (SIF); build it or pull it anew")
    # the last two numbers of the header: where the data begin, and their length
    whole = SIF_HEADER
    if len(head) == SIF_HEADER:
        whole = max(whole, sum(struct.unpack_from("<2q", head, SIF_HEADER - 16)))
    if size < whole:
        raise DataError(
            f"image {path}: found {size} bytes, expected {whole} by its header; it was cut short, so build it "
            "or pull it anew"
        )


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use: numbers, or NVIDIA's own."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    count = sum(line.startswith("GPU ") for line in done.stdout.splitlines())
    return [str(number) for number in range(count)]


def _folders(ledger: Ledger) -> list[Path]:
    """The folders that a run reads and writes, and a checkpoint file, none within another."""
    settings = ledger.settings
    found = [ledger.out, Path(settings.data.nsd_root).absolute()]
    found += [Path(settings.data.annotations).absolute()] if settings.data.annotations else []
    found += [
        weights.root_of(str(path)) or path.absolute()  # with the lock
        for path in local(settings.models).values()
    ]
    found += [place for path in local(settings.models).values() for place in _linked(path)]
    return [
        path
        for number, path in enumerate(found)
        if path not in found[:number]
        and not any(path != other and path.is_relative_to(other) for other in found)
    ]


def _linked(path: Path) -> list[Path]:
    """Folders that symbolic links in a model's folder lead to, as in the hub's cache."""
    links = {each.resolve() for each in (path, *path.rglob("*")) if each.is_symlink()}
    places = {target if target.is_dir() else target.parent for target in links if target.exists()}
    return sorted(places - {Path("/")})


def run_sh() -> Path:
    """``containers/run.sh`` of the checkout, or of the installation."""
    places = (
        Path(__file__).resolve().parents[1] / "containers" / "run.sh",
        Path(sysconfig.get_path("data")) / "share" / "nsdcap" / "run.sh",
    )
    for path in places:
        if path.is_file():
            return path
    raise MissingError(f"run.sh: found neither {places[0]} nor {places[1]}; install nsdcap anew")
