"""Tables of TOML as dataclasses, every value checked against its field's type."""

from __future__ import annotations

import dataclasses
import difflib
import json
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


def read_toml(file: Path, option: str, advice: str) -> dict[str, Any]:
    """A TOML file that ``option`` named.

    Raises
    ------
    UsageError
        The file cannot be read, or is not TOML, with ``advice``.
    """
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise UsageError(f"{option} {file}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{option} {file}: not TOML ({error}); {advice}") from None


def typed(kind: type, values: Any, where: str = "") -> dict[str, Any]:
    """What a table gives of a dataclass's fields, each value checked against its field's type.

    ``where`` stands before a key's name in errors, as in "ridge.". Lists become tuples.

    Raises
    ------
    UsageError
        Not a table, an unknown key (the nearest known one is named), a value of another type.
    """
    if not isinstance(values, dict):
        raise UsageError(f"setting {where.rstrip('.')}: found {values!r}, expected a section")
    hints = get_type_hints(kind)
    for key in values:
        check_name(key, hints, where)
    return {key: _value(hints[key], values[key], where + key) for key in values}


def check_name(key: str, known: Iterable[str], where: str) -> None:
    """Raise UsageError where ``key`` is none of ``known``."""
    if key not in known:
        near = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean {where}{near[0]}?" if near else f"known: {', '.join(known)}"
        raise UsageError(f"unknown setting {where}{key}: {hint}")


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
            raise UsageError(f"setting {name}: found {value!r}, expected a section")
        return {
            key: _value(get_args(kind)[1], item, f"{name}.{key}") for key, item in value.items()
        }
    if isinstance(kind, UnionType):
        if not isinstance(value, get_args(kind)):
            expected = " or ".join(one.__name__ for one in get_args(kind))
            raise UsageError(f"setting {name}: found {value!r}, expected {expected}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UsageError(f"setting {name}: found {value!r}, expected {kind.__name__}")
    return value


def to_toml(value: Any) -> str:
    """One value; JSON's notation of strings, numbers, booleans and lists is TOML's too."""
    if isinstance(value, float) and value == int(value) and abs(value) < 1e15:
        return f"{value:.1f}"
    return json.dumps(list(value) if isinstance(value, tuple) else value)
