"""What a study's folder holds: the key, each rater's answers; read and checked.

study.json           the key: every trial, and each rater's order and sides; no browser is sent it
pictures/*.png       sent one by one, by trial id and place
tokens.json          each rater's secret part of the address, made when first served
answers/rater01.json what rater01 handed in
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsdcap.errors import DataError
from nsdcap.paths import Cell, sidecar

KINDS = ("captions", "pictures")
SIDES = ("left", "right")
FORMAT = "nsdcap rating 1"
_ANSWERS = {"format", "study", "rater", "begun", "finished", "answers", "checksum"}
_ANSWER = {"trial", "choice", "ms", "at"}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@dataclass(frozen=True)
class Trial:
    """One choice, the same for all raters. ``target`` and ``foil`` are captions, or files of pictures.

    The target is what counts as correct: the picture's own caption, the caption arm's picture, or what
    is plainly right where ``catch``. ``other`` is the picture that the foil belongs to.
    """

    subject: int
    nsd_id: int
    shown: str
    target: str
    foil: str
    other: int
    catch: bool = False
    sample: int | None = None


@dataclass(frozen=True)
class Asked:
    """A trial as one rater sees it: under which opaque id, and on which side its target is."""

    id: str
    trial: int
    side: str


@dataclass(frozen=True)
class Study:
    """The key. ``raters``: a rater's name to the trials in that rater's order; ``made_of``: ``signatures``."""

    id: str
    kind: str
    arm: str
    seed: int
    made_of: dict[str, str]
    trials: tuple[Trial, ...]
    raters: dict[str, tuple[Asked, ...]]


@dataclass(frozen=True)
class Answers:
    """One rater's file. ``chosen``: whether the target was chosen, by the number of the trial."""

    path: str
    rater: str
    chosen: dict[int, bool]
    ms: dict[int, int]


def same_words(trial: Trial) -> bool:
    """Whether its two captions differ in nothing but capitals, marks and spaces. Never so of two files."""
    target, foil = (re.findall(r"\w+", text.lower()) for text in (trial.target, trial.foil))
    return target == foil


def key_of(study: Study) -> dict[str, Any]:
    """The key as JSON, without its id."""
    return {
        "format": FORMAT, "study": study.kind, "arm": study.arm, "seed": study.seed,
        "made_of": study.made_of,
        "trials": [vars(trial) for trial in study.trials],
        "raters": {name: [vars(asked) for asked in order] for name, order in study.raters.items()},
    }  # fmt: skip


def signatures(out: Path, kind: str, subjects: Iterable[int | str]) -> dict[str, str]:
    """What the judged results of a run were made from, by subject: its stages' signatures.

    Raises DataError where a stage is not done.
    """
    found = {}
    for number in subjects:
        cell = Cell("caption" if kind == "captions" else "reconstruct", int(number))
        path = sidecar(out, cell)
        try:
            found[str(number)] = str(json.loads(path.read_bytes())["depends"]["signature"])
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(
                f"{path}: found no signature; run the {cell.stage} stage again"
            ) from None
    return found


def id_of(key: dict[str, Any]) -> str:
    """A study's id: the key's SHA-256, its first 16 digits."""
    text = json.dumps(key, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def page_of(study: Study, rater: str) -> dict[str, Any]:
    """What a rater's browser gets to know: trials in order, by id, with both captions if it is about them."""
    trials = []
    for asked in study.raters[rater]:
        trial, shown = study.trials[asked.trial], {"id": asked.id}
        if study.kind == "captions":
            other = SIDES[1 - SIDES.index(asked.side)]
            texts = {asked.side: _neat(trial.target), other: _neat(trial.foil)}
            shown |= {side: texts[side] for side in SIDES}  # the order of keys must not tell
        trials.append(shown)
    return {"study": study.id, "kind": study.kind, "rater": rater, "trials": trials}


def _neat(text: str) -> str:
    """With a capital and no full stop: people write both and captioners neither, which told catch trials."""
    text = " ".join(text.split()).rstrip(". ")
    return text[:1].upper() + text[1:]


def picture_of(study: Study, rater: str, trial_id: str, place: str) -> str | None:
    """The file of the picture that a rater's page shows there; place: shown, left or right. None: nothing."""
    asked = next((one for one in study.raters[rater] if one.id == trial_id), None)
    if asked is None or place not in (
        ("shown",) if study.kind == "captions" else ("shown", *SIDES)
    ):
        return None
    trial = study.trials[asked.trial]
    if place == "shown":
        return trial.shown
    return trial.target if place == asked.side else trial.foil


def read_study(folder: Path) -> Study:
    """The key of a study. Raises DataError where there is none, or it was changed."""
    path = folder / "study.json"
    content = _json(path, "make the study again: python -m nsdcap.rating make")
    try:
        study = Study(
            content.pop("id"), content["study"], content["arm"], content["seed"], content["made_of"],
            tuple(Trial(**trial) for trial in content["trials"]),
            {name: tuple(Asked(**asked) for asked in order)
             for name, order in content["raters"].items()},
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: no study's key ({error!r}); make the study again") from None
    if content.get("format") != FORMAT or id_of(content) != study.id:
        raise DataError(
            f"{path}: was changed or is of another version: found format {content.get('format')!r}, and its "
            f"content is not that of id {study.id}; put the file back as `make` wrote it"
        )
    return study


def checksum(content: dict[str, Any]) -> str:
    """SHA-256 of a rater's file: a line of study, rater, begun and finished, then one for each answer.

    It finds accidents and careless edits; someone who means to can write a new one.
    """
    lines = [[content[name] for name in ("study", "rater", "begun", "finished")]]
    lines += [[one[name] for name in ("trial", "choice", "ms", "at")] for one in content["answers"]]
    text = "".join(" ".join(str(part) for part in line) + "\n" for line in lines)
    return hashlib.sha256(text.encode()).hexdigest()


def read_answers(path: Path, study: Study) -> Answers:
    """A rater's file, whole, unchanged and of this study; else DataError, which names the file."""
    return check_answers(_json(path, "hand in or download it again"), study, str(path))


def check_answers(content: Any, study: Study, path: str) -> Answers:
    """The same of what has been read already; ``path`` is what errors call it.

    Raises
    ------
    DataError
        It is of another study or rater, incomplete, doubled or edited.
    """

    def refuse(found: str) -> DataError:
        return DataError(f"{path}: {found}; hand in or download it again")

    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise refuse(f"no rater's file, found no format {FORMAT!r}")
    if content.get("study") != study.id:
        raise refuse(
            f"found answers of study {content.get('study')!r}, expected study {study.id!r}"
        )
    rater = content.get("rater")
    if rater not in list(study.raters):  # a list is no key, and may well be given
        raise refuse(f"found rater {rater!r}, expected one of {', '.join(study.raters)}")
    answers = content.get("answers")
    if set(content) != _ANSWERS or not isinstance(answers, list):
        raise refuse(f"found {', '.join(sorted(content))}; expected {', '.join(sorted(_ANSWERS))}")
    for number, answer in enumerate(answers, start=1):
        if not _is_answer(answer):
            raise refuse(f"answer {number} is broken, found {json.dumps(answer)[:200]}")
    asked = {one.id: one for one in study.raters[rater]}
    given = [answer["trial"] for answer in answers]
    foreign = [trial for trial in given if trial not in asked]
    if foreign:
        raise refuse(
            f"{len(foreign)} trials are not {rater}'s, the first {foreign[0]!r}: edited or mixed"
        )
    if len(set(given)) < len(given):
        twice = next(trial for trial in given if given.count(trial) > 1)
        raise refuse(f"trial {twice!r} is answered {given.count(twice)} times, expected once")
    if len(given) < len(asked):
        raise refuse(f"incomplete, found {len(given)} of {len(asked)} answers")
    if not all(_is_time(content[name]) for name in ("begun", "finished")):
        raise refuse("begun or finished is no time")
    if content["checksum"] != checksum(content):
        raise refuse("its checksum does not fit, so it was edited or damaged")
    return Answers(
        path, rater,
        {asked[one["trial"]].trial: one["choice"] == asked[one["trial"]].side for one in answers},
        {asked[one["trial"]].trial: one["ms"] for one in answers},
    )  # fmt: skip


def _is_answer(answer: Any) -> bool:
    return (
        isinstance(answer, dict)
        and set(answer) == _ANSWER
        and isinstance(answer["trial"], str)
        and answer["choice"] in SIDES
        and type(answer["ms"]) is int
        and answer["ms"] >= 0
        and _is_time(answer["at"])
    )


def _is_time(value: Any) -> bool:
    return isinstance(value, str) and _TIME.fullmatch(value) is not None


def _json(path: Path, advice: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {advice}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: broken off or not JSON ({error}); {advice}") from None
