"""What this Python can import of all that the package may need, and which GPUs torch and CuPy can use.

``python -m nsdcap.imports`` prints it as one line of JSON: of this Python for the doctor, of an image's for
the doctor outside and for the image's own test.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import pkgutil
import platform
import re
from collections.abc import Callable
from functools import partial
from typing import Any

NAMES = {
    "pillow": "PIL", "scikit-image": "skimage", "scikit-learn": "sklearn",
    "cupy-cuda12x": "cupy", "cupy-cuda13x": "cupy",
}  # fmt: skip


def installation() -> dict[str, Any]:
    """``nsdcap`` and ``python`` versions, ``versions`` of libraries, ``failed``: what could not be imported,
    with why; ``torch`` and ``cupy`` as ``_torch`` and ``_cupy`` tell them.

    Libraries of extras count where they are installed.
    """
    import nsdcap

    versions: dict[str, str] = {}
    failed: dict[str, str] = {}
    for requirement in importlib.metadata.requires("nsdcap") or []:
        if re.search(r"""extra == ['"]test['"]""", requirement):  # no run needs it
            continue
        name = re.split(r"[^A-Za-z0-9-]", requirement)[0]
        if ";" in requirement and not _installed(name):  # of an extra, or of another Python
            continue
        if not (
            why := _try(partial(importlib.import_module, NAMES.get(name, name.replace("-", "_"))))
        ):
            versions[name] = importlib.metadata.version(name)
        else:
            failed[name] = why
    for module in pkgutil.walk_packages(nsdcap.__path__, "nsdcap.", onerror=lambda name: None):
        if module.name.endswith("__main__"):
            continue
        if why := _try(partial(importlib.import_module, module.name)):
            failed[module.name] = why
    return {
        "nsdcap": nsdcap.__version__, "python": platform.python_version(), "versions": versions,
        "failed": failed, "torch": _torch(), "cupy": _cupy(),
    }  # fmt: skip


def _torch() -> dict[str, Any]:
    """``version``, ``cuda`` that it was built for, ``gpus`` by name, ``driver`` (CUDA that it can run) and
    ``fails``: why a product on the first GPU fails, "" where it does not or there is none."""
    try:
        import torch
    except Exception:  # told among what failed
        return {}
    count = torch.cuda.device_count()
    told: dict[str, Any] = {
        "version": torch.__version__,
        "cuda": torch.version.cuda or "",
        "fails": "",
    }
    told["gpus"] = [torch.cuda.get_device_name(number) for number in range(count)]
    if count:
        told["fails"] = _try(lambda: _product(torch.ones(64, 64, device="cuda")))
    return told


def _cupy() -> dict[str, Any]:
    """``version``, ``cuda`` that it runs with and ``driver``'s, as 13000 for 13.0, the number of ``gpus``,
    ``fails`` as of torch; empty where CuPy is not installed."""
    try:
        import cupy
    except Exception:
        return {}
    told: dict[str, Any] = {"version": cupy.__version__, "gpus": 0, "fails": ""}
    runtime = cupy.cuda.runtime
    try:
        told["cuda"], told["driver"] = runtime.runtimeGetVersion(), runtime.driverGetVersion()
        told["gpus"] = runtime.getDeviceCount()
    except Exception as error:  # of CUDA, or of a library that cannot be loaded
        return told | {"none": _line(error)}
    if told["gpus"]:
        told["fails"] = _try(lambda: _product(cupy.ones((64, 64))))
    return told


def _product(ones: Any) -> None:
    if float((ones @ ones).sum()) != 64**3:
        raise ArithmeticError("a product of ones came out wrong")


def _try(function: Callable[[], Any]) -> str:
    """Why ``function`` fails, "" where it does not."""
    try:
        function()
    except Exception as error:  # whatever a library raises as it is loaded
        return _line(error)
    return ""


def _line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text[:200]


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    print(json.dumps(installation()))
