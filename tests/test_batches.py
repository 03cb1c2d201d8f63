"""Batches that do not fit are halved, and nothing is computed twice."""

import pytest

from nsdcap.batches import in_batches


def fits(most: int, seen: list[slice]):
    def compute(rows: slice) -> list[int]:
        if rows.stop - rows.start > most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        seen.append(rows)
        return list(range(rows.start, rows.stop))

    return compute


@pytest.mark.parametrize(("most", "fitted"), [(8, 8), (7, 4), (1, 1)])
def test_every_row_once_and_in_order(most, fitted, capsys):
    seen: list[slice] = []
    parts, batch = in_batches(fits(most, seen), 19, 8, "features")
    assert [row for part in parts for row in part] == list(range(19))
    assert batch == fitted
    told = capsys.readouterr().out
    assert told.count("do not fit into memory") == {8: 0, 4: 1, 1: 3}[fitted]
    assert told.endswith(f"going on with {fitted}\n") == (fitted < 8)


def test_memory_that_runs_out_later_keeps_what_is_done():
    seen: list[slice] = []
    many = fits(8, seen)

    def compute(rows: slice) -> list[int]:
        return many(rows) if rows.start < 8 else fits(3, seen)(rows)

    in_batches(compute, 16, 8, "features")
    assert [(rows.start, rows.stop) for rows in seen][:2] == [(0, 8), (8, 10)]


def test_other_errors_and_too_little_for_one_row_are_raised():
    def broken(rows: slice) -> None:
        raise ValueError("no such picture")

    with pytest.raises(ValueError, match="no such picture"):
        in_batches(broken, 4, 2, "features")
    with pytest.raises(RuntimeError, match="features: not even one fits into memory"):
        in_batches(fits(0, []), 4, 2, "features")


def test_no_rows_are_no_parts():
    assert in_batches(fits(1, []), 0, 4, "features") == ([], 4)
