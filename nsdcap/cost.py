"""What a run would do and cost, from sizes alone: the table of ``--dry-run``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from nsdcap.cells import Ledger, sessions_of
from nsdcap.config import STREAMS
from nsdcap.paths import Cell


def tell_plan(ledger: Ledger, cells: list[Cell], force: bool) -> None:
    """Print a line for each cell: run or skip, why, and what it would cost. Writes nothing."""
    from rich.console import Console
    from rich.table import Table

    table = Table("cell", "plan", "reason", "estimated cost", box=None, pad_edge=False)
    runs, known = 0, {}
    for cell in cells:
        state = ledger.state(cell)
        run = force or state.word != "done"
        runs += run
        reason = "--force" if force and state.word == "done" else state.reason or "done, unchanged"
        key = (cell.stage, cell.subject, cell.layer is None)
        if run and key not in known:  # the layers of a subject cost the same
            known[key] = estimate(cell, ledger)
        table.add_row(str(cell), "run" if run else "skip", reason, known[key] if run else "")
    console = Console(highlight=False, width=200)
    console.print(table)
    console.print(f"{runs} of {len(cells)} cells would run, {len(cells) - runs} are done")


def estimate(cell: Cell, ledger: Ledger) -> str:
    """A cell's cost in the units that decide it: GB moved, TFLOP of ridge, passes of the models."""
    config, nsd = ledger.settings, ledger.nsd
    sessions = sessions_of(config, nsd, cell.subject)
    if cell.stage == "aggregate":
        return "seconds"
    ids = nsd.trials(cell.subject or config.data.subjects[0], sessions).nsd_id
    shared = np.isin(ids, nsd.shared_ids())
    trials, pictures = int((~shared).sum()), len(np.unique(ids[~shared]))
    tests = len(np.unique(ids[shared]))
    targets = _targets(config.models.blip, config.models.picture_size)
    if cell.stage == "features":
        n = tests if cell.subject is None else pictures
        return f"{n:,} pictures through BLIP and the autoencoder, {n * targets * 4 / 1e9:.2g} GB of z_v"
    stream = nsd.roi(cell.subject, "streams")[0]
    voxels = int(np.isin(stream, np.arange(1, len(STREAMS) + 1)).sum())
    if cell.stage == "prepare":
        size = 2 * len(ids) * voxels / 1e9
        return f"{voxels:,} voxels, {size:.2g} GB read, {2 * size:.2g} GB written"
    folds, alphas = config.ridge.folds, len(config.ridge.alphas)
    if cell.stage == "decode":
        small = min(trials, voxels)
        flops = 2.0 * (folds + 1) * trials * small * voxels
        left = trials / folds
        basis = 2.0 * targets * folds * small * (pictures + alphas * left)
        pooled = alphas * (trials * pictures * (2.0 * small + pictures) + targets * pictures**2)
        flops += min(basis, pooled)  # see decode_forms
        return f"{trials:,} trials x {voxels:,} voxels -> {targets:,} targets, {flops / 1e12:.2g} TFLOP"
    if cell.stage == "caption":
        return f"{2 * tests:,} captions, {config.caption.beams} beams"
    if cell.stage == "reconstruct":
        settings = config.reconstruct
        steps = int(settings.steps * settings.strength)
        passes = 2 * 2 * tests * settings.samples * steps
        return f"{2 * tests * settings.samples:,} pictures, {passes:,} passes of the UNet"
    if cell.stage == "kernel":
        flops, size = 10.0 * (folds + 1) * pictures**3, 8 * (folds + 1) * pictures**2
        return f"{pictures:,} pictures, {flops / 1e12:.2g} TFLOP, {size / 1e9:.2g} GB written"
    flops = 2.0 * alphas * pictures**2 * voxels  # z_v, its errors under each penalty
    if cell.layer is not None:
        width, ratios = 768, len(config.encode.ratios)
        flops += 3.0 * alphas * folds * width * voxels * (2 * pictures + ratios * width)
    return f"{pictures:,} pictures x {voxels:,} voxels, {flops / 1e12:.2g} TFLOP"


def _targets(where: str, picture_size: int) -> int:
    """Numbers in one picture's z_v, from BLIP's configuration (base's where it is at a hub)."""
    file = Path(where) / "config.json"
    vision = json.loads(file.read_text())["vision_config"] if file.is_file() else {}
    size = picture_size or vision.get("image_size", 384)
    return ((size // vision.get("patch_size", 16)) ** 2 + 1) * vision.get("hidden_size", 768)
