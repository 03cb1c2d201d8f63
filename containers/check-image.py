"""What ``apptainer test`` runs: every import that the package may need, and one cell of a tiny miniature."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    """Import, run, say what was seen; any failure ends with its traceback and a code above 0."""
    from nsdcap.imports import installation

    found = installation()
    if found["failed"]:
        sys.exit("\n".join(f"{name}: {why}" for name, why in found["failed"].items()))
    versions = ", ".join(" ".join(pair) for pair in found["versions"].items())
    print(f"nsdcap {found['nsdcap']}, Python {found['python']}: {versions}")
    print(f"GPU: {graphics(found['torch'], found['cupy'])}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        print(f"prepare of one subject: {tiny_cell(Path(folder))} bytes")


def graphics(torch: dict[str, Any], cupy: dict[str, Any]) -> str:
    """What torch and CuPy see, in words; no GPU is no error, since images are built without."""
    said = [f"torch {torch['version']} sees {len(torch['gpus'])}"]
    if not cupy:
        return f"{said[0]}; CuPy is not in this image"
    if why := cupy.get("none"):
        said.append(f"CuPy {cupy['version']} is imported and sees none here: {why}")
    else:
        said.append(f"CuPy {cupy['version']} sees {cupy['gpus']}")
    return "; ".join(said)


def tiny_cell(folder: Path) -> int:
    """Write a tiny miniature and run prepare on it by the command line; returns the result's size."""
    from nsdcap import miniature
    from nsdcap.miniature.tree import write_tree

    write_tree(folder / "nsd", seed=3, subjects=(1,), sessions=1, log=lambda line: None)
    sizes = [
        f"--set={setting}" for setting in (*miniature.places(folder / "nsd"), "data.sessions=1")
    ]
    command = [sys.executable, "-m", "nsdcap.launch", "--stage", "prepare", "--subjects", "1"]
    where = ["--nsd-root", str(folder / "nsd"), "--out", str(folder / "out")]
    subprocess.run([*command, *where, *sizes], check=True)
    return (folder / "out" / "prepare" / "subj01.h5").stat().st_size


if __name__ == "__main__":
    main()
