"""Settings, site files, locks, models' configurations and a run's records as chance writes them.

Each is read, or refused by one of our errors: never another exception, and never a value out of its range.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsdcap import architectures, config, jobs, miniature, model_files, site, status, weights
from nsdcap.cells import Ledger
from nsdcap.errors import NsdcapError
from nsdcap.paths import Cell, artefact, sidecar, write_json
from nsdcap.preflight import write_settings
from nsdcap.ranges import CHOICES, RANGES
from nsdcap.typed_toml import to_toml


def times(count: int):
    """So many cases, the same ones each time, and no folder of examples."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=checks
    )  # fmt: skip


TEXT = st.text(max_size=12)
NUMBER = st.one_of(
    st.integers(-(10**30), 10**30), st.integers(-2, 60), st.floats(), st.floats(0, 2), st.booleans()
)
SCALAR = st.one_of(NUMBER, TEXT, st.sampled_from([w for some in CHOICES.values() for w in some]))
VALUE = st.one_of(SCALAR, st.lists(SCALAR, max_size=4), st.lists(st.sampled_from(config.STREAMS)))
SECTIONS = [f.name for f in fields(config.Config) if is_dataclass(f.default_factory)]
KEYS = sorted(
    [f"{s}.{f.name}" for s in SECTIONS for f in fields(getattr(config.Config(), s))] + ["seed", "preset"]
)  # fmt: skip
JSON = st.recursive(
    st.one_of(st.none(), NUMBER.filter(lambda x: x == x and abs(x) != math.inf), TEXT),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def near(draw, keys=KEYS):
    """A key that is known, or one letter from it."""
    key = draw(st.sampled_from(keys))
    if draw(st.integers(0, 9)):
        return key
    place = draw(st.integers(0, len(key)))
    return (
        key[:place] + draw(st.sampled_from(["", "x", ".", " ", "_", "\u00e9"])) + key[place + 1 :]
    )


@st.composite
def mutated(draw, text: bytes):
    """A valid file in which some bytes are cut out, doubled or others."""
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(text)))
        length = draw(st.sampled_from([0, 1, 1, 2, 8, 40]))
        put = draw(
            st.one_of(st.binary(max_size=3), st.sampled_from([b"", b"-", b"0", b"[", b'"', b"9e9"]))
        )
        text = text[:place] + put + text[place + length :]
    return text


def is_sound(found: config.Config, folder: Path) -> None:
    """What was read is within its ranges, and comes back from its own file."""
    for name, (low, high) in RANGES.items():
        section, _, key = name.rpartition(".")
        value = getattr(getattr(found, section) if section else found, key)
        for one in value if isinstance(value, tuple) else (value,):
            assert not isinstance(one, bool)
            assert low <= one <= high, name
    for name, allowed in CHOICES.items():
        section, key = name.split(".")
        assert getattr(getattr(found, section), key) in allowed
    for names in (found.roi.z_v, found.roi.c, found.roi.z):
        assert names
        assert set(names) <= set(config.STREAMS)
        assert len(set(names)) == len(names)
    assert found.caption.min_length <= found.caption.max_length
    assert len(set(found.data.subjects)) == len(found.data.subjects) > 0
    file = folder / "again.toml"
    file.write_text(config.dump(found), encoding="utf-8")
    assert config.load(file) == found


def one_line(error: NsdcapError) -> None:
    said = str(error)
    assert said.strip()
    assert len(said) < 2000
    assert all(sign.isprintable() or sign in "\u00a0\u3000" for sign in said), repr(said)


def loaded(folder: Path, content: bytes = b"", given: tuple[str, ...] = ()) -> bool:
    file = folder / "given.toml"
    file.write_bytes(content)
    try:
        found = config.load(file, settings=given)
    except NsdcapError as error:
        one_line(error)
        return False
    is_sound(found, folder)
    return True


@times(250)
@given(pairs=st.lists(st.tuples(near(), VALUE), min_size=1, max_size=3))
def test_values_of_any_type_at_known_keys_of_a_file(tmp_path, pairs):
    text = "\n".join(f"{key} = {to_toml(value)}" for key, value in pairs)
    loaded(tmp_path, text.encode("utf-8", "surrogatepass"))


@times(250)
@given(
    st.lists(st.one_of(st.tuples(near(), VALUE.map(str)), st.tuples(near(), TEXT)), max_size=3),
    TEXT,
)
def test_options_of_settings(tmp_path_factory, pairs, loose):
    folder = tmp_path_factory.getbasetemp()
    loaded(folder, given=tuple(f"{key}={value}" for key, value in pairs))
    loaded(folder, given=(loose,))


@times(120)
@given(
    content=st.one_of(
        st.binary(max_size=60), TEXT.map(lambda t: t.encode("utf-8", "surrogatepass"))
    )
)
def test_bytes_as_a_file(tmp_path, content):
    loaded(tmp_path, content)
    try:
        site.load(tmp_path / "given.toml")
    except NsdcapError as error:
        one_line(error)


WHOLE = config.dump(config.load(preset="released")).encode()


@times(200)
@given(content=mutated(WHOLE))
def test_a_damaged_file_of_settings(tmp_path, content):
    loaded(tmp_path, content)


SITE = (Path(site.__file__).resolve().parents[1] / "slurm/example.toml").read_text().splitlines()
SITE_FILE = "\n".join(x[2:] if x.startswith("# ") and " = " in x else x for x in SITE).encode()
SITE_KEYS = [f.name for f in fields(site.Site)] + [
    f"defaults.{f.name}" for f in fields(site.Resources)
]


@times(150)
@given(
    content=st.one_of(
        mutated(SITE_FILE),
        st.tuples(near(SITE_KEYS), VALUE).map(
            lambda p: f"{p[0]} = {to_toml(p[1])}".encode("utf-8", "ignore")
        ),
    )
)
def test_site_files(tmp_path, content):
    file = tmp_path / "site.toml"
    file.write_bytes(content)
    try:
        found = site.load(file)
    except NsdcapError as error:
        one_line(error)
        return
    assert min(found.max_array, found.retries, found.timeouts) >= 0
    for table in (found.defaults, *found.stages.values()):
        assert all(table[key] >= site.LEAST[key] for key in table.keys() & site.LEAST.keys())


def lock_of(tmp_path: Path) -> bytes:
    row = {
        "repo": "a/b",
        "revision": "0" * 40,
        "file": "x",
        "size": 3,
        "sha256": "0" * 64,
        "licence": "m",
    }
    return json.dumps({"format": 1, "files": {"clip/x": row, "blip/y": row}}).encode()


@times(100)
@given(data=st.data())
def test_locks_of_weights(tmp_path, data):
    content = data.draw(
        st.one_of(mutated(lock_of(tmp_path)), JSON.map(lambda x: json.dumps(x).encode()))
    )
    (tmp_path / weights.LOCK).write_bytes(content)
    try:
        found = weights.read_lock(tmp_path)
    except NsdcapError as error:
        one_line(error)
        return
    for name, entry in found.items():
        assert not Path(name).is_absolute()
        assert ".." not in Path(name).parts
        assert entry.size >= 0


CONFIGS = {
    name: (miniature.MODELS / name / "config.json").read_bytes()
    for name in ("blip", "clip", "diffusion/unet", "diffusion/vae", "diffusion/text_encoder")
}
SHAPES = {"blip": architectures.blip, "clip": architectures.clip, "diffusion/unet": architectures.unet,
          "diffusion/vae": architectures.vae, "diffusion/text_encoder": architectures.clip_text}  # fmt: skip


@times(200)
@given(data=st.data(), name=st.sampled_from(sorted(CONFIGS)))
def test_models_configurations(tmp_path, data, name):
    if data.draw(st.booleans()):
        content = data.draw(mutated(CONFIGS[name]))
    else:
        whole = json.loads(CONFIGS[name])
        inner = [part for part in whole.values() if isinstance(part, dict)]
        part = data.draw(st.sampled_from([whole, *inner]))
        part[data.draw(st.sampled_from(sorted(part)))] = data.draw(JSON)
        content = json.dumps(whole).encode()
    file = tmp_path / "config.json"
    file.write_bytes(content)
    try:
        found = model_files.read_configuration("models.x", file)
    except NsdcapError as error:
        one_line(error)
        return
    shapes = SHAPES[name](found)
    assert all(size > 0 for shape in shapes.values() for size in shape)


# --- a run on disk --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tiny_tree, tmp_path_factory):
    """A run whose cells stand as done, with a record of the jobs that made them."""
    out = tmp_path_factory.mktemp("fuzz") / "out"
    places = (
        *miniature.places(tiny_tree),
        "data.sessions=2",
        "data.subjects=[1]",
        "encode.layers=[3]",
    )
    write_settings(config.load(settings=places), out)
    ledger = Ledger(config.load(settings=places), out)
    cells = [Cell("prepare", 1), Cell("decode", 1)]
    for cell in cells:
        path = artefact(out, cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        write_json(sidecar(out, cell), {"cell": str(cell), "depends": ledger.depends(cell)})
    signed = tuple(ledger.depends(cell)["signature"] for cell in cells)
    ones, none = (1,) * len(cells), (0,) * len(cells)
    jobs.write(
        out,
        jobs.Array("nsdcap-x", "prepare", tuple(cells), "41", False, 1.0, ones, none, none, signed),
    )
    return out


def standing(out: Path, capsys) -> dict[str, str]:
    """Each cell's state by the program; none where it ends with an error."""
    code = status.main([str(out), "--json"])
    told = capsys.readouterr()
    if code in (2, 65):
        assert told.err.startswith("nsdcap.status: ")
        assert len(told.err.strip().splitlines()) == 1
        return {}
    assert code == 75
    return {cell["cell"]: cell["state"] for cell in json.loads(told.out)["cells"]}


@times(100)
@given(data=st.data())
def test_status_of_a_run_with_a_damaged_sidecar(finished, capsys, monkeypatch, data):
    monkeypatch.setenv("PATH", "")
    file = sidecar(finished, Cell("decode", 1))
    whole = file.read_bytes()
    depends = json.loads(whole)["depends"]
    try:
        content = data.draw(st.one_of(
            mutated(whole), JSON.map(lambda x: json.dumps(x).encode()), st.binary(max_size=40),
            st.tuples(st.sampled_from(sorted(depends)), JSON).map(
                lambda p: json.dumps({"depends": {**depends, p[0]: p[1], "signature": "x"}}).encode()
            ),
        ))  # fmt: skip
        file.write_bytes(content)
        found = standing(finished, capsys)
        assert found["prepare subj01"] == "done"
        if depends["signature"].encode() not in content:
            assert found["decode subj01"] != "done"
    finally:
        file.write_bytes(whole)


@times(100)
@given(data=st.data())
def test_status_of_a_run_with_a_damaged_record_of_jobs(finished, capsys, monkeypatch, data):
    monkeypatch.setenv("PATH", "")
    (file,) = (finished / "jobs").glob("*.json")
    whole = file.read_bytes()
    row = json.loads(whole)
    try:
        file.write_bytes(data.draw(st.one_of(
            mutated(whole), JSON.map(lambda x: json.dumps(x).encode()),
            st.tuples(st.sampled_from(sorted(row)), JSON).map(
                lambda p: json.dumps({**row, p[0]: p[1]}).encode()
            ),
        )))  # fmt: skip
        found = standing(finished, capsys)
        assert not found or found["prepare subj01"] == "done"
    finally:
        file.write_bytes(whole)
