"""The bench of inference: its figures are there, and both ways give the same."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "hpc/bench/inference.py"


def test_batches_and_single_pictures_agree():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    most = {"z_v": 1e-5, "z_B": 1e-5, "captions": 0, "reconstructions": 1}  # words; grey levels
    for what, allowed in most.items():
        figures = found[what]
        assert figures["difference"] <= allowed
        assert figures["ratio"] == figures["batched_per_s"] / figures["one_by_one_per_s"]
        assert figures["batched_peak_mb"] > 100
        assert 0 < figures["gflop_a_picture"] < 10
    # the miniature's ViT by hand: 65 tokens of width 128, 4 layers, MLP 256, patches of 8 x 8 x 3
    tokens, width = 65, 128
    layer = tokens * (4 * width**2 + 2 * width * 256) + 2 * tokens**2 * width
    by_hand = 2 * (4 * layer + 64 * 8 * 8 * 3 * width)
    assert abs(found["z_v"]["gflop_a_picture"] * 1e9 / by_hand - 1) < 0.02
    for what in ("captions", "reconstructions"):
        assert found[what]["ratio_process"] > 1
