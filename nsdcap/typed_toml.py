"""Tables of TOML as dataclasses, every value checked against its field's type."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from nsdcap.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


MOST_SHOWN = 120  # letters of a value or name in an error
LARGEST = 1 << 20  # bytes of a file of settings


def read_toml(file: Path, option: str, advice: str) -> dict[str, Any]:
    """A TOML file that ``option`` named.

    Raises
    ------
    UsageError
        The file cannot be read, is larger than any settings are, or is not TOML, with ``advice``.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(LARGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"{option} {named(str(file))}: cannot be read ({why})") from None
    if len(content) > LARGEST:
        raise UsageError(
            f"{option} {file}: found more than {LARGEST} bytes, expected settings; {advice}"
        )
    try:
        return tomllib.loads(content.decode("utf-8-sig"))  # editors on Windows put a mark in front
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UsageError(
            f"{option} {file}: line {line} is not UTF-8 (byte {content[error.start]:#x}), as TOML has to be; "
            "save the file as UTF-8"
        ) from None
    except RecursionError:
        raise UsageError(f"{option} {file}: not TOML (nested too deep); {advice}") from None
    except ValueError as error:
        why = str(error).splitlines()[0][:200]
        raise UsageError(f"{option} {file}: not TOML ({why}); {advice}") from None


def typed(kind: type, values: Any, where: str = "") -> dict[str, Any]:
    """What a table gives of a dataclass's fields, each value checked against its field's type.

    ``where`` stands before a key's name in errors, as in "ridge.". Lists become tuples.

    Raises
    ------
    UsageError
        Not a table, an unknown key (the nearest known one is named), a value of another type.
    """
    if not isinstance(values, dict):
        raise UsageError(
            f"setting {named(where.rstrip('.'))}: found {shown(values)}, expected a section"
        )
    hints = get_type_hints(kind)
    for key in values:
        check_name(key, hints, where)
    return {key: _value(hints[key], values[key], where + key) for key in values}


def check_name(key: str, known: Iterable[str], where: str) -> None:
    """Raise UsageError where ``key`` is none of ``known``."""
    if key not in known:
        near = difflib.get_close_matches(key[:MOST_SHOWN], known, 1)
        hint = f"did you mean {where}{near[0]}?" if near else f"known: {', '.join(known)}"
        raise UsageError(f"unknown setting {where}{named(key)}: {hint}")


def shown(value: Any) -> str:
    """A value as an error shows it: on one line, cut where it is long."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep; a number of thousands of digits
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def named(text: str) -> str:
    """A name as an error shows it: as it is, or in quotes where it holds signs that are not printed."""
    return shown(text) if not text.isprintable() or len(text) > MOST_SHOWN else text


def _value(kind: Any, value: Any, name: str) -> Any:
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return kind(**typed(kind, value, name + "."))  # type: ignore[arg-type, operator]
    if get_origin(kind) is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_value(get_args(kind)[0], item, name) for item in items)
    if get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise UsageError(f"setting {name}: found {shown(value)}, expected a section")
        return {
            key: _value(get_args(kind)[1], item, f"{name}.{named(key)}")
            for key, item in value.items()
        }
    if isinstance(kind, UnionType):
        if not isinstance(value, get_args(kind)):
            expected = " or ".join(one.__name__ for one in get_args(kind))
            raise UsageError(f"setting {name}: found {shown(value)}, expected {expected}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise UsageError(f"setting {name}: found {shown(value)}, expected float") from None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UsageError(f"setting {name}: found {shown(value)}, expected {kind.__name__}")
    return value


def to_toml(value: Any) -> str:
    """One value; JSON's notation of strings, numbers, booleans and lists is TOML's too.

    But for DEL, which JSON does not escape, and for letters as pairs of UTF-16, so none is escaped.
    """
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(to_toml, value))}]"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.1f}" if value == int(value) and abs(value) < 1e15 else repr(value)
    if isinstance(value, float):
        return repr(value)  # inf and nan are TOML's words
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
