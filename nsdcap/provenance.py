"""How a result came to be: what stands in the sidecar beside it, and ``python -m nsdcap.provenance OUT``.

Collecting it takes some hundredths of a second and imports nothing heavy: of libraries only those are asked
that the cell's process has loaded. Artefacts are hashed once, as they are written, at 1 GB/s or so.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nsdcap import __version__
from nsdcap.config import SPEED, Config
from nsdcap.model_files import sha256
from nsdcap.paths import HOST, Cell, sidecar

# distributions, and the module of those that are imported by another name
PACKAGES = {
    "numpy": "", "scipy": "", "scikit-learn": "sklearn", "h5py": "", "torch": "", "torchvision": "",
    "transformers": "", "diffusers": "", "accelerate": "", "tokenizers": "", "safetensors": "",
    "cupy-cuda12x": "cupy", "cupy-cuda13x": "cupy", "mne": "", "nibabel": "", "nilearn": "", "sacrebleu": "",
    "pycocoevalcap": "", "scikit-image": "skimage", "timm": "", "krippendorff": "", "pillow": "PIL",
    "matplotlib": "", "jinja2": "", "submitit": "",
}  # fmt: skip
SEEDS = {
    "features": "the posterior's sample of a picture from (seed, nsd_id), with reconstruct.posterior = sample",
    "decode": "folds from seed, with ridge.group_folds",
    "caption": "shuffles of the pictures, for chance, from seed",
    "reconstruct": "noise of a picture from (seed, subject, nsd_id, sample); (seed, sample) with "
                   "reconstruct.noise = same",
    "kernel": "folds from seed",
    "encode": "folds, permutations and bootstraps each from seed, the same for all layers",
}  # how stages draw, all by numpy.random.default_rng  # fmt: skip
_LABELS = Path("/.singularity.d/labels.json")  # of the image that this runs in
_DRIVER = Path("/proc/driver/nvidia/version")
_SLURM = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT",
          "SLURM_JOB_PARTITION")  # fmt: skip
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Begun:
    """When a cell began, and until then the peak memory of its process, and of its largest child, in
    bytes."""

    at: datetime
    clock: float
    peak: int
    child: int


def begin() -> Begun:
    """To be called as a cell begins: peaks of GPU memory count from here."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        for number in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(number)
    now = datetime.now(UTC), time.monotonic()
    code()  # now, and before children count: git is one
    return Begun(*now, _peak(resource.RUSAGE_SELF), _peak(resource.RUSAGE_CHILDREN))


def record(
    begun: Begun, cell: Cell, settings: Config, shares: Iterable[dict[str, Any]] = ()
) -> dict[str, Any]:
    """What a cell that ends now used and where it ran, as JSON holds it.

    ``shares``: what ``used`` gave in each of the processes among which its pictures were shared out.
    """
    shares, child = list(shares), _peak(resource.RUSAGE_CHILDREN)
    return {
        "seconds": round(time.monotonic() - begun.clock, 1),
        "started": begun.at.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seeds": {"seed": settings.seed, "drawn": SEEDS[cell.stage]} if cell.stage in SEEDS else {},
        "speed": speed(settings),
        "code": code(),
        "versions": versions_in_use(),
        "host": host(),
        "memory": {
            "of": f"process {os.getpid()} since it began; before: until this cell began",
            "peak_bytes": _peak(resource.RUSAGE_SELF),
            "before_bytes": begun.peak,
            **({"largest_child_bytes": child} if child > begun.child else {}),
            **({"shares_bytes": [share["peak_bytes"] for share in shares]} if shares else {}),
        },
        "gpu": gpu() if not shares else [share["gpu"] for share in shares],
        "threads": threads(),
        "slurm": {name[6:].lower(): os.environ[name] for name in _SLURM if name in os.environ},
    }


def speed(settings: Config) -> dict[str, Any]:
    """The settings that change speed, and at most the last digits of a result, by "section.key"."""
    return {
        f"{section}.{key}": getattr(values, key)
        for section, values in vars(settings).items()
        for key in SPEED
        if hasattr(values, key)
    }


def used() -> dict[str, Any]:
    """Peak memory of this process and what it used of GPUs, for the process that gathers shares."""
    return {"peak_bytes": _peak(resource.RUSAGE_SELF), "gpu": gpu()}


def _peak(who: int) -> int:
    """Peak resident memory in bytes; of children that of the largest."""
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# --- artefacts ------------------------------------------------------------------------------------


def digest(path: Path) -> dict[str, Any]:
    """``sha256`` and ``bytes`` of an artefact.

    Of a folder the SHA-256 of what ``sha256sum`` prints of its files, sorted by name:
    ``cd FOLDER; find . -type f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum``.
    """
    if not path.is_dir():
        return {"sha256": sha256(path), "bytes": path.stat().st_size}
    files = {
        file.relative_to(path).as_posix().encode(): file
        for file in path.rglob("*")
        if file.is_file()
    }
    whole, size = hashlib.sha256(), 0
    for name in sorted(files):
        whole.update(sha256(files[name]).encode() + b"  " + name + b"\n")
        size += files[name].stat().st_size
    return {"sha256": whole.hexdigest(), "bytes": size}


def read_note(out: Path, cell: Cell) -> dict[str, Any]:
    """What stands in a cell's sidecar; nothing where there is none, or none that can be read."""
    try:
        return dict(json.loads(sidecar(out, cell).read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def hashes(out: Path, cells: Iterable[Cell]) -> dict[str, str]:
    """SHA-256 of the artefacts of cells, as noted when they were made."""
    return {str(cell): read_note(out, cell).get("artefact", {}).get("sha256", "") for cell in cells}


# --- code, packages, machine ----------------------------------------------------------------------


def code(package: Path | None = None) -> dict[str, Any]:
    """``commit`` of the code that runs here, ``changed``: whether files of it differ from that commit, and
    ``of`` what that is known: its checkout, else what pip noted, else the image's labels.

    Of this code looked at once in a process: what was imported is not what lies there later.
    """
    return _code(package) if package else dict(_own_code())


@cache
def _own_code() -> dict[str, Any]:
    return _code(Path(__file__).resolve().parent)


def _code(package: Path) -> dict[str, Any]:
    found = _of_checkout(package)
    if found:
        return found
    try:
        noted = Distribution.from_name("nsdcap").read_text("direct_url.json")
        revision = json.loads(noted or "{}").get("vcs_info", {}).get("commit_id", "")
    except (PackageNotFoundError, ValueError):
        revision = ""
    if revision:
        return {"commit": str(revision), "changed": None, "of": "installation"}
    if {"APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"} & set(os.environ):
        try:
            revision = json.loads(_LABELS.read_text())["org.opencontainers.image.revision"]
        except (OSError, ValueError, KeyError):
            revision = ""
        if revision:
            return {"commit": str(revision), "changed": None, "of": "image"}
    return {"commit": "", "changed": None, "of": ""}


def _of_checkout(package: Path) -> dict[str, Any]:
    """Of the checkout whose top holds ``package``; a virtual environment inside another one is none."""

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(package.parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        top = git("rev-parse", "--show-toplevel")
        if not top or Path(top) != package.parent or not git("ls-files", package.name):
            return {}
        revision = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--", package.name)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {"commit": revision, "changed": bool(changed), "of": "checkout"}


@cache
def installed(name: str) -> str:
    """The version of a distribution, "" where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def versions_in_use() -> dict[str, str]:
    """Versions of nsdcap, Python, each of PACKAGES that this process has loaded, CUDA and BLAS."""
    found = {"nsdcap": __version__, "python": platform.python_version()}
    for name, module in PACKAGES.items():
        if (module or name) in sys.modules and installed(name):
            found[name] = installed(name)
    torch = sys.modules.get("torch")
    if torch is not None and torch.version.cuda:
        found["cuda of torch"] = torch.version.cuda
    return found


@cache
def _machine() -> dict[str, Any]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    image = os.environ.get("APPTAINER_NAME") or os.environ.get("SINGULARITY_NAME")
    return {
        "name": HOST,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": models[0] if models else platform.processor(),
        **({"image": image} if image else {}),
    }


def host() -> dict[str, Any]:
    """The machine: name, system, processor, and the image that this runs in."""
    return dict(_machine())


def threads() -> dict[str, Any]:
    """Cores that this process may use, and what its numerical libraries take of them.

    ``blas``: each library, with its version and the kind of processor that it computes for, by which last
    digits differ between machines.
    """
    import threadpoolctl

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch = sys.modules.get("torch")
    names = ("internal_api", "version", "architecture", "num_threads")
    return {
        "cores": cores,
        **{name: os.environ[name] for name in _THREADS if name in os.environ},
        **({"torch": torch.get_num_threads()} if torch is not None else {}),
        "blas": [
            {name: library[name] for name in names if library.get(name) is not None}
            for library in threadpoolctl.threadpool_info()
        ],
    }


def gpu() -> dict[str, Any]:
    """GPUs that torch or CuPy use in this process; nothing where neither does.

    Peak memory by torch since the cell began, in bytes; of CuPy what its pool holds at the end, which it
    gives back to nobody: its peak.
    """
    found: dict[str, Any] = {}
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if torch is not None and torch.cuda.is_initialized():
        found["torch"] = [
            {
                "name": torch.cuda.get_device_name(number),
                "peak_bytes": torch.cuda.max_memory_allocated(number),
                "peak_reserved_bytes": torch.cuda.max_memory_reserved(number),
            }
            for number in range(torch.cuda.device_count())
            if torch.cuda.max_memory_reserved(number)
        ]
    if (
        cupy is not None
        and _sees_gpu(cupy)
        and (held := cupy.get_default_memory_pool().total_bytes())
    ):
        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
        found["cupy"] = {
            "name": properties["name"].decode(),
            "cuda": cupy.cuda.runtime.runtimeGetVersion(),
            "pool_bytes": held,
        }
    if found and _DRIVER.is_file():
        found["driver"] = _DRIVER.read_text().splitlines()[0]
    return found


def _sees_gpu(cupy: Any) -> bool:
    try:
        return cupy.cuda.runtime.getDeviceCount() > 0
    except cupy.cuda.runtime.CUDARuntimeError:
        return False


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    from nsdcap.lineage import main

    return main(arguments)


if __name__ == "__main__":
    sys.exit(main())
