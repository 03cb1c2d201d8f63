"""Which results a change makes stale, of every setting, and what is said of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
from test_cells import finish

from nsdcap import config, miniature, outside
from nsdcap.cells import Ledger
from nsdcap.config import Config
from nsdcap.launch import chosen_cells
from nsdcap.model_files import sha256
from nsdcap.paths import Cell, artefact, sidecar, write_json
from nsdcap.stages import STAGES, counted
from nsdcap.weights import LOCK

# what reads what, by the paper: betas and pictures are prepared; ridge predicts latents from betas, of which
# captions and then pictures are made; z_v's kernel and features predict the betas
READS = {
    "prepare": set(),
    "features": set(),
    "decode": {"prepare", "features"},
    "caption": {"decode", "features"},
    "reconstruct": {"decode", "caption"},
    "compare": {"reconstruct"},
    "kernel": {"prepare", "features"},
    "encode": {"prepare", "features", "kernel"},
    "aggregate": {"prepare", "decode", "caption", "reconstruct", "compare", "encode"},
}
NOTHING: set[str] = set()
BETAS, PICTURES, WORDS = {"prepare"}, {"features"}, {"features", "caption"}
RIDGE, PAINTED, MAPS = {"decode"}, {"reconstruct"}, {"encode"}

# of each setting another value, and the stages whose own work it changes
CHANGES: dict[str, tuple[object, set[str]]] = {
    "preset": ("released", {"aggregate"}),  # a name in the report
    # folds; the order for chance; noise; folds; permutations and bootstraps
    "seed": (1, {"decode", "caption", "reconstruct", "kernel", "encode"}),
    "no_stimuli": (True, {"aggregate"}),
    "data.nsd_root": ("COPY", NOTHING),
    "data.annotations": ("COPY/elsewhere", NOTHING),
    "data.subjects": ((1,), {"aggregate"}),
    "data.sessions": (1, {"prepare", "features"}),
    "data.betas": ("betas_assumehrf", BETAS),
    "data.space": ("func1mm", BETAS),
    "data.scale": (False, BETAS),
    "data.zscore_sessions": (True, BETAS),
    "roi.z_v": (("ventral",), RIDGE),
    "roi.c": (("ventral",), RIDGE),
    "roi.z": (("ventral",), RIDGE),
    "models.blip": ("COPY/models/blip2", WORDS),
    "models.blip_tokenizer": ("bert-large", NOTHING),  # a folder of BLIP holds its own
    "models.diffusion": ("COPY/models/diffusion2", {"features", "reconstruct"}),
    "models.clip": ("COPY/models/clip2", {"caption", "reconstruct"}),
    "models.backbones": ("COPY/models", {"compare"}),
    "models.device": ("cpu", NOTHING),
    "models.dtype": ("bfloat16", {"features", "caption", "reconstruct"}),
    "models.picture_size": (32, WORDS),
    "models.normalise": (False, WORDS),
    "models.batch": (7, NOTHING),
    "ridge.folds": (4, {"decode", "kernel", "encode"}),
    "ridge.group_folds": (False, RIDGE),
    "ridge.alphas": ((1.0, 10.0), {"decode", "encode"}),
    "ridge.absolute": (True, RIDGE),  # encoding's penalties are relative in any case
    "ridge.block": (7, NOTHING),
    "ridge.device": ("cpu", NOTHING),
    "decode.alpha": ("feature", RIDGE),
    "decode.gain": ("cv", {"caption", "reconstruct"}),
    "decode.intercept": (False, {"caption", "reconstruct"}),
    "decode.z_alphas": ((1.0,), RIDGE),
    "decode.c_alphas": ((1.0,), RIDGE),
    "decode.z_v_alphas": ((1.0,), RIDGE),
    "caption.prompt": ("a photo of", WORDS),
    "caption.beams": (2, WORDS),
    "caption.min_length": (4, WORDS),
    "caption.max_length": (19, WORDS),
    "caption.repetition_penalty": (1.0, WORDS),
    "reconstruct.coarse_size": (48, {"features", "reconstruct"}),
    "reconstruct.size": (48, PAINTED),
    "reconstruct.steps": (10, PAINTED),
    "reconstruct.strength": (0.5, PAINTED),
    "reconstruct.guidance": (7.5, PAINTED),
    "reconstruct.samples": (2, PAINTED),
    "reconstruct.posterior": ("sample", {"features", "reconstruct"}),
    "reconstruct.noise": ("same", PAINTED),
    "reconstruct.start": ("released", PAINTED),
    "reconstruct.batch": (7, NOTHING),
    "encode.layers": ((0, 2), {"aggregate"}),  # each layer's own cells stay
    "encode.ratios": ((1.0,), MAPS),
    "encode.nulls": (10, MAPS),
    "encode.bootstraps": (10, MAPS),
    "encode.block": (7, NOTHING),
}


def downstream(own: set[str]) -> set[str]:
    """Those stages and all that read of them, by way of others too."""
    found = set(own)
    for stage, inputs in READS.items():  # each after what it reads
        if inputs & found:
            found.add(stage)
    return found


def names_of_settings() -> Iterator[str]:
    for field in fields(Config):
        section = getattr(Config(), field.name)
        if is_dataclass(section):
            yield from (f"{field.name}.{key.name}" for key in fields(section))
        else:
            yield field.name


def changed(settings: Config, name: str, value: object) -> Config:
    section, _, key = name.partition(".")
    if not key:
        return replace(settings, **{section: value})
    return replace(settings, **{section: replace(getattr(settings, section), **{key: value})})


@pytest.fixture(scope="module")
def whole(tiny_tree, tmp_path_factory) -> tuple[Config, Path, Path]:
    """Settings, a run by them in which every cell counts as done, and a folder of copies."""
    settings = config.load(
        settings=(*miniature.places(tiny_tree), "data.sessions=2", "data.subjects=[1, 2]",
                  "encode.layers=[0, 1]")
    )  # fmt: skip
    out, copy = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("copies") / "nsd"
    shutil.copytree(tiny_tree, copy, copy_function=os.symlink)
    shutil.copytree(copy / "annotations", copy / "elsewhere", symlinks=True)
    for space in list(copy.rglob("func1pt8mm")):
        (space.parent / "func1mm").symlink_to(space)
    for betas in list(copy.rglob("betas_fithrf_GLMdenoise_RR")):
        (betas.parent / "betas_assumehrf").symlink_to(betas)
    for name in ("blip", "diffusion", "clip"):
        shutil.copytree(miniature.MODELS / name, copy / "models" / f"{name}2")
    settings = changed(settings, "data.nsd_root", str(copy))
    finish(Ledger(settings, out), chosen_cells("all", settings))
    return settings, out, copy


def test_every_setting_is_in_the_table():
    assert list(CHANGES) == list(names_of_settings())
    assert list(READS) == list(STAGES)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_makes_stale_exactly_what_depends_on_it(whole, name):
    settings, out, copy = whole
    value, own = CHANGES[name]
    if name == "data.nsd_root":
        value = str(settings.data.nsd_root) + "/../nsd"
    elif isinstance(value, str) and value.startswith("COPY"):
        value = str(copy) + value.removeprefix("COPY")
    assert value not in (config.load(), settings)
    other = changed(settings, name, value)
    assert other != settings
    kept = set(chosen_cells("all", settings))
    states = [s for s in Ledger(other, out).states(chosen_cells("all", other)) if s.cell in kept]
    stale = {state.cell for state in states if state.word == "stale"}
    expected = downstream(own)
    assert {cell.stage for cell in stale} == expected
    assert {s.word for s in states} <= {"done", "stale"}
    left = {s.cell for s in states if s.cell.stage in expected} - stale
    joint_only = name in ("encode.ratios", "encode.bootstraps")
    assert left == ({Cell("encode", 1), Cell("encode", 2)} if joint_only else set())
    for state in (s for s in states if s.word == "stale"):
        if state.cell.stage in own:
            assert state.reason.startswith(f"setting {name} was ")
        else:  # the root, though it may be several cells away
            assert state.reason.startswith("input ")
            assert f": setting {name} was " in state.reason


def test_settings_that_count_only_with_others(whole):
    settings = whole[0]

    def counts(name: str, cell: Cell, *more: tuple[str, object]) -> bool:
        given = settings
        for key, value in more:
            given = changed(given, key, value)
        return name in counted(cell, given)

    features, decode = Cell("features"), Cell("decode", 1)
    assert not counts("seed", features)
    assert counts("seed", features, ("reconstruct.posterior", "sample"))
    assert counts("seed", decode)
    assert not counts("seed", decode, ("ridge.group_folds", False))
    grids = [(f"decode.{name}_alphas", (1.0,)) for name in ("z", "c", "z_v")]
    assert counts("ridge.alphas", decode, *grids[:2])
    assert not counts("ridge.alphas", decode, *grids)
    assert not counts("models.blip_tokenizer", features)
    assert counts("models.blip_tokenizer", features, ("models.blip", "model_base.pth"))
    for cell, there in ((Cell("encode", 1), False), (Cell("encode", 1, 0), True)):
        assert counts("encode.ratios", cell) == counts("encode.bootstraps", cell) == there


# --- what is said ---------------------------------------------------------------------------------


def test_all_that_differs_is_told_in_short(whole):
    settings, out, _ = whole
    many = replace(settings.reconstruct, steps=10, guidance=1.0, samples=2, noise="same", size=48)
    state = Ledger(replace(settings, reconstruct=many), out).state(Cell("reconstruct", 1))
    assert state.reason == (
        'setting reconstruct.guidance was 5.0, is 1.0; setting reconstruct.noise was "picture", is '
        '"same"; setting reconstruct.samples was 5, is 2; and 2 more'
    )
    grid = changed(settings, "ridge.alphas", (1.0, 2.0))
    reason = Ledger(grid, out).state(Cell("decode", 1)).reason
    assert reason.endswith("... (16 items), is [1.0, 2.0]")
    assert len(reason) < 150


def test_the_root_is_named_though_it_was_mended_since(whole, tmp_path):
    """decode was computed anew for the new setting; caption, made from the one before, tells why."""
    settings, _, _ = whole
    before = Ledger(settings, tmp_path)
    finish(before, chosen_cells("all", settings))
    after = Ledger(changed(settings, "ridge.alphas", (1.0,)), tmp_path)
    cell = Cell("decode", 1)
    old = before.depends(cell)["signature"]
    note = {"old_signature": old, "reason": after.state(cell).reason}
    write_json(sidecar(tmp_path, cell), {"before": note, "depends": after.depends(cell)})
    assert after.state(cell).word == "done"
    for stage in ("caption", "reconstruct", "compare"):
        assert after.state(Cell(stage, 1)).reason.startswith(
            "input decode subj01: setting ridge.alphas was "
        )
    sidecar(tmp_path, cell).unlink()
    assert after.state(Cell("caption", 1)).reason == (
        "input decode subj01 has changed and is not there"
    )


def test_a_result_of_an_older_form_is_told_as_such(whole, tmp_path):
    settings, _, _ = whole
    ledger, cell = Ledger(settings, tmp_path), Cell("prepare", 1)
    finish(ledger, [cell])
    depends = {**ledger.depends(cell), "signature": "old"}
    del depends["form"]
    write_json(sidecar(tmp_path, cell), {"cell": str(cell), "depends": depends})
    assert ledger.state(cell).reason.startswith("made by an older nsdcap")


def test_a_report_that_lost_a_cell_is_stale(whole, tmp_path):
    settings, _, _ = whole
    cells, lost = chosen_cells("all", settings), Cell("encode", 2, 1)
    for name, path in (("artefact", artefact), ("sidecar", sidecar)):
        out = tmp_path / name
        ledger = Ledger(settings, out)
        finish(ledger, cells)
        path(out, lost).unlink()
        for state in (ledger.state(cells[-1]), ledger.states(cells)[-1]):
            assert (state.word, state.reason) == ("stale", "encode subj02 layer01 was lost since")
        artefact(out, Cell("kernel", 1)).unlink()  # which may be thrown away once it was used
        finish(ledger, [lost])
        assert ledger.state(cells[-1]).word == "done"


# --- files from outside ---------------------------------------------------------------------------


def test_a_file_of_nsd_with_another_time_says_how_to_mend_it(whole, tmp_path):
    settings, out, copy = whole
    root = tmp_path / "nsd"
    shutil.copytree(copy, root, symlinks=True)
    file = root / "nsddata/experiments/nsd/nsd_expdesign.mat"
    source = file.resolve()
    file.unlink()
    shutil.copy2(source, file)
    here = changed(settings, "data.nsd_root", str(root))
    cell = Cell("prepare", 1)
    assert Ledger(here, out).state(cell).word == "done"
    time = file.stat().st_mtime_ns
    os.utime(file, ns=(1, 123456789))
    state = Ledger(here, out).state(cell)
    assert state.word == "stale"
    assert "nsd_expdesign.mat has another time of writing, and the same size" in state.reason
    words = state.reason.rpartition("touch -d ")[2].split()
    assert words[0] == f"@{time // 10**9}.{time % 10**9:09d}"
    assert os.system(f"touch -d {words[0]} '{file}'") == 0
    assert Ledger(here, out).state(cell).word == "done"
    with file.open("ab") as opened:
        opened.write(b"?")
    size = file.stat().st_size
    assert f"had {size - 1} bytes, has {size} bytes" in Ledger(here, out).state(cell).reason


@pytest.mark.parametrize("kind", ["lock", "note", "small files"])
def test_weights_count_by_what_they_hold(whole, tmp_path, monkeypatch, kind):
    """Moved, fetched again, or written at another time they are the same; what is known is not read again."""
    settings, out, _ = whole
    folder = tmp_path / "models/blip"
    shutil.copytree(miniature.MODELS / "blip", folder)
    big = folder / "model.safetensors"
    here = changed(settings, "models.blip", str(folder))
    cell = Cell("features")
    if kind == "lock":
        rows = {
            f"blip/{path.name}": {"repo": "a", "revision": "", "file": path.name, "licence": "",
                                  "size": path.stat().st_size, "sha256": sha256(path)}
            for path in folder.iterdir()
        }  # fmt: skip
        (tmp_path / "models" / LOCK).write_text(json.dumps({"format": 1, "files": rows}))
    elif kind == "note":
        monkeypatch.setattr(outside, "SMALL", 1 << 18)
        outside.note(here, ["blip"], out)
    read: list[Path] = []
    plain = outside.known_sha256
    monkeypatch.setattr(outside, "known_sha256", lambda path: read.append(path) or plain(path))
    assert Ledger(here, out).state(cell).word == "done"
    assert (big in read) == (kind == "small files")
    os.utime(big, (1, 1))
    (folder / "README.md").write_text("of a page")
    assert Ledger(here, out).state(cell).word == "done"
    if kind == "lock":
        assert big not in read  # launch holds it against the lock before it is used
        return
    with big.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read()
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(big, (1, 1))
    state = Ledger(here, out).state(cell)
    assert (state.word, state.reason) == (
        "stale", "file blip/model.safetensors holds something else than before",
    )  # fmt: skip


def test_large_files_that_no_class_reads_do_not_count(whole, tmp_path, monkeypatch):
    settings, out, _ = whole
    folder = tmp_path / "blip"
    shutil.copytree(miniature.MODELS / "blip", folder)
    monkeypatch.setattr(outside, "SMALL", 1 << 18)
    (folder / "pytorch_model.fp16.bin").write_bytes(bytes(1 << 19))
    here = changed(settings, "models.blip", str(folder))
    files = Ledger(here, out).depends(Cell("features"))["files"]
    assert "blip/model.safetensors" in files
    assert "blip/pytorch_model.fp16.bin" not in files
