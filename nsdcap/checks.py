"""A row of what was checked, and how an error becomes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from nsdcap.errors import DataError, NsdcapError, UsageError

# worst first: what decides the doctor's exit code; a note changes nothing
CODES = {"bad data": 65, "missing": 69, "bad setting": 2, "note": 0, "ok": 0}
PARTS = ("data", "models", "machine", "cluster")


@dataclass(frozen=True)
class Row:
    """What was looked at, a word of ``CODES``, what was found and expected, how to mend it; the error that
    the launcher raises for it, if it is one."""

    check: str
    verdict: str
    found: str
    expected: str = ""
    mend: str = ""
    error: NsdcapError | None = None


def look(check: str, function: Callable[[], str], expected: str = "") -> Row:
    """What ``function`` says that it found, or the error that it raised."""
    try:
        return Row(check, "ok", function(), expected)
    except NsdcapError as error:
        return broken(check, error, expected)


def each(
    check: str,
    names: Iterable[object],
    function: Callable[..., object],
    found: str,
    expected: str = "",
) -> Iterator[Row]:
    """A row for each of ``names`` for which ``function`` raises, or one that says ``found`` of them all."""
    sound = True
    for name in names:
        try:
            function(name)
        except NsdcapError as error:
            sound = False
            yield broken(f"{check} {name}", error, expected)
    if sound:
        yield Row(check, "ok", found, expected)


def broken(check: str, error: NsdcapError, expected: str = "") -> Row:
    """The row of an error: its sentence, "found, expected this; mend it so", in three."""
    told, _, mend = str(error).partition("; ")
    found, comma, wanted = told.partition(", expected ")
    if not comma:
        found, comma, wanted = told.partition(": expected ")
    return Row(check, verdict(error), found, wanted if comma else expected, mend, error)


def verdict(error: NsdcapError) -> str:
    """missing, bad data or bad setting."""
    if error.exit_code == 69 or (isinstance(error, DataError) and error.absent):
        return "missing"
    return "bad setting" if isinstance(error, UsageError) else "bad data"


def exit_code(rows: Iterable[Row]) -> int:
    """65 if anything is bad, else 69 if anything is missing, else 2 for a setting that does not fit, else 0."""
    found = {row.verdict for row in rows}
    return next((code for word, code in CODES.items() if word in found), 0)
