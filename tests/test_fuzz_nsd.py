"""Damaged files of every kind that the readers know: a clean result or one DataError, whatever the damage.

A clean result equals the undamaged one, but where no reader could tell: HDF5 of the kind that NSD and h5py
write, CSV, JSON and ctab have no check sums, so that any of their bytes is taken at its word. Of these the
shapes, dtypes, ranges and counts must still hold. What is gzipped, and a .mat that is packed, has check sums.

Files are read in a process of its own with little memory: one that crashes, hangs or asks for too much fails.
"""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import resource
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsdcap import nsd as nsd_module
from nsdcap import nsd_checks, nsd_tables
from nsdcap.artefacts import open_file
from nsdcap.config import STREAMS
from nsdcap.errors import DataError
from nsdcap.nsd import NSD, Trials
from nsdcap.nsd_surface import read_index, read_layer

SHAPE = (3, 4, 5)
AFFINE = np.diag([1.8, 1.8, 1.8, 1.0])
XYZ = np.argwhere(np.ones(SHAPE))[::3]
PICTURES, OWN, SHARED, TRIALS = 68, 12, 4, 36  # a design of the same form, smaller
MEMORY = 1 << 30  # bytes beyond what the process has
SECONDS = 20
EXPERIMENT = "nsddata/experiments/nsd"
BETAS = "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR"
FUNC = "nsddata/ppdata/subj01/func1pt8mm"
SAME = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


@dataclass(frozen=True)
class Kind:
    """A file, how it is read (a list of arrays), whether damage always shows, and what else must hold."""

    name: str
    content: bytes
    read: Callable[[Path], list[np.ndarray]]
    checked: bool
    holds: Callable[[list[np.ndarray]], bool] = lambda found: True


# --- whole files ------------------------------------------------------------------------------------


def hdf5(**datasets: Any) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, values in datasets.items():
            options = {"chunks": (750, 1, 1, 1)} if name == "betas" else {}
            if name == "imgBrick":
                options = {"chunks": (1, *values.shape[1:]), "compression": "gzip"}
            file.create_dataset(name, data=values, **options)
    return buffer.getvalue()


def image(values: np.ndarray, mgh: bool = False) -> bytes:
    import gzip

    kind = nib.MGHImage if mgh else nib.Nifti1Image
    return gzip.compress(kind(values, AFFINE).to_bytes(), 6, mtime=0)


def design() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    ids = rng.permutation(PICTURES) + 1.0
    own = [np.r_[ids[:SHARED], ids[SHARED + 8 * s : SHARED + 8 * s + 8]] for s in range(8)]
    order = rng.permutation(np.repeat(np.arange(OWN), 3)) + 1.0
    return {
        "masterordering": order[None],
        "subjectim": np.stack(own),
        "sharedix": ids[None, :SHARED],
    }


def mat(packed: bool, **changed: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, design() | changed, do_compression=packed)
    return buffer.getvalue()


def table() -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    trials = [f"subject{s}_rep{m}" for s in range(1, 9) for m in range(3)]
    writer.writerow(["", "cocoId", "cocoSplit", "cropBox", "nsdId", "shared1000", *trials])
    for i in range(PICTURES):
        split = "val2017" if i % 9 == 0 else "train2017"
        writer.writerow([i, 900 + 3 * i, split, "(0, 0)", i, i < SHARED, *[(i * 7) % TRIALS] * 24])
    return text.getvalue().encode()


def coco() -> bytes:
    entries = [
        {"image_id": 900 + 3 * i, "id": 10 * i + k, "caption": f"a thing {i} {k}"}
        for i in range(6)
        for k in range(2)
    ]
    return json.dumps({"info": {}, "annotations": entries}).encode()


def prepared() -> bytes:
    rng = np.random.default_rng(5)
    return hdf5(
        betas_train=rng.standard_normal((6, 4), dtype=np.float32), nsd_id_train=np.arange(6) + 50,
        betas_test=rng.standard_normal((3, 4), dtype=np.float32), nsd_id_test=np.array([2, 4, 9]),
        stream=np.ones(4, np.int8), xyz=np.ones((4, 3), np.int32),
    )  # fmt: skip


# --- how they are read --------------------------------------------------------------------------------


def read_betas(path: Path) -> list[np.ndarray]:
    nsd = NSD(path.parents[5])
    trials = Trials(np.ones(750, int), np.arange(750), np.arange(750))
    ones = np.ones(len(XYZ), np.int16)
    found = nsd_checks.Selection(trials, np.arange(750) < 50, XYZ, ones, ones, AFFINE, SHAPE)
    nsd_checks.check_session(nsd, 1, 1, found)
    return [nsd.betas(1, 1, XYZ)]


def read_captions(path: Path) -> list[np.ndarray]:
    wanted = {900 + 3 * i: i for i in range(6)}
    found = nsd_tables.read_captions(path, wanted)
    if not all(found.values()):
        raise DataError("as NSD.captions")
    return [np.array(["\n".join(found[key]) for key in sorted(found)])]


def read_labels(path: Path) -> list[np.ndarray]:
    labels = nsd_tables.read_labels(path)
    nsd_checks.check_streams(path, labels, STREAMS)
    return [np.array([labels[name] for name in STREAMS])]


def read_table(path: Path) -> list[np.ndarray]:
    info = nsd_tables.read_stim_info(path)
    return [info.coco_id, info.split, info.shared, info.trials]


def read_prepared(path: Path) -> list[np.ndarray]:
    names = ("betas_train", "betas_test", "nsd_id_train", "nsd_id_test", "stream", "xyz")
    with open_file(path, "prepare", names) as file:
        return [file[name][:] for name in names]


def whole_design(found: list[np.ndarray]) -> bool:
    order, pictures, shared = found
    return (
        all(
            len(set(row)) == OWN and set(row[:SHARED]) == set(shared[0])
            for row in pictures.tolist()
        )
        and pictures.min() >= 1
        and pictures.max() <= PICTURES
        and (np.bincount(order[0], minlength=OWN + 1)[1:] == 3).all()
    )


def kinds() -> list[Kind]:
    rng = np.random.default_rng(0)
    betas = rng.integers(-900, 900, (*SHAPE, 750)).astype(np.int16)
    labels = rng.integers(-1, 8, SHAPE).astype(np.int16)
    layer = (1 + rng.random((30, 1, 1, 3)) * 2).astype(np.float32)
    index = rng.integers(1, 31, (40, 1, 1)).astype(np.float32)
    ctab = "0 Unknown\n" + "".join(f"{k} {name}\n" for k, name in enumerate(STREAMS, 1))
    brick = rng.integers(1, 256, (20, 8, 8, 3)).astype(np.uint8)
    root = f"{FUNC}/roi/streams.nii.gz"

    def read_design(path: Path) -> list[np.ndarray]:
        return list(nsd_tables.read_design(path).values())

    def read_stimuli(path: Path) -> list[np.ndarray]:
        return [NSD(path.parents[3]).pictures([3, 1, 19])]

    return [
        Kind(f"{BETAS}/betas_session01.hdf5", hdf5(betas=betas.T), read_betas, False),
        Kind(f"{BETAS}/betas_session01.nii.gz", image(betas), read_betas, True),
        Kind(root, image(labels), lambda p: list(NSD(p.parents[5]).roi(1)), True),
        Kind(f"{BETAS}/ncsnr.nii.gz", image(rng.random(SHAPE).astype(np.float32)),
             lambda p: [NSD(p.parents[5]).volume(1, "ncsnr")], True),
        Kind("layer.mgz", image(layer, True), lambda p: [read_layer(p)], True),
        Kind("index.mgz", image(index, True), lambda p: [read_index(p, 30)], True,
             lambda found: found[0].min() >= 0 and found[0].max() < 30),
        Kind(f"{EXPERIMENT}/packed.mat", mat(True), read_design, True, whole_design),
        Kind(f"{EXPERIMENT}/plain.mat", mat(False), read_design, False, whole_design),
        Kind(f"{EXPERIMENT}/info.csv", table(), read_table, False,
             lambda found: len(set(found[0].tolist())) == PICTURES and found[3].max() <= nsd_tables.TRIALS),
        Kind("captions_train2017.json", coco(), read_captions, False, lambda found: all(map(len, found[0]))),
        Kind("streams.mgz.ctab", ctab.encode(), read_labels, False),
        Kind("nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5", hdf5(imgBrick=brick), read_stimuli, False,
             lambda found: found[0].any((1, 2, 3)).all()),
        Kind("prepare/subj01.h5", prepared(), read_prepared, False,
             lambda found: all(np.isfinite(a).all() for a in found)),
    ]  # fmt: skip


# --- a process that reads -----------------------------------------------------------------------------


def serve(pipe: Any, root: Path, every: list[Kind]) -> None:
    """Put what comes where its kind lies and read it, until the pipe ends."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    while True:
        try:
            number, content = pipe.recv()
        except EOFError:
            return
        kind = every[number]
        path = root / str(number) / kind.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        try:
            pipe.send(("read", kind.read(path)))
        except DataError as error:
            pipe.send(("refused", str(error)))
        except BaseException:
            pipe.send(("other", traceback.format_exc()))


class Reader:
    """The process, begun anew where it died."""

    def __init__(self, root: Path, every: list[Kind]):
        self.root, self.every = root, every
        self.begin()

    def begin(self) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, other = context.Pipe()
        self.process = context.Process(
            target=serve, args=(other, self.root, self.every), daemon=True
        )
        self.process.start()
        other.close()

    def end(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()

    def ask(self, number: int, content: bytes) -> tuple[str, Any]:
        try:
            self.pipe.send((number, content))
            if self.pipe.poll(SECONDS):
                return self.pipe.recv()
            how = f"hangs for {SECONDS} s"
        except (EOFError, OSError):
            self.process.join(5)
            how = f"dies, exit code {self.process.exitcode}"
        self.end()
        self.begin()
        return "other", how


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("PICTURES", PICTURES),
            ("OWN", OWN),
            ("SHARED", SHARED),
            ("TRIALS", TRIALS),
        ):
            patch.setattr(nsd_tables, name, value)
        patch.setattr(nsd_module, "PICTURE_SHAPE", (8, 8, 3))
        found = Reader(tmp_path_factory.mktemp("fuzz"), kinds())
        yield found
        found.end()


def check(reader: Reader, number: int, content: bytes, truth: list[np.ndarray]) -> str:
    kind = reader.every[number]
    how, found = reader.ask(number, content)
    assert how != "other", f"{kind.name}: {found}"
    if how == "refused":
        assert "\n" not in found
        return how
    same = all(
        a.dtype.kind == b.dtype.kind and a.shape == b.shape
        for a, b in zip(found, truth, strict=True)
    )
    assert same, f"{kind.name}: {[a.shape for a in found]}, expected {[a.shape for a in truth]}"
    assert kind.holds(found), kind.name
    equal = all(
        np.array_equal(a, b, a.dtype.kind == "f") for a, b in zip(found, truth, strict=True)
    )
    assert equal or not kind.checked, f"{kind.name}: other numbers, though its check sum tells"
    return how


# --- damage -------------------------------------------------------------------------------------------

PLACE = st.one_of(
    st.floats(0, 1, exclude_max=True), st.integers(0, 600)
)  # of all, or near the head
DAMAGE = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), PLACE, st.integers(0, 7)),
        st.tuples(st.just("set"), PLACE, st.sampled_from([b"\xff" * 4, b"\xff" * 8, b"\x7f\xff", b"\x80"])),
        st.tuples(st.just("cut"), PLACE, st.none()),
        st.tuples(st.just("insert"), PLACE, st.binary(min_size=1, max_size=9)),
        st.tuples(st.just("delete"), PLACE, st.integers(1, 40)),
        st.tuples(st.just("zero"), PLACE, st.integers(1, 400)),
        st.tuples(st.just("swap"), PLACE, PLACE),
    ),
    min_size=1,
    max_size=3,
)  # fmt: skip


def spoil(content: bytes, damage: list[tuple[str, Any, Any]]) -> bytes:
    def where(place: float | int, text: bytearray) -> int:
        at = int(place * len(text)) if isinstance(place, float) else place
        return min(at, max(0, len(text) - 1))

    text = bytearray(content)
    for what, place, more in damage:
        at = where(place, text)
        if what == "flip" and text:
            text[at] ^= 1 << more
        elif what == "set":
            text[at : at + len(more)] = more[: len(text) - at]
        elif what == "cut":
            del text[at:]
        elif what == "insert":
            text[at:at] = more
        elif what == "delete":
            del text[at : at + more]
        elif what == "zero":
            text[at : at + more] = bytes(len(text[at : at + more]))
        elif what == "swap" and text:
            to = where(more, text)
            n = min(16, abs(at - to))
            text[at : at + n], text[to : to + n] = text[to : to + n], text[at : at + n]
    return bytes(text)


@pytest.mark.parametrize("number", range(13))
def test_damaged_files_are_refused_or_read_as_they_were(reader, number):
    kind = reader.every[number]
    how, truth = reader.ask(number, kind.content)
    assert how == "read", truth
    seen: list[str] = []

    @settings(SAME, max_examples=200)
    @given(DAMAGE)
    def damaged(damage):
        seen.append(check(reader, number, spoil(kind.content, damage), truth))

    damaged()
    assert seen.count("refused") > 5  # or there was no damage


NUMBERS = st.sampled_from(
    [-1.0, 0.0, 0.5, np.nan, np.inf, -np.inf, 2.0**40, 1.0, 12.0, 13.0, 68.0, 69.0]
)
DTYPES = ["i1", "i2", "u2", "i4", "i8", "f4", "f8", "c8", ">i2", "S3", "?"]


@settings(SAME, max_examples=150)
@given(
    st.sampled_from(["masterordering", "subjectim", "sharedix"]),
    st.integers(0, 95),
    NUMBERS,
    st.booleans(),
)
def test_a_design_with_another_number_is_refused_or_sound(reader, name, at, value, packed):
    values = design()[name].copy()
    values.flat[at % values.size] = value
    number = 6 if packed else 7
    truth = reader.ask(number, reader.every[number].content)[1]
    how, found = reader.ask(number, mat(packed, **{name: values}))
    assert how != "other", found
    if how == "read":
        assert whole_design(found)
        assert [a.shape for a in found] == [a.shape for a in truth]


@settings(SAME, max_examples=150)
@given(
    st.sampled_from([0, 2, 3, 11]), st.sampled_from(DTYPES),
    st.lists(st.integers(1, 8), min_size=1, max_size=5), st.booleans(),
)  # fmt: skip
def test_another_dtype_or_shape_is_refused(reader, number, dtype, shape, right):
    """Of the right shape, or any; only the file's own dtype and shape may pass."""
    own = {0: (750, *SHAPE[::-1]), 2: SHAPE, 3: SHAPE, 11: (20, 8, 8, 3)}[number]
    values = np.ones(own if right else shape).astype(dtype)
    if number in (0, 11):
        name = "betas" if number == 0 else "imgBrick"
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            file[name] = values
        content = buffer.getvalue()
    else:
        try:
            content = image(values)
        except (nib.spatialimages.HeaderDataError, ValueError, TypeError):
            return  # NIfTI has no such dtype
    how, found = reader.ask(number, content)
    assert how != "other", found
    if how == "read" and number == 0:
        assert values.dtype.newbyteorder("=") == np.int16
        assert values.shape == own
    elif how == "read" and number == 11:
        assert values.dtype == np.uint8
        assert values.shape[1:] == own[1:]
    elif how == "read":
        assert values.dtype.kind in "iuf"
        assert found[0].shape == values.shape
        assert values.ndim == 3
