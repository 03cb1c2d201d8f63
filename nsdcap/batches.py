"""Rows in batches, smaller ones where the processor's memory does not hold them."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

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
    # not its find_executable_batch_size, which collects garbage at every call, here once a batch
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    parts: list[Part] = []
    start, size = 0, batch
    while start < total:
        rows = slice(start, min(start + size, total))
        try:
            parts.append(compute(rows))
            start = rows.stop
            continue
        except Exception as error:
            if not should_reduce_batch_size(error):
                raise
            if size == 1:
                raise RuntimeError(f"{what}: not even one fits into memory") from error
        print(f"{what}: {size} at a time do not fit into memory, going on with {size // 2}")
        size //= 2
        gc.collect()
        clear_device_cache()
    return parts, size
