"""Rows in batches, smaller ones where the processor's memory does not hold them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

Part = TypeVar("Part")


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
    from accelerate.utils import find_executable_batch_size

    parts: list[Part] = []
    start, size = 0, batch

    def half() -> int:
        nonlocal size
        if size > 1:
            print(f"{what}: {size} at a time do not fit into memory, going on with {size // 2}")
        size //= 2
        return size

    @find_executable_batch_size(starting_batch_size=batch, reduce_batch_size_fn=half)
    def run(size: int) -> int:
        nonlocal start
        while start < total:
            rows = slice(start, min(start + size, total))
            parts.append(compute(rows))
            start = rows.stop
        return size

    return parts, run()


def joined(
    compute: Callable[[slice], np.ndarray], total: int, batches: dict[str, int], what: str
) -> np.ndarray:
    """The parts of ``in_batches`` end to end. ``batches`` keeps the batch of ``what``: one that did not
    fit is not tried again by the next call."""
    parts, batches[what] = in_batches(compute, total, batches[what], what)
    return np.concatenate(parts)
