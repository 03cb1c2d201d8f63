"""Which cells are done: signatures, many cells at once, and how often files are looked at."""

import builtins
import hashlib
import json
import os

import pytest

from nsdcap import config, miniature
from nsdcap.cells import Ledger
from nsdcap.launch import chosen_cells
from nsdcap.paths import Cell, artefact, failure, sidecar, write_json


@pytest.fixture
def many(tiny_tree, tmp_path):
    """Settings by number of BERT layers: of the captioner only its configuration is there."""

    def settings(layers: int, *more: str):
        blip = tmp_path / f"blip{layers}"
        blip.mkdir(exist_ok=True)
        kept = json.loads((miniature.MODELS / "blip/config.json").read_text())
        kept["text_config"]["num_hidden_layers"] = layers
        (blip / "config.json").write_text(json.dumps(kept))
        places = (*miniature.places(tiny_tree), f"models.blip={str(blip)!r}", "data.sessions=2")
        return config.load(settings=(*places, "data.subjects=[1, 2]", *more))

    return settings


def finish(ledger: Ledger, cells: list[Cell]) -> None:
    """Put empty artefacts and true sidecars there, as if the cells had run."""
    for cell in cells:
        path = artefact(ledger.out, cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        write_json(sidecar(ledger.out, cell), {"cell": str(cell), "depends": ledger.depends(cell)})


def test_signature_is_the_hash_of_all_that_decides_a_result(many, tmp_path):
    """Of the whole list, written out by itself: layers that share most of it share nothing else."""
    settings = many(3)
    ledger = Ledger(settings, tmp_path / "out")
    seen = set()
    for cell in chosen_cells("all", settings):
        found = dict(ledger.depends(cell))
        signature = found.pop("signature")
        text = json.dumps([str(cell), found], sort_keys=True)
        assert signature == hashlib.sha256(text.encode()).hexdigest()
        assert set(found["inputs"]) == {str(other) for other in ledger.inputs(cell)}
        seen.add(signature)
    assert len(seen) == len(chosen_cells("all", settings))


def test_states_are_those_of_each_cell_by_itself(many, tmp_path):
    settings, out = many(4), tmp_path / "out"
    cells = chosen_cells("all", settings)
    ledger = Ledger(settings, out)
    assert {s.word for s in ledger.states(cells)} == {"missing"}
    finish(ledger, cells[:-3])
    artefact(out, Cell("decode", 1)).unlink()  # a sidecar alone is no result
    sidecar(out, Cell("caption", 2)).unlink()  # nor is an artefact without its sidecar
    signature = ledger.depends(cells[-2])["signature"]
    failure(out, cells[-2]).write_text(f"{signature}\nTraceback\nValueError: what went wrong\n")
    failure(out, cells[0]).write_text("of an earlier time")
    again = Ledger(many(4, "ridge.folds=4"), out)
    for one in (ledger, again):
        states = one.states(cells)
        assert states == [one.state(cell) for cell in cells]
        found = {state.cell: state for state in states}
        assert found[cells[0]].word == "done"
        assert found[Cell("decode", 1)].word == found[Cell("caption", 2)].word == "missing"
        assert found[Cell("decode", 1)].reason == "its result is gone"
        assert found[Cell("caption", 2)].reason.startswith("its sidecar is gone, or it was killed")
        # with other settings it has not failed yet
        expected = ("failed", "ValueError: what went wrong")
        expected = expected if one is ledger else ("missing", "not computed yet")
        assert (found[cells[-2]].word, found[cells[-2]].reason) == expected
    assert found[Cell("kernel", 1)].reason == "setting ridge.folds was 5, is 4"
    assert found[Cell("encode", 2, 1)].word == "stale"


def test_work_on_files_does_not_grow_with_layers(many, tmp_path, monkeypatch):
    """Nothing is asked of a cell's files by itself but its sidecar, which is opened once."""
    asked: list[str] = []
    for module, name in ((os, "stat"), (os, "listdir"), (os, "scandir"), (builtins, "open")):
        plain = getattr(module, name)

        def counted(path=".", *rest, plain=plain, name=name, **named):
            asked.append(f"{name} {path}")
            return plain(path, *rest, **named)

        monkeypatch.setattr(module, name, counted)

    def work(layers: int, done: bool) -> list[str]:
        settings, out = many(layers), tmp_path / f"out{layers}{done}"
        cells = chosen_cells("all", settings)
        if done:
            finish(Ledger(settings, out), cells)
        ledger = Ledger(settings, out)
        asked.clear()
        words = {state.word for state in ledger.states(cells)}
        assert words == {"done" if done else "missing"}
        return list(asked)

    few, lots = work(5, False), work(300, False)
    assert 10 < len(lots) == len(few)
    few, lots = work(5, True), work(300, True)
    assert len(lots) - len(few) == 2 * 295  # layers of two subjects
    opened = [line for line in lots if line.startswith("open") and ".done.json" in line]
    assert len(opened) == len(set(opened)) == len(chosen_cells("all", many(300)))
    stimuli = [line for line in lots if line.endswith("nsd_stimuli.hdf5")]
    assert len(stimuli) == 1
