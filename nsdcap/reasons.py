"""Why a result is stale, in words: in what the things that it rests on differ from what they were."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from nsdcap.outside import MISSING

FORM = 2  # of what a sidecar notes under "depends"
MOST = 3  # that are told; others are counted
_LETTERS = 60  # of a setting's value


def differences(kept: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """In what a cell's own dependencies, beside its inputs, differ; none where only an input changed."""
    if kept.get("form") != wanted["form"]:
        return ["made by an older nsdcap, which noted in another way what results rest on"]
    if kept["version"] != wanted["version"]:
        return [f"made by version {kept['version']}, this is {wanted['version']}"]
    old, new = kept["settings"], wanted["settings"]
    found = [
        f"setting {name} was {_text(old[name])}, is {_text(new[name])}"
        for name in sorted({*old} & {*new})
        if old[name] != new[name]
    ]
    old, new = kept["files"], wanted["files"]
    found += [
        _of_file(name, old.get(name), new.get(name))
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    if not found and kept["settings"].keys() != wanted["settings"].keys():
        found = ["other settings count for it"]
    return found


def brief(reasons: Iterable[str]) -> str:
    """The first reasons, settings before files, and how many there are beside."""
    every = sorted(dict.fromkeys(reasons), key=lambda one: not of_setting(one))
    rest = len(every) - MOST
    told = every if rest <= 0 else [*every[:MOST], f"and {rest} more"]
    return "; ".join(told) or "made for another cell"


def of_setting(reason: str) -> bool:
    """Whether a reason names a setting, of the cell or of an input."""
    return reason.startswith("setting ") or ": setting " in reason


def _of_file(name: str, old: str | None, new: str | None) -> str:
    if old is None:
        return f"file {name} was not there before"
    if new is None or new == MISSING:
        return f"file {name} is missing"
    (size, _, time), (size_now, _, time_now) = old.partition(", "), new.partition(", ")
    if time and time_now and size == size_now:
        whole, nano = divmod(int(time.split()[0]), 10**9)
        return (
            f"file {name} has another time of writing, and the same size; if it holds the same as before give "
            f"it back its time, touch -d @{whole}.{nano:09d} FILE"
        )
    if time and time_now:
        return f"file {name} had {size}, has {size_now}"
    return f"file {name} holds something else than before"


def _text(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    if len(text) <= _LETTERS:
        return text
    return f"{text[:_LETTERS]}... ({len(value)} {'letters' if isinstance(value, str) else 'items'})"
