"""``python -m nsdcap.metrics pictures``."""

from __future__ import annotations

from typing import Any


def add(subparsers: Any) -> None:
    """Add the command to argparse's ``subparsers``; its default ``run`` takes the parsed options and
    returns the exit code. Errors are raised as UsageError or DataError: the caller prints them."""
