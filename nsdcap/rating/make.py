"""A study from a run: which pictures, held against what, in which order and on which side for each rater."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nsdcap import config
from nsdcap.artefacts import Artefact, open_artefact
from nsdcap.errors import DataError, UsageError
from nsdcap.paths import Cell, artefact, atomic, config_file, sidecar, write_json
from nsdcap.rating.study import (
    KINDS,
    SIDES,
    Asked,
    Study,
    Trial,
    id_of,
    key_of,
    same_words,
    signatures,
)
from nsdcap.tables_captions import read_captions

TRIALS = {"captions": 600, "pictures": 400}  # the paper's


@dataclass(frozen=True)
class Subject:
    """A subject's test pictures: nsd_ids, captions of the chosen arm, human captions, samples a picture."""

    number: int
    ids: list[int]
    captions: dict[int, str]
    references: dict[int, list[str]]
    samples: int


def make(
    out: Path, folder: Path, kind: str, raters: int = 6, trials: int | None = None, seed: int = 0,
    catch: int | None = None, arm: str | None = None, log: Callable[[str], object] = print,
) -> Study:  # fmt: skip
    """Write a study of a run's pictures to a new ``folder``; see ``study`` for what it holds.

    kind "captions": the shown picture, its own caption and that of another picture of the same subject,
    ``arm`` ("brain") of the caption stage. "pictures": the shown picture, the caption arm's and the direct
    arm's reconstruction from the same noise. ``trials`` pictures (600; 400) are drawn at random, as many of
    each subject, and none twice while there are enough; all raters judge the same ones. ``catch`` trials, one
    in twenty unless given, have a plain answer: a human caption of the picture against that of a picture
    which shares the fewest words with it; or the picture itself against another. Sides are balanced for
    each rater, and between raters 1 and 2, 3 and 4 for each picture. Everything follows from ``seed``.

    The other picture is drawn whatever its caption says. Where it says the very same, raters can only guess,
    and half of them are right on average: a captioner that repeats itself pays for it. ``log`` is told how
    many such pairs there are.

    Raises
    ------
    UsageError
        An option out of range; ``folder`` holds something.
    DataError
        A stage's result is missing, or of fewer than two pictures.
    """
    trials = TRIALS.get(kind, 0) if trials is None else trials
    if kind not in KINDS:
        raise UsageError(f"--study {kind}: expected one of {', '.join(KINDS)}")
    for option, found, least in (("raters", raters, 1), ("trials", trials, 1), ("catch", catch, 0)):
        if found is not None and found < least:
            raise UsageError(f"--{option} {found}: expected at least {least}")
    if seed < 0:
        raise UsageError(f"--seed {seed}: expected 0 or above")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"{folder}: is there already; give a new folder, so that no answers are lost"
        )
    if kind == "pictures" and arm is not None:
        raise UsageError(
            f"--arm {arm}: is for --study captions; pictures are painted from brain captions"
        )
    subjects = _subjects(out, arm or "brain")
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    used: Counter[int] = Counter()
    drawn = _draw(subjects, trials, used, rng)
    if len(drawn) < trials:
        log(f"{trials} pictures were asked for and {len(drawn)} are there: all are used")
    catch = max(2, round(len(drawn) / 20)) if catch is None else catch
    caught = _draw(subjects, catch, used, rng) if catch else []
    while 0 < len(caught) < catch:
        caught += caught[: catch - len(caught)]
    choose = _caption_trial if kind == "captions" else _picture_trial
    listed = [choose(*pair, rng, False) for pair in drawn]
    listed += [choose(*pair, rng, True) for pair in caught]
    study = Study(
        "", kind, arm or "brain" if kind == "captions" else "caption over direct", seed,
        signatures(out, kind, [subject.number for subject in subjects]),
        tuple(listed), _orders(listed, raters, [seed, KINDS.index(kind), 1]),
    )  # fmt: skip
    study = replace(study, id=id_of(key_of(study)))
    with atomic(folder) as partial:
        partial.mkdir(mode=0o700)  # NSD's pictures, and the key
        _write_pictures(out, listed, kind, partial)
        write_json(partial / "study.json", {"id": study.id, **key_of(study)})
        (partial / "study.json").chmod(0o600)
    same = sum(same_words(trial) for trial in listed if not trial.catch)
    if same:
        log(
            f"{same} of {len(drawn)} pairs of captions read the same; they stay, raters can only guess"
        )
    each = Counter(trial.subject for trial in listed if not trial.catch)
    counts = ", ".join(f"{n} of subject {subject}" for subject, n in sorted(each.items()))
    log(f"study {study.id} in {folder}: {len(drawn)} pictures ({counts}), {len(caught)} catch trials, "
        f"{raters} raters; next: python -m nsdcap.rating serve {folder}")  # fmt: skip
    return study


def _subjects(out: Path, arm: str) -> list[Subject]:
    """The run's subjects, from its caption and reconstruct stages."""
    if not config_file(out).exists():
        raise UsageError(f"{out}: found no config.toml there; give the folder of a run (--out)")
    subjects = []
    for number in config.load(config_file(out)).data.subjects:
        cells = [Cell(stage, number) for stage in ("caption", "reconstruct")]
        for cell in cells:
            if not sidecar(out, cell).exists():
                raise DataError(
                    f"{artefact(out, cell)}: not done; run the {cell.stage} stage first"
                )
        content = read_captions(out, number)
        if arm not in content["arms"]:
            raise UsageError(f"--arm {arm}: expected one of {', '.join(content['arms'])}")
        with _pictures(out, number) as file:
            ids, samples = [int(i) for i in file["nsd_id"][:]], file["caption"].shape[1]
        captions = {int(i): entry[arm] for i, entry in content["captions"].items()}
        if set(captions) != set(ids):
            raise DataError(
                f"{artefact(out, cells[1])}: {len(set(captions) ^ set(ids))} of its pictures are not those "
                "of the caption stage; run both stages again"
            )
        if len(ids) < 2:
            raise DataError(
                f"{artefact(out, cells[1])}: found {len(ids)} pictures, expected 2 or more"
            )
        references = {int(i): entry["references"] for i, entry in content["captions"].items()}
        subjects.append(Subject(number, ids, captions, references, samples))
    return subjects


def _pictures(out: Path, number: int) -> Artefact:
    """A subject's reconstruct result; DataError where it cannot be read or lacks a part."""
    return open_artefact(out, Cell("reconstruct", number), ("nsd_id", "shown", "caption", "direct"))


def _draw(
    subjects: list[Subject], n: int, used: Counter[int], rng: np.random.Generator
) -> list[tuple[Subject, int]]:
    """Up to n pictures, the subjects in turn, each time one of those that were used least; counts them."""
    left = [[s.ids[k] for k in rng.permutation(len(s.ids))] for s in subjects]
    drawn: list[tuple[Subject, int]] = []
    while len(drawn) < n and any(left):
        for k in rng.permutation(len(subjects)):
            if left[k] and len(drawn) < n:
                picture = min(left[k], key=used.__getitem__)  # the first of those, in random order
                left[k].remove(picture)
                used[picture] += 1
                drawn.append((subjects[k], picture))
    return drawn


def _caption_trial(subject: Subject, nsd_id: int, rng: np.random.Generator, catch: bool) -> Trial:
    """The picture's own caption against another picture's."""
    others = [i for i in subject.ids if i != nsd_id]
    if catch:
        own = _words(subject.references[nsd_id])
        shared = {i: len(own & _words(subject.references[i])) for i in others}
        other = _any([i for i in others if shared[i] == min(shared.values())], rng)
        target, foil = subject.references[nsd_id][0], subject.references[other][0]
    else:
        other = _any(others, rng)
        target, foil = subject.captions[nsd_id], subject.captions[other]
    return Trial(subject.number, nsd_id, _shown(nsd_id), target, foil, other, catch)


def _picture_trial(subject: Subject, nsd_id: int, rng: np.random.Generator, catch: bool) -> Trial:
    """The caption arm's picture against the direct arm's, or the shown picture against another."""
    if catch:
        other = _any([i for i in subject.ids if i != nsd_id], rng)
        return Trial(
            subject.number, nsd_id, _shown(nsd_id), _shown(nsd_id), _shown(other), other, True
        )
    sample = int(rng.integers(subject.samples))
    target, foil = (
        f"pictures/subj{subject.number:02d}_{nsd_id:05d}_{arm}_{sample}.png"
        for arm in ("caption", "direct")
    )
    return Trial(subject.number, nsd_id, _shown(nsd_id), target, foil, nsd_id, False, sample)


def _orders(trials: list[Trial], raters: int, seed: list[int]) -> dict[str, tuple[Asked, ...]]:
    """Each rater's order, sides and ids. Every second rater has the sides of the one before, mirrored."""
    orders: dict[str, tuple[Asked, ...]] = {}
    taken: set[str] = set()
    for number in range(raters):
        rng = np.random.default_rng([*seed, number])
        if number % 2 == 0:
            sides = _sides(trials, rng)
        else:
            sides = 1 - sides
        order = []
        for k in rng.permutation(len(trials)):
            name = rng.bytes(6).hex()
            while name in taken:
                name = rng.bytes(6).hex()
            taken.add(name)
            order.append(Asked(name, int(k), SIDES[sides[k]]))
        orders[f"rater{number + 1:02d}"] = tuple(order)
    return orders


def _sides(trials: list[Trial], rng: np.random.Generator) -> np.ndarray:
    """0 or 1 (n,): half of each, of a subject's trials and of the catch trials, to one where they are odd."""
    sides = np.zeros(len(trials), dtype=int)
    groups: dict[int, list[int]] = {}
    for k, trial in enumerate(trials):
        groups.setdefault(0 if trial.catch else trial.subject, []).append(k)
    more = int(rng.integers(2))
    for rows in groups.values():
        sides[rows] = rng.permutation((np.arange(len(rows)) + more) % 2)
        more = (more + len(rows)) % 2  # an odd one too many is made good by the next group
    return sides


def _write_pictures(out: Path, trials: list[Trial], kind: str, folder: Path) -> None:
    """Every picture that the trials name, as PNG."""
    from PIL import Image

    # its name: whose file it is in, the dataset there, nsd_id, sample
    wanted: dict[str, tuple[int, str, int, int | None]] = {}
    for trial in trials:
        wanted[trial.shown] = (trial.subject, "shown", trial.nsd_id, None)
        if kind == "pictures" and trial.catch:
            wanted[trial.foil] = (trial.subject, "shown", trial.other, None)
        elif kind == "pictures":
            wanted[trial.target] = (trial.subject, "caption", trial.nsd_id, trial.sample)
            wanted[trial.foil] = (trial.subject, "direct", trial.nsd_id, trial.sample)
    (folder / "pictures").mkdir()
    for number in sorted({trial.subject for trial in trials}):
        with _pictures(out, number) as file:
            rows = {int(i): row for row, i in enumerate(file["nsd_id"][:])}
            for name, (subject, dataset, nsd_id, sample) in wanted.items():
                if subject == number:
                    row = rows[nsd_id]
                    pixels = file[dataset][row] if sample is None else file[dataset][row, sample]
                    Image.fromarray(pixels).save(folder / name)


def _shown(nsd_id: int) -> str:
    return f"pictures/{nsd_id:05d}_shown.png"


def _any(choices: list[int], rng: np.random.Generator) -> int:
    return choices[int(rng.integers(len(choices)))]


def _words(texts: list[str]) -> set[str]:
    """The words of three letters or more, cat and bus among them."""
    return {word for text in texts for word in re.findall(r"[^\W\d_]{3,}", text.lower())}
