"""What ``apptainer test`` runs: every import that the package may need, and one cell of a tiny miniature."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import re
import subprocess
import sys
import tempfile
from pathlib import Path

NAMES = {
    "pillow": "PIL", "scikit-image": "skimage", "scikit-learn": "sklearn",
    "cupy-cuda12x": "cupy", "cupy-cuda13x": "cupy",
}  # fmt: skip


def main() -> None:
    """Import, run, say what was seen; any failure ends with its traceback and a code above 0."""
    import nsdcap

    found = []
    for requirement in importlib.metadata.requires("nsdcap") or []:
        name = re.split(r"[^A-Za-z0-9-]", requirement)[0]
        if ";" in requirement and not installed(name):  # of an extra, or of another Python
            continue
        importlib.import_module(NAMES.get(name, name))
        found.append(f"{name} {importlib.metadata.version(name)}")
    for module in pkgutil.walk_packages(nsdcap.__path__, "nsdcap."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    said = f"nsdcap {nsdcap.__version__}, Python {sys.version.split()[0]}: {', '.join(found)}"
    print(said, f"GPU: {graphics()}", sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        print(f"prepare of one subject: {tiny_cell(Path(folder))} bytes")


def installed(name: str) -> bool:
    """Whether a distribution is there."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def graphics() -> str:
    """What torch and CuPy see, in words; no GPU is no error, since images are built without."""
    import torch

    said = [f"torch {torch.__version__} sees {torch.cuda.device_count()}"]
    if "cupy" not in sys.modules:
        return f"{said[0]}; CuPy is not in this image"
    import cupy

    try:
        said.append(f"CuPy {cupy.__version__} sees {cupy.cuda.runtime.getDeviceCount()}")
    except cupy.cuda.runtime.CUDARuntimeError as error:
        said.append(f"CuPy {cupy.__version__} is imported and sees none here: {error}")
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
