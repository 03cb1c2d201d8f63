"""Blocks of targets, read and brought to the device ahead of what is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from nsdcap.memory import free_host_memory
from nsdcap.ridge import check_block


def ahead(read: Callable[[slice], Any], parts: Iterable[slice]) -> Iterator[tuple[slice, Any]]:
    """Each part with what ``read`` gives for it; a thread reads the next one meanwhile.

    Memory: three blocks at most. An error of ``read`` is raised where its part would have come.
    """
    with ThreadPoolExecutor(1) as reader:
        pending: list[tuple[slice, Any]] = []
        for part in parts:
            pending.append((part, reader.submit(read, part)))
            if len(pending) == 2:
                first, block = pending.pop(0)
                yield first, block.result()
                del block
        for last, block in pending:
            yield last, block.result()


def uploader(xp: Any) -> Callable[[np.ndarray], Any]:
    """A function that brings a host array to the device of ``xp``; on the host it copies nothing.

    For CuPy it copies from page-locked memory on a stream of its own, so that, called from the reading
    thread, it runs beside the products of the block before. Whoever computes must have waited for its
    results before it lets go of the array.
    """
    if xp.__name__ != "cupy":
        return xp.asarray
    import cupyx

    stream = xp.cuda.Stream(non_blocking=True)
    device = xp.cuda.Device()

    def upload(array: np.ndarray) -> Any:
        with device, stream:
            pinned = cupyx.empty_like_pinned(array)
            pinned[...] = array
            found = xp.empty(array.shape, dtype=array.dtype)
            found.set(pinned, stream=stream)
            stream.synchronize()
        return found

    return upload


def free_memory(xp: Any) -> float:
    """Bytes free on the GPU of ``xp``, or on the host."""
    if xp.__name__ != "cupy":
        return free_host_memory()
    return xp.cuda.Device().mem_info[0] + xp.get_default_memory_pool().free_bytes()


def fitting_block(xp: Any, block: int, bytes_a_target: float) -> int:
    """``block``, or fewer targets where a third of the GPU's free memory holds no more.

    ValueError where ``block`` is not a whole number above 0.
    """
    check_block(block)
    free = free_memory(xp) if xp.__name__ == "cupy" else float("inf")
    return int(max(1, min(block, free / 3 // bytes_a_target)))
