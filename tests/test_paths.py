"""Artefacts are whole or not at all."""

import pytest

from nsdcap.paths import Cell, artefact, atomic


def test_every_cell_has_its_own_file(tmp_path):
    cells = [Cell("features"), Cell("aggregate")]
    cells += [Cell(stage, s) for stage in ("prepare", "features", "caption") for s in (1, 2)]
    cells += [Cell("encode", s, layer) for s in (1, 2) for layer in (None, 0, 1)]
    assert len({artefact(tmp_path, cell) for cell in cells}) == len(cells)


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a" / "b.txt"
    with atomic(path) as partial:
        partial.write_text("old")
        assert not path.exists()
    with pytest.raises(TypeError), atomic(path) as partial:
        partial.write_bytes(b"half" + partial)
    with pytest.raises(IsADirectoryError), atomic(path) as partial:
        partial.mkdir(), partial.write_text("")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


def test_a_folder_takes_the_place_of_a_folder(tmp_path):
    path = tmp_path / "report"
    for text in ("one", "two"):
        with atomic(path) as partial:
            partial.mkdir()
            (partial / f"{text}.txt").write_text(text)
    assert [p.name for p in path.iterdir()] == ["two.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["report"]
