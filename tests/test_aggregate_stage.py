"""The aggregate stage by the command line: it refuses gaps, and repeats itself byte for byte."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_runs import without

from nsdcap import launch
from nsdcap.aggregate import results_time
from nsdcap.paths import Cell, artefact

ENCODE, CAPTION = Cell("encode", 1, 3), Cell("caption", 1)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def twice(small_run, tmp_path_factory) -> list[Path]:
    """The stage in two copies of one run, by processes that hash and tell the time differently."""
    arguments, out = small_run
    made = []
    for seed, zone in (("1", "UTC"), ("2", "Asia/Tokyo")):
        copy = tmp_path_factory.mktemp("copy") / "out"
        shutil.copytree(out, copy, copy_function=os.link)
        apart = {"PYTHONHASHSEED": seed, "TZ": zone, "OMP_NUM_THREADS": "1"}
        subprocess.run(
            [sys.executable, "-m", "nsdcap.launch", *arguments, "--stage", "aggregate", "--out", copy],
            check=True, env=os.environ | apart, timeout=300, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        made.append(artefact(copy, Cell("aggregate")))
    return made


def test_it_repeats_itself_byte_for_byte(twice):
    first, second = (digests(folder) for folder in twice)
    assert first == second
    assert {"report.html", "run.json", "maps/maps.json", "tables/encoding.csv"} <= set(first)
    assert sum(name.startswith("figures/") for name in first) > 8


def test_the_report_tells_the_time_of_the_newest_result(small_run, twice):
    out = small_run[1]
    newest = max(json.loads(path.read_text())["ended"] for path in out.glob("encode/*.done.json"))
    hour = newest[11:16]  # of an ISO time in UTC
    assert re.fullmatch(rf"results as of \d\d \w+ \d{{4}}, {hour} UTC", results_time(out))
    assert results_time(out) in (twice[0] / "report.html").read_text()


def test_maps_of_a_real_tree_are_on_its_surface(twice):
    """Significant vertices of fsaverage5 are those of the full fsaverage, by the q that lies beside it."""
    folder = twice[0] / "maps/subj01"
    for hemi in ("lh", "rh"):
        r, q = (
            nib.load(folder / f"fsaverage/{hemi}.z_v_{name}.mgz").get_fdata().squeeze()
            for name in ("r", "q")
        )
        assert r.shape == (10242,)  # the miniature's fsaverage is fsaverage5
        shown = nib.load(folder / f"fsaverage5/{hemi}.z_v_r.func.gii").darrays[0].data
        with np.errstate(invalid="ignore"):
            expected = np.where(q < 0.05, r, np.nan)[:10242]
        np.testing.assert_allclose(shown, expected, rtol=1e-6)
        assert 100 < np.isfinite(shown).sum() < np.isfinite(r).sum()


@pytest.mark.parametrize("cell", [ENCODE, CAPTION], ids=str)
def test_a_missing_cell_is_named(small_run, tmp_path, capsys, cell):
    arguments, out = small_run
    copy = without(cell, out, tmp_path / "out")
    assert launch.main([*arguments, "--stage", "aggregate", "--out", str(copy)]) == 75
    assert str(cell) in capsys.readouterr().err
    assert not artefact(copy, Cell("aggregate")).exists()


def test_a_cell_that_is_lost_afterwards_is_named(small_run, twice, tmp_path, capsys):
    """The tables are there; that they rest on a cell that is not is told all the same."""
    arguments, _ = small_run
    copy = without(ENCODE, twice[0].parent, tmp_path / "out")
    assert launch.main([*arguments, "--stage", "aggregate", "--out", str(copy)]) == 75
    assert str(ENCODE) in capsys.readouterr().err
    assert artefact(copy, Cell("aggregate")).is_dir()


@pytest.mark.parametrize(
    ("cell", "setting"), [(ENCODE, "encode.nulls=60"), (CAPTION, "decode.gain='cv'")], ids=str
)
def test_a_stale_cell_is_named(small_run, tmp_path, capsys, cell, setting):
    arguments, out = small_run
    copy = Path(shutil.copytree(out, tmp_path / "out", copy_function=os.link))
    changed = [*arguments, "--set", setting, "--stage", "aggregate", "--out", str(copy)]
    assert launch.main(changed) == 75
    said = capsys.readouterr().err
    assert re.search(rf"{cell}\b.* is stale: setting {setting.partition('=')[0]} was", said)
    assert not artefact(copy, Cell("aggregate")).exists()
