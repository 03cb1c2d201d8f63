"""Launches that end themselves by SIGKILL, or by the kernel's, at a chosen step of their work on files.

Steps are what Python's audit hooks tell (files opened for writing, renamed, removed, folders made), and
syncs, returns from renames and HDF5's writes. Each launch is a process of its own, a fork of one that has
imported everything and computed nothing: torch's threads do not survive a fork.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Ended:
    """How a launch ended: its exit code, or minus the signal; what it said; its steps, "<what> <path>"."""

    code: int
    said: str
    steps: list[str]


def launched(
    words: list[str], out: Path, kill: str | int = "", *, file_size: int = 0, deadly: bool = True,
    back: bool = False, said: Path | None = None,
) -> Ended:  # fmt: skip
    """``nsdcap.launch`` with ``words``; ["miniature", seed] makes a small miniature in ``out`` instead.

    It is killed at the first step below ``out`` that the expression ``kill`` finds, or at the step of that
    number, or by the kernel when it makes a file longer than ``file_size`` bytes (not ``deadly``: the write
    fails). ``back``: its clock goes back a day at every look. What it says goes to the file ``said``.
    """
    said = said or out.with_name(out.name + ".said")
    steps = said.with_suffix(".steps")
    order = {"words": words, "out": str(out), "kill": kill, "file_size": file_size, "deadly": deadly,
             "back": back, "said": str(said), "steps": str(steps)}  # fmt: skip
    server = _server()
    server.stdin.write(json.dumps(order) + "\n")
    server.stdin.flush()
    code = int(server.stdout.readline())
    told = steps.read_text().splitlines() if steps.exists() else []
    steps.unlink(missing_ok=True)
    return Ended(code, said.read_text(), told)


@cache
def _server() -> subprocess.Popen:
    """It ends when its standard input does."""
    environment = os.environ | dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, __file__], env=environment, **pipes)


# --- in the other process -------------------------------------------------------------------------


def serve() -> None:
    """Fork for each order that comes, and tell how the fork ended."""
    from nsdcap import cells, inline, launch  # noqa: F401
    from nsdcap.stages import STAGES

    for stage in STAGES.values():
        importlib.import_module(stage.function.partition(":")[0])
    import diffusers
    import transformers

    for name in ("AutoencoderKL", "DDIMScheduler", "UNet2DConditionModel"):
        getattr(diffusers, name)
    for name in ("BlipForConditionalGeneration", "CLIPModel", "CLIPTextModel", "CLIPTokenizer"):
        getattr(transformers, name)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            _obey(order)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _obey(order: dict[str, Any]) -> None:
    from nsdcap import launch, miniature
    from nsdcap.miniature import tree

    code, out = 99, Path(order["out"])
    try:
        _quiet(order["said"])
        if order["back"]:
            real, looks = time.time, [0]
            time.time = lambda: (looks.append(0), real() - 86400 * len(looks))[1]
        _count(out, order["steps"], _when(order["kill"]))
        if order["file_size"]:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_size"], resource.RLIM_INFINITY))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if order["deadly"] else signal.SIG_IGN)
        if order["words"][0] == "miniature":
            tree.write_tree = partial(
                tree.write_tree, seed=int(order["words"][1]), subjects=(1,), sessions=1
            )
            miniature.make(out / "nsd")
            code = 0
        else:
            code = launch.main(order["words"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _quiet(said: str) -> None:
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)


def _when(kill: str | int) -> Callable[[int, str], bool]:
    if isinstance(kill, int):
        return lambda number, step: number == kill
    return lambda number, step: bool(kill and re.search(kill, step))


def _count(out: Path, log: str, kill: Callable[[int, str], bool]) -> None:
    import h5py

    root = str(out)
    record = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    number = 0

    def step(what: str, path: object, folder: int = -1) -> None:
        nonlocal number
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        if not isinstance(path, (str, Path)):
            return
        if folder != -1:
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        if not str(path).startswith(root + "/"):
            return
        number += 1
        text = f"{what} {str(path)[len(root) + 1 :]}"
        os.write(record, text.encode() + b"\n")
        if kill(number, text):
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
            step("open", arguments[0])
        elif event == "os.rename":
            step("rename to", arguments[1])
        elif event in ("os.remove", "os.rmdir"):
            step("remove", arguments[0], arguments[1])
        elif event in ("os.mkdir", "os.utime", "os.link"):
            step(event[3:], arguments[0])

    def told(module: object, name: str, before: str, after: str, which: int) -> None:
        real = getattr(module, name)

        def told_too(*arguments, **named):
            path = arguments[which]
            path = getattr(getattr(path, "file", path), "filename", path)  # of HDF5's things
            if before:
                step(before, path)
            found = real(*arguments, **named)
            if after:
                step(after, path)
            return found

        setattr(module, name, told_too)

    told(os, "rename", "", "renamed to", 1)
    told(os, "replace", "", "renamed to", 1)
    told(os, "fsync", "sync", "", 0)
    told(h5py.File, "__init__", "HDF5 make", "HDF5 made", 1)
    told(h5py.Dataset, "__setitem__", "HDF5 write", "HDF5 written", 0)
    told(h5py.Group, "create_dataset", "HDF5 dataset", "", 0)
    sys.addaudithook(hook)


if __name__ == "__main__":
    serve()
