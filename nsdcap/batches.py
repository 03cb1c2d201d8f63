"""Rows in batches, smaller ones where the processor's memory does not hold them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

Part = TypeVar("Part")
Row = tuple[int, ...]


def in_batches(
    compute: Callable[[slice], Part], total: int, batch: int, what: str
) -> tuple[list[Part], int]:
    """``compute`` of rows 0 to ``total``, at most ``batch`` at a time, in their order.

    Where a batch does not fit into the memory of GPU or host it is halved, from there on, and that is
    printed with ``what``; finished batches are kept. Returns the parts and the batch that fitted.

    Raises
    ------
    RuntimeError
        Not even one row fits.
    """
    # not its find_executable_batch_size, which collects garbage at each call: 0.3 s, fit or not
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    parts: list[Part] = []
    start, size = 0, batch
    while start < total:
        rows = slice(start, min(start + size, total))
        tried = rows.stop - rows.start
        try:
            parts.append(compute(rows))
            start = rows.stop
            continue
        except Exception as error:
            if not should_reduce_batch_size(error):
                raise
            if tried == 1:
                # not in its words, by which a loop around this one would halve its own batch
                raise RuntimeError(f"{what}: not even one fits into memory") from error
        # only here, past the error, is what the batch had taken let go of
        size = tried // 2
        print(f"{what}: {tried} at a time do not fit into memory, going on with {size}")
        clear_device_cache(garbage_collection=True)
    return parts, size


def joined(
    compute: Callable[[slice], np.ndarray], total: int, batches: dict[str, int], what: str, row: Row,
    dtype: str = "f4",
) -> np.ndarray:  # fmt: skip
    """The parts of ``in_batches`` end to end. ``batches`` keeps the batch of ``what``: one that did not
    fit is not tried again by the next call. ``row`` and ``dtype`` as of ``end_to_end``."""
    parts, batches[what] = in_batches(compute, total, batches[what], what)
    return end_to_end(parts, row, dtype)


def end_to_end(parts: list[np.ndarray], row: Row, dtype: str = "f4") -> np.ndarray:
    """Parts one after another, (0, *row) where there are none; ``row`` is the shape of one row."""
    return np.concatenate([np.empty((0, *row), dtype), *parts])
