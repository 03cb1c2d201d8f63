"""A result that was damaged after it was made: the next stage names it, and how to make it again."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from nsdcap.artefacts import open_artefact
from nsdcap.errors import DataError
from nsdcap.paths import Cell

PREPARE, FEATURES = Cell("prepare", 1), Cell("features", 1)
WHOLE: dict[str, np.ndarray] = {
    "betas_train": np.ones((6, 4), np.float32), "nsd_id_train": np.arange(6) + 50,
    "betas_test": np.ones((3, 4), np.float32), "nsd_id_test": np.array([2, 4, 9]),
    "stream": np.ones(4, np.int8),
}  # fmt: skip


def write(out: Path, **changed: Any) -> Path:
    path = out / "prepare/subj01.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in (WHOLE | changed).items():
            if values is not None:
                file[name] = values
    return path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


NAN = np.where(np.arange(24).reshape(6, 4) == 7, np.nan, 1).astype(np.float32)
CASES: dict[str, tuple[dict, Callable[[Path], object], str]] = {
    "missing": ({}, Path.unlink, "cannot be read"),
    "truncated": ({}, cut, "cannot be read: .*truncated"),
    "empty": ({}, lambda path: path.write_bytes(b""), "cannot be read"),
    "dataset lost": ({"stream": None}, lambda path: None, "found no stream"),
    "NaN": ({"betas_train": NAN}, lambda path: None, "betas_train holds NaN or infinite"),
    "fewer rows": (
        {"nsd_id_train": np.arange(5) + 50}, lambda path: None, r"nsd_id_train is \(5,\), expected 6"
    ),
    "other voxels": ({"stream": np.ones(3, np.int8)}, lambda path: None, r"stream is \(3,\), expected 4"),
    "other axes": ({"betas_test": np.ones(3)}, lambda path: None, "expected 2 axes"),
    "words": ({"stream": np.array([b"a"] * 4)}, lambda path: None, "expected numbers"),
    "a picture twice": (
        {"nsd_id_test": np.array([2, 2, 9])}, lambda path: None, "nsd_id_test is not a list of pictures"
    ),
    "in training and test": (
        {"nsd_id_test": np.array([2, 4, 51])}, lambda path: None, "picture 51 is both in training and test"
    ),
}  # fmt: skip


def read(out: Path) -> None:
    with open_artefact(out, PREPARE) as file:
        for name in WHOLE:
            file[name][:]


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_artefact_is_named_with_its_stage(tmp_path, case):
    changed, harm, message = CASES[case]
    harm(write(tmp_path, **changed))
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path)
    said = str(caught.value)
    assert said.startswith(str(tmp_path / "prepare/subj01.h5"))
    assert "--stage prepare --force" in said
    assert "\n" not in said


def test_a_whole_one_is_read_as_it_is(tmp_path):
    write(tmp_path)
    with open_artefact(tmp_path, PREPARE, ("stream",)) as file:
        for name, values in WHOLE.items():
            np.testing.assert_array_equal(file[name][:], values)
            assert file[name].shape == values.shape


@pytest.mark.parametrize("stage", ["decode", "kernel"])
def test_the_next_stage_says_so(small_run, tmp_path, capsys, stage):
    """Through the command: exit 65, one message, and what the stage had before stays."""
    from nsdcap import launch

    arguments, run = small_run
    out = Path(shutil.copytree(run, tmp_path / "out"))
    path = out / "prepare/subj01.h5"
    before = (out / f"{stage}/subj01.h5").read_bytes()
    cut(path)
    code = launch.main([*arguments, "--stage", stage, "--force", "--out", str(out)])
    said = capsys.readouterr().err
    assert code == 65
    assert re.search(r"prepare/subj01.h5: cannot be read.*--stage prepare --force", said), said
    assert "Traceback" not in said
    assert (out / f"{stage}/subj01.h5").read_bytes() == before
