"""What launching costs: submitting a thousand tasks, a task that does nothing, status and plan of 10,000.

    python hpc/bench/launch.py FOLDER [--tasks 1000] [--cells 10000] [--json]

On the SLURM of SLURM_CONF (slurm/testcluster/start.sh starts one on loopback); without sbatch the first two
are left out and said so. The run is real but for its size: a miniature's tree, and a captioner whose
configuration has so many layers that its encode cells are as many as asked for. Their artefacts are
empty files that count as done, so a task starts, reads what it depends on, and ends.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from nsdcap import launch, miniature, sbatch, submit
from nsdcap.cells import Ledger
from nsdcap.config import load
from nsdcap.containers import place_script
from nsdcap.jobs import ask, logs
from nsdcap.miniature.tree import write_tree
from nsdcap.paths import Cell, artefact, sidecar, write_json
from nsdcap.plan import Known, Plan
from nsdcap.preflight import write_settings
from nsdcap.site import Site
from nsdcap.site import load as load_site
from nsdcap.stages import STAGES

SUBJECTS = (1, 2)


def make_run(folder: Path, cells: int) -> Ledger:
    """A run whose encode cells are ``cells`` or a few more; nothing of it is computed."""
    if not (folder / "nsd").exists():
        write_tree(folder / "nsd", subjects=SUBJECTS, sessions=2, log=lambda line: None)
    blip = folder / f"blip-{cells}"
    if not blip.exists():
        shutil.copytree(miniature.MODELS / "blip", blip)
        config = json.loads((blip / "config.json").read_text())
        config["text_config"]["num_hidden_layers"] = -(-cells // len(SUBJECTS)) - 2
        (blip / "config.json").write_text(json.dumps(config))
        (blip / "model.safetensors").unlink()  # whose tensors would be missed
        torch.save({}, blip / "pytorch_model.bin")
    out = folder / f"out-{cells}"
    places = [*miniature.places(folder / "nsd"), f"models.blip={str(blip)!r}", "data.sessions=2",
              f"data.subjects={list(SUBJECTS)}"]  # fmt: skip
    settings = load(miniature.SETTINGS, settings=tuple(places))
    write_settings(settings, out)
    place_script(out)
    return Ledger(settings, out)


def pretend(ledger: Ledger) -> list[Cell]:
    """Let every encode cell count as done; returns them."""
    cells = STAGES["encode"].cells(ledger.settings)
    for cell in cells:
        path = artefact(ledger.out, cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        write_json(sidecar(ledger.out, cell), {"cell": str(cell), "seconds": 0.0, "ended": "",
                                               "depends": ledger.depends(cell)})  # fmt: skip
    return cells


def submit_all(ledger: Ledger, cells: list[Cell], site: Site) -> tuple[float, list[str]]:
    """Seconds to submit tasks for cells that are done, and their arrays' ids."""
    known = {cell: Known(cell, "missing") for cell in cells}
    needed = sbatch.needed_resources(ledger, site)
    start = time.perf_counter()
    ready = submit.arrays(ledger, Plan(submit=cells), known, site, needed, submit.array_limit(site))
    numbers = []

    def hand_over(*array: Any) -> str:
        numbers.append(launch.hand_over(ledger, site, *array))
        return numbers[-1]

    submit.hand_all(ledger, ready, hand_over, {})
    return time.perf_counter() - start, numbers


def wait_for(numbers: list[str], limit: float = 3600) -> float:
    """Seconds until no element of the arrays is left in the queue."""
    start = time.perf_counter()
    while time.perf_counter() - start < limit:
        left = ask("squeue", "--noheader", "--array", f"--jobs={','.join(numbers)}", "--format=%T")
        if not left.strip():
            return time.perf_counter() - start
        time.sleep(0.5)
    raise TimeoutError(f"{left.count(chr(10))} tasks are still in the queue after {limit:.0f} s")


def timed(*arguments: str) -> float:
    """Seconds of a Python command, its start counted; the median of three."""
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", *arguments], capture_output=True, text=True, check=False
        )
        taken.append(time.perf_counter() - start)
        if done.returncode not in (0, 75):
            raise RuntimeError(f"{arguments}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="for the run; seen by the nodes too")
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--cells", type=int, default=10000)
    parser.add_argument("--site", type=Path, help="site file (default: what SLURM itself says)")
    parser.add_argument("--json", action="store_true", help="print one JSON object alone")
    options = parser.parse_args()
    folder = options.folder.absolute()
    found: dict[str, Any] = {"tasks": options.tasks, "cells": options.cells}
    if shutil.which("sbatch"):
        site = load_site(options.site) if options.site else Site()
        ledger = make_run(folder, options.tasks)
        cells = pretend(ledger)[: options.tasks]
        found["submit_s"], numbers = submit_all(ledger, cells, site)
        found["arrays"] = len(numbers)
        found["drain_s"] = wait_for(numbers)
        ended = [
            path
            for number in numbers
            for path in logs(ledger.out).glob(f"{number}_*_log.out")
            if "Job completed successfully" in path.read_text()
        ]
        found["ended_well"] = len(ended)
        words = sbatch.python(ledger, site, needed_of(ledger, cells, site))
        found["task_s"] = task_seconds(words, ledger, cells[0])
    else:
        found["without_slurm"] = "no sbatch on the PATH: submitting was not measured"
    ledger = make_run(folder, options.cells)
    pretend(ledger)
    found["status_s"] = timed("nsdcap.status", str(ledger.out))
    config = str(ledger.out / "config.toml")
    found["dry_run_s"] = timed(
        "nsdcap.launch", "--config", config, "--out", str(ledger.out), "--dry-run", "--force",
        "--executor", "slurm" if shutil.which("sbatch") else "inline",
    )  # fmt: skip
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:14} {value:.2f}" if isinstance(value, float) else f"{name:14} {value}")


def needed_of(ledger: Ledger, cells: list[Cell], site: Site) -> Any:
    return sbatch.needed_resources(ledger, site)("encode", cells[:1], 0, 0)


def task_seconds(words: str, ledger: Ledger, cell: Cell) -> float:
    """Seconds of one task that finds its cell done, alone on this machine; the median of five."""
    code = (
        "from nsdcap.cells import run_cell; "
        f"run_cell({str(ledger.out)!r}, {cell.stage!r}, {cell.subject}, {cell.layer}, False)"
    )
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(["bash", "-c", f'{words} -c "$0"', code], check=True)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
