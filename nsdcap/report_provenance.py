"""Where a run's results come from: code, packages, weights, seeds, settings."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import Distribution, PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nsdcap import __version__
from nsdcap.config import MODEL_NAMES
from nsdcap.paths import Cell

PACKAGES = (
    "numpy", "scipy", "scikit-learn", "h5py", "torch", "torchvision", "transformers", "diffusers",
    "accelerate", "safetensors", "cupy-cuda12x", "cupy-cuda13x", "mne", "nibabel", "nilearn", "sacrebleu",
    "pycocoevalcap", "scikit-image", "timm", "krippendorff", "pillow", "matplotlib", "jinja2", "submitit",
)  # fmt: skip
_LABELS = Path("/.singularity.d/labels.json")  # of the image that this runs in
# settings that may be paths
_PRIVATE = ("nsd_root", "annotations", "blip_tokenizer", "backbones", *MODEL_NAMES)


def versions() -> list[tuple[str, str]]:
    """Name and version of nsdcap, Python and each package of PACKAGES that is installed here."""
    found = [("nsdcap", __version__), ("Python", platform.python_version())]
    for name in PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return [*found, ("system", f"{platform.system()} {platform.machine()}")]


def commit(package: Path | None = None) -> str:
    """The commit of the code that runs here, and whether files differ from it; "" where neither is known.

    From the checkout that the code lies in, else from what pip noted at its installation, else from the
    labels of the image.
    """
    package = package or Path(__file__).resolve().parent
    found = _of_checkout(package)
    if found:
        return found
    try:
        noted = Distribution.from_name("nsdcap").read_text("direct_url.json")
        revision = json.loads(noted or "{}").get("vcs_info", {}).get("commit_id", "")
    except (PackageNotFoundError, ValueError):
        revision = ""
    if not revision and {"APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"} & set(os.environ):
        try:
            revision = json.loads(_LABELS.read_text())["org.opencontainers.image.revision"]
        except (OSError, ValueError, KeyError):
            revision = ""
    return str(revision)


def _of_checkout(package: Path) -> str:
    """Of the checkout whose top holds ``package``; a virtual environment inside another one is none."""

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(package.parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        top = git("rev-parse", "--show-toplevel")
        if not top or Path(top) != package.parent or not git("ls-files", package.name):
            return ""
        revision = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--", package.name)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f"{revision}, with changes that are not committed" if changed else revision


def weights(notes: dict[Cell, dict[str, Any] | None]) -> list[tuple[str, str, str]]:
    """Model, file and SHA-256 of all weights that some cell loaded; twice where cells loaded two."""
    found = {
        (*name.split("/", 1), digest)
        for note in notes.values()
        for name, digest in ((note or {}).get("weights_sha256") or {}).items()
    }
    return sorted(found)


def versions_of_cells(notes: dict[Cell, dict[str, Any] | None]) -> list[str]:
    """Versions of nsdcap that made the results."""
    return sorted(
        {note["depends"]["version"] for note in notes.values() if note and "depends" in note}
    )


def settings_text(settings: str) -> str:
    """The settings with every folder cut to its last name: a report tells nobody's paths."""
    lines = []
    for line in settings.splitlines():
        key, equals, value = line.partition(" = ")
        path = value.startswith(('"/', '"~', '".'))
        if equals and key in _PRIVATE and path:
            line = f'{key} = ".../{value.rstrip(chr(34)).rstrip("/").rsplit("/", 1)[-1]}"'
        lines.append(line)
    return "\n".join(lines)
