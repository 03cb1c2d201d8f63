"""How far a loop has come: a bar on a terminal, else a line every five per cent."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Pass ``items`` on and tell how many of them are done, on standard error."""
    if total is None:
        total = len(items) if isinstance(items, Sized) else None
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as bar

        yield from bar(
            items, description=what, total=total, console=Console(stderr=True), transient=True
        )
        return
    told, start = 0, time.monotonic()
    last = start
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        # what is only put together from finished parts flies past
        if total and done * 20 // total > told and (now - last > 1 or done == total):
            told, last = done * 20 // total, now
            spent = now - start
            print(
                f"{what}: {told * 5} % ({done} of {total}, {spent:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
