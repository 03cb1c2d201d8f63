"""Where a run's results come from: code, packages, weights, seeds, settings."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from nsdcap import __version__, provenance
from nsdcap.config import MODEL_NAMES
from nsdcap.paths import Cell

# settings that may be paths
_PRIVATE = ("nsd_root", "annotations", "blip_tokenizer", "backbones", *MODEL_NAMES)


def versions() -> list[tuple[str, str]]:
    """Name and version of nsdcap, Python and each package of ``provenance.PACKAGES`` that is installed here."""
    found = [("nsdcap", __version__), ("Python", platform.python_version())]
    found += [(name, provenance.installed(name)) for name in provenance.PACKAGES]
    kept = [(name, number) for name, number in found if number]
    return [*kept, ("system", f"{platform.system()} {platform.machine()}")]


def commit(package: Path | None = None) -> str:
    """The commit of the code that runs here, and whether files differ from it; "" where neither is known."""
    found = provenance.code(package)
    return found["commit"] + (", with changes that are not committed" if found["changed"] else "")


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
