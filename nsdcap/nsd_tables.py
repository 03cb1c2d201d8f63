"""NSD's tables: the design, which picture of COCO is which, labels of ROIs, and COCO's captions.

Ids come out 0-based. Whatever is missing, broken or contradicts itself is one DataError that names the file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nsdcap.errors import DataError
from nsdcap.nsd_mat import read_mat
from nsdcap.nsd_read import must_exist, reading

PICTURES = 73000
SUBJECTS, OWN, SHARED, REPEATS = (
    8,
    10000,
    1000,
    3,
)  # OWN: pictures of a subject, the shared ones among them
TRIALS = 30000  # of a subject, all sessions


@dataclass(frozen=True)
class StimInfo:
    """What ``nsd_stim_info_merged.csv`` says, a row a picture in the order of nsd_id, 0 to 72,999."""

    coco_id: np.ndarray  # (73000,) int64
    split: np.ndarray  # (73000,) str, train2017 or val2017
    shared: np.ndarray  # (73000,) bool
    trials: np.ndarray  # (8, 73000, 3) int32, of each subject, 1-based, 0 never


def read_design(path: Path) -> dict[str, np.ndarray]:
    """nsd_expdesign.mat: ``masterordering`` (1, 30000), ``subjectim`` (8, 10000), ``sharedix`` (1, 1000).

    int64 and 1-based, as in the file. Raises DataError where a number is no id, a picture stands twice for a
    subject, is not shown three times, or the shared ones are not those of every subject.
    """
    most = {
        "masterordering": ((1, TRIALS), OWN),
        "subjectim": ((SUBJECTS, OWN), PICTURES),
        "sharedix": ((1, SHARED), PICTURES),
    }
    found = read_mat(path, most)
    design = {}
    for name, (shape, top) in most.items():
        values = found.get(name)
        if not isinstance(values, np.ndarray) or values.shape != shape:
            what = values.shape if isinstance(values, np.ndarray) else "nothing"
            raise DataError(f"{path}: {name} is {what}, expected {shape}; fetch it again.")
        if values.dtype.kind not in "fiu":
            raise DataError(f"{path}: {name} is {values.dtype}, expected numbers; fetch it again.")
        wrong = ~((values >= 1) & (values <= top) & (values % 1 == 0))
        if wrong.any():
            raise DataError(
                f"{path}: {name} holds {values[wrong][0]:g}, expected whole numbers from 1 to {top}; fetch it "
                "again."
            )
        design[name] = values.astype(np.int64)
    order, pictures, shared = (design[name] for name in most)
    for subject, own in enumerate(pictures, 1):
        if len(repeated := _repeated(own)):
            raise DataError(
                f"{path}: subjectim lists picture {repeated[0]} twice for subject {subject}; fetch it again."
            )
        if set(own[:SHARED]) != set(shared[0]):
            raise DataError(
                f"{path}: sharedix and the first {SHARED} columns of subjectim name different"
                f" pictures for subject {subject}; fetch it again."
            )
    times = np.bincount(order[0], minlength=OWN + 1)[1:]
    if (times != REPEATS).any():
        at = int(np.flatnonzero(times != REPEATS)[0])
        raise DataError(
            f"{path}: masterordering shows picture {at + 1} of {OWN} {times[at]} times, expected {REPEATS}; "
            "fetch it again."
        )
    return design


def read_stim_info(path: Path) -> StimInfo:
    """The table of all pictures; read once while the file stays as it is.

    Raises DataError where a column lacks, a row is broken, or a nsdId or cocoId stands twice.
    """
    must_exist(path)
    stat = path.stat()
    stamp = (path.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ino)
    if stamp not in _KEPT:
        found = _stim_info(path)
        _KEPT.clear()
        _KEPT[stamp] = found
    return _KEPT[stamp]


_KEPT: dict[object, StimInfo] = {}  # the last table that was read


def _stim_info(path: Path) -> StimInfo:
    columns = ["nsdId", "cocoId", "cocoSplit", "shared1000"]
    columns += [f"subject{s}_rep{m}" for s in range(1, SUBJECTS + 1)
                for m in range(REPEATS)]  # fmt: skip
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            head = next(reader, [])
            at = [head.index(name) for name in columns]
            rows = [[row[k] for k in at] for row in reader if row]
        ids = np.array([int(row[0]) for row in rows], dtype=np.int64)
        coco = np.array([int(row[1]) for row in rows], dtype=np.int64)
        shared = np.array([_truth(row[3]) for row in rows], dtype=bool)
        trials = np.array([row[4:] for row in rows], dtype=np.float64)
    except (OSError, ValueError, IndexError, OverflowError, csv.Error) as error:
        raise DataError(
            f"{path}: {error!r:.200}; expected columns {', '.join(columns[:4])} and subject1_rep0 to "
            "subject8_rep2, a row a picture; fetch it again."
        ) from error
    if len(repeated := _repeated(ids)):
        raise DataError(f"{path}: nsdId {repeated[0]} stands twice; fetch it again.")
    if len(ids) != PICTURES or ids.min() != 0 or ids.max() != PICTURES - 1:
        span = f", from {ids.min()} to {ids.max()}" if len(ids) else ""
        raise DataError(
            f"{path}: {len(ids)} pictures{span}, expected nsdId 0 to {PICTURES - 1}; fetch it again."
        )
    if len(repeated := _repeated(coco)):
        raise DataError(f"{path}: cocoId {repeated[0]} stands twice; fetch it again.")
    split = np.array([row[2] for row in rows])
    if len(unknown := np.setdiff1d(split, ["train2017", "val2017"])):
        raise DataError(f"{path}: cocoSplit {str(unknown[0])!r}, expected train2017 or val2017.")
    if not np.all((trials >= 0) & (trials <= TRIALS) & (trials % 1 == 0)):
        raise DataError(f"{path}: subjectN_repM holds no number of a trial, 0 to {TRIALS}.")
    order = np.argsort(ids)
    by_subject = trials[order].astype(np.int32).reshape(len(ids), SUBJECTS, REPEATS)
    return StimInfo(coco[order], split[order], shared[order], np.moveaxis(by_subject, 1, 0))


def read_captions(path: Path, wanted: Mapping[int, int]) -> dict[int, list[str]]:
    """Captions of COCO's pictures ``wanted`` (image id -> key), by that key, in order of their own ids.

    Memory: the JSON, for captions_train2017.json about 0.6 GB of Python objects. Raises DataError where it is
    not COCO's, or an annotation's id stands twice.
    """
    found: dict[int, list[tuple[int, str]]] = {key: [] for key in wanted.values()}
    seen: set[int] = set()
    try:
        for entry in json.loads(path.read_bytes())["annotations"]:
            number, image, text = entry["id"], entry["image_id"], entry["caption"]
            if not isinstance(text, str):
                raise TypeError(f"caption {text!r:.80} of id {number!r}")
            text = text.strip()
            if type(number) is not int or type(image) is not int:
                raise TypeError(f"id {number!r} of image {image!r}")
            if number in seen:
                raise DataError(f"{path}: annotation id {number} stands twice; fetch it again.")
            seen.add(number)
            text.encode()  # half a surrogate pair, which JSON can spell, is no text
            if (key := wanted.get(image)) is not None and text:
                found[key].append((number, text))
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} is not COCO's captions ({error!r:.200}); fetch it again."
        ) from error
    return {key: [text for _, text in sorted(texts)] for key, texts in found.items()}


def read_labels(path: Path) -> dict[str, int]:
    """Name -> label of a ``.ctab``. Raises DataError where there is none, or one stands twice."""
    must_exist(path)
    labels: dict[str, int] = {}
    with reading(path, "cannot be read"):
        lines = path.read_text(encoding="utf-8").splitlines()
    for line in lines:
        fields = line.split()
        if not fields:
            continue
        number = fields[0].removeprefix("-")
        if len(fields) < 2 or not (number.isascii() and number.isdigit()) or len(number) > 9:
            raise DataError(f"{path}: line {line[:80]!r}, expected 'index name'; fetch it again.")
        if fields[1] in labels or int(fields[0]) in labels.values():
            raise DataError(
                f"{path}: line {line[:80]!r} has a label or a name that stands there twice; fetch it again."
            )
        labels[fields[1]] = int(fields[0])
    if not labels:
        raise DataError(f"{path} holds no labels, expected lines of 'index name'; fetch it again.")
    return labels


def check_streams(path: Path, labels: Mapping[str, int], expected: Collection[str]) -> None:
    """Raise DataError unless the streams are those that are known, numbered from 1 in that order."""
    wanted = {name: number for number, name in enumerate(expected, 1)}
    found = {name: number for name, number in labels.items() if number > 0}
    if found != wanted:
        name = next(name for name in {**wanted, **found} if found.get(name) != wanted.get(name))
        raise DataError(
            f"{path}: {name} has label {found.get(name, 'none')}, expected {wanted.get(name, 'none')} (streams "
            f"1 to {len(wanted)}: {', '.join(wanted)}); fetch it again."
        )


def _repeated(ids: np.ndarray) -> np.ndarray:
    values, counts = np.unique(ids, return_counts=True)
    return values[counts > 1]


def _truth(word: str) -> bool:
    if word not in ("True", "False", "1", "0"):
        raise ValueError(f"shared1000 is {word[:20]!r}")
    return word in ("True", "1")
