"""coco-caption's Java programs as pycocoevalcap ships them: PTB tokens, METEOR, SPICE.

They are called with pycocoevalcap's own arguments, but not through its classes, which write into the
package's folder (read-only in an image), download what SPICE lacks, and wait for ever where Java ends early.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import numpy as np

from nsdcap.errors import DataError

# coco-caption's list, from pycocoevalcap.tokenizer.ptbtokenizer
PUNCTUATION = frozenset(
    ("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";")
)  # fmt: skip
TOKENIZER = "stanford-corenlp-3.4.1.jar"
METEOR = "meteor-1.5.jar"
SPICE = "spice-1.0.jar"
SPICE_NEEDS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
# what is lower case, and what a byte of a text means, must not depend on the user's locale
LOCALE = ("-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8")
LINES = 64  # sent to METEOR at a time: what it answers fits the pipe while nobody reads
# places in METEOR's line of counts
HYP_WORDS, REF_WORDS, CHUNKS, HYP_MATCHED, REF_MATCHED = 0, 1, 20, 21, 22


class NotComputed(DataError):
    """Why a score cannot be computed on this machine, in words for its row."""


def tokenise(texts: Sequence[str]) -> list[str]:
    """Each text's PTB tokens in lower case without punctuation, with blanks between them.

    Starts Java once. Line breaks and other white space in a text count as blanks.

    Raises
    ------
    NotComputed
        pycocoevalcap or Java is not there, or Java fails.
    """
    jar = _found("tokenizer", TOKENIZER)
    lines = [" ".join(text.split()) for text in texts]
    with tempfile.TemporaryDirectory(prefix="nsdcap-") as folder:
        file = Path(folder) / "captions.txt"
        file.write_text("".join(f"{line}\n" for line in lines), "utf-8", "replace", "\n")
        said = _java(
            "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase",
            str(file),
        )  # fmt: skip
    found = said.decode("utf-8").split("\n")[:-1]
    if len(found) != len(lines):
        raise NotComputed(f"the PTB tokenizer made {len(found)} lines of {len(lines)} captions")
    return [" ".join(w for w in line.rstrip().split(" ") if w not in PUNCTUATION) for line in found]


class Meteor:
    """METEOR 1.5 for English, one Java process from the first call to the end of the ``with`` block.

    Texts are tokens of ``tokenise``. Pairs are scored once. 2 GB of memory.

    Raises
    ------
    NotComputed
        pycocoevalcap or Java is not there, or Java ends early.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115, closed by __exit__
        self._known: dict[tuple[str, tuple[str, ...]], np.ndarray] = {}

    def __enter__(self) -> Meteor:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._errors.close()

    def statistics(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]
    ) -> np.ndarray:
        """Counts (n, 23) float64 of each hypothesis against its references, by the best one of them.

        A hypothesis that matches as a whole has no chunk: so METEOR has it where it adds up a corpus.
        """
        pairs = [(text, tuple(refs)) for text, refs in zip(hypotheses, references, strict=True)]
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        lines = [" ||| ".join(("SCORE", *refs, text)) for text, refs in new]
        for pair, line in zip(new, self._answers(lines, 1), strict=True):
            counts = np.array([float(number) for number in line.split()])
            whole = np.array_equal(
                counts[[HYP_MATCHED, REF_MATCHED]], counts[[HYP_WORDS, REF_WORDS]]
            )
            if whole and counts[CHUNKS] == 1:
                counts[CHUNKS] = 0
            self._known[pair] = counts
        return np.stack([self._known[pair] for pair in pairs])

    def scores(self, statistics: np.ndarray) -> np.ndarray:
        """METEOR (m,), 0 to 1, of counts (m, k); those of a corpus are the sum of its captions'."""
        texts = [" ".join(repr(float(number)) for number in row) for row in statistics]
        # a line for the caption, and one for the corpus that it is alone
        answers = self._answers([f"EVAL ||| {text}" for text in texts], 2)
        return np.array([float(line) for line in answers[::2]])

    def _answers(self, lines: list[str], each: int) -> list[str]:
        if self._process is None:
            jar = _found("meteor", METEOR)
            command = [
                _program(),
                *LOCALE,
                "-jar",
                "-Xmx2G",
                METEOR,
                "-",
                "-",
                "-stdio",
                "-l",
                "en",
            ]
            self._process = subprocess.Popen(
                [*command, "-norm"], cwd=jar.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=self._errors,
            )  # fmt: skip
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        answers: list[str] = []
        for start in range(0, len(lines), LINES):
            some = lines[start : start + LINES]
            try:
                stdin.write("".join(f"{line}\n" for line in some).encode("utf-8", "replace"))
                stdin.flush()
            except BrokenPipeError:
                pass  # the empty answer below tells
            answers += [stdout.readline().decode().strip() for _ in range(len(some) * each)]
            if "" in answers[start * each :]:
                self._errors.seek(0)
                raise NotComputed(f"METEOR's Java ended early: {_reason(self._errors.read())}")
        return answers


def spice(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """SPICE (n,), 0 to 1, of each hypothesis against its references, both tokens of ``tokenise``.

    Starts Java once, with up to 8 GB of memory.

    Raises
    ------
    NotComputed
        pycocoevalcap, Java or the CoreNLP jars are not there, or Java fails.
    """
    jar = _found("spice", SPICE)
    lacking = [name for name in SPICE_NEEDS if not (jar.parent / "lib" / name).is_file()]
    if lacking:
        raise NotComputed(
            f"needs {' and '.join(lacking)} (Stanford CoreNLP of 2015-12-09) in spice/lib of pycocoevalcap's "
            "folder; nothing is downloaded"
        )
    entries = [
        {"image_id": i, "test": text, "refs": list(refs)}
        for i, (text, refs) in enumerate(zip(hypotheses, references, strict=True))
    ]
    with tempfile.TemporaryDirectory(prefix="nsdcap-") as folder:
        given, cache, made = (Path(folder) / name for name in ("in.json", "cache", "out.json"))
        given.write_text(json.dumps(entries, indent=2))
        cache.mkdir()
        _java(
            "-jar", "-Xmx8G", SPICE, str(given), "-cache", str(cache), "-out", str(made), "-subset",
            "-silent", cwd=jar.parent,
        )  # fmt: skip
        found = {
            item["image_id"]: item["scores"]["All"]["f"] for item in json.loads(made.read_text())
        }
    return np.array([float(found[i]) for i in range(len(entries))])


def _found(part: str, name: str) -> Path:
    """A jar of pycocoevalcap, once it is certain that there is a Java to run it."""
    spec = find_spec("pycocoevalcap")
    lacking = []
    if spec is None:
        lacking.append('the extra "metrics" (pycocoevalcap): pip install ".[metrics]"')
    if shutil.which("java") is None:
        lacking.append("Java: no java on the PATH")
    if lacking:
        raise NotComputed(f"needs {'; needs '.join(lacking)}")
    assert spec is not None
    places = [Path(folder) / part / name for folder in spec.submodule_search_locations or ()]
    for place in places:
        if place.is_file():
            return place
    raise NotComputed(f"pycocoevalcap lacks {part}/{name}: install it again")


def _program() -> str:
    return shutil.which("java") or "java"


def _java(*arguments: str, cwd: Path | None = None) -> bytes:
    """What a Java program prints."""
    done = subprocess.run([_program(), *LOCALE, *arguments], cwd=cwd, capture_output=True)
    if done.returncode:
        raise NotComputed(
            f"Java ended with code {done.returncode}: {_reason(done.stderr or done.stdout)}"
        )
    return done.stdout


def _reason(said: bytes) -> str:
    """The line of Java's messages that names what went wrong."""
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    named = [line for line in lines if "Exception" in line or "Error" in line]
    return (named or lines or ["it said nothing"])[0][:200]
