"""The run's folder as a BIDS derivative: ``dataset_description.json``, by BIDS 1.10."""

from __future__ import annotations

import json
import os
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

from nsdcap import __version__, miniature
from nsdcap.config import Config
from nsdcap.errors import UsageError
from nsdcap.paths import write_json

NAME = "dataset_description.json"
BIDS = "1.10.0"
NSD_PAPER = "https://doi.org/10.1038/s41593-021-00962-x"
_NSD = {"URL": "https://naturalscenesdataset.org", "DOI": "doi:10.1038/s41593-021-00962-x"}
_CURE = "mend it, or move it away, then a new one is written"
_COCO = {"URL": "https://cocodataset.org", "Version": "2017"}


def write(out: Path, settings: Config) -> None:
    """Put the description into a run's folder; of one that is there only ``GeneratedBy`` is renewed, the rest
    may be someone's own words. Raises as ``kept``."""
    path, there = out / NAME, kept(out)
    drawn = Path(settings.models.blip).is_relative_to(miniature.MODELS)
    found = {**describe(drawn), **there, "GeneratedBy": _generated_by()}
    if found != there:
        write_json(path, found)


def kept(out: Path) -> dict[str, Any]:
    """The description that lies in a run's folder; empty where there is none.

    Raises
    ------
    UsageError
        It cannot be read, or is no JSON object: it may be someone's own, and is left as it is.
    """
    path = out / NAME
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); {_CURE}") from None
    except (ValueError, RecursionError):
        there = None
    if not isinstance(there, dict):
        raise UsageError(f"{path}: found no JSON object, expected BIDS' description; {_CURE}")
    return there


def describe(drawn: bool) -> dict[str, Any]:
    """What it says; of the miniature, which is ``drawn``, that its data are artificial."""
    what = "an artificial dataset in NSD's format" if drawn else "the Natural Scenes Dataset"
    return {
        "Name": f"nsdcap: captions and pictures from brain activity, {what}",
        "BIDSVersion": BIDS,
        "DatasetType": "derivative",
        "GeneratedBy": _generated_by(),
        **({} if drawn else {"SourceDatasets": [_NSD, _COCO]}),
        "HowToAcknowledge": "Cite the Natural Scenes Dataset (Allen et al. 2022, Nature Neuroscience 25, "
        "116-126), what report.html lists under Methods, and this software. NSD's terms of use hold for what "
        "is derived from it.",
        "ReferencesAndLinks": [NSD_PAPER],
    }


def _generated_by() -> list[dict[str, Any]]:
    from nsdcap import provenance

    found: dict[str, Any] = {
        "Name": "nsdcap",
        "Version": __version__,
        "Description": "A sidecar beside each result, NAME.done.json, tells how it was made",
    }
    if commit := provenance.code()["commit"]:
        found["Description"] += f"; commit {commit}"
    if image := os.environ.get("APPTAINER_NAME") or os.environ.get("SINGULARITY_NAME"):
        found["Container"] = {"Type": "apptainer", "Tag": image}
    if home := _home():
        found["CodeURL"] = home
    return [found]


def _home() -> str:
    """Where the package says that its code lies."""
    try:
        about = metadata("nsdcap")
    except PackageNotFoundError:
        return ""
    links = [link.partition(", ")[2] for link in about.get_all("Project-URL") or ()]
    return next((link for link in (*(about.get_all("Home-page") or ()), *links) if link), "")
