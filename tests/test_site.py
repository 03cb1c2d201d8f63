"""Site files: what is read, what is refused, and what tasks ask for in the end."""

from pathlib import Path

import pytest

from nsdcap import site
from nsdcap.cost import Cost
from nsdcap.errors import UsageError
from nsdcap.stages import STAGES

EXAMPLE = Path(site.__file__).resolve().parents[1] / "slurm/example.toml"
SMALL = Cost("small", 60.0, 1.0, 1e8, 1e6, False, 2)
LARGE = Cost("large", 7200.0, 1e15, 20e9, 1e9, False, 16)
ON_GPU = Cost("pictures", 7200.0, 1e17, 20e9, 1e9, True, 4)


@pytest.fixture
def write(tmp_path):
    """Load a site file of this text."""

    def load(text: str) -> site.Site:
        path = tmp_path / "site.toml"
        path.write_text(text)
        return site.load(path)

    return load


def test_the_example_is_accepted_as_it_is_and_uncommented(write):
    given = site.load(EXAMPLE)
    assert given.nv
    assert not given.image
    for stage in STAGES:  # what it asks for is what nothing at all asks for
        assert site.resources(stage, [SMALL], given) == site.resources(stage, [SMALL], site.Site())
    lines = EXAMPLE.read_text().splitlines()
    every = [line[2:] if line.startswith("# ") and " = " in line else line for line in lines]
    whole = write("\n".join(every))
    assert whole.image.endswith(".sif")
    assert whole.defaults["extra"]["reservation"] == "nsd"
    assert whole.stages["reconstruct"]["time_minutes"] == 1440
    named = "\n".join(every)
    for key in (*site.Site.__dataclass_fields__, *site.Resources.__dataclass_fields__):
        assert f"{key} = " in named or f"[{key}" in named, key


def test_an_empty_file_is_the_defaults(write):
    assert write("") == site.Site()
    assert site.Site() == site.Site(
        nv=True, max_array=0, retries=3, timeouts=8, signal_seconds=120, image="", cache=""
    )


def test_paths_and_binds(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    given = write('image = "images/a b.sif"\ncache = "~/hf"\nbinds = ["~/x:/y:ro", "/p q"]')
    assert given.image == str(tmp_path / "images/a b.sif")
    assert given.cache == "/home/someone/hf"
    assert given.binds == ("/home/someone/x:/y:ro", "/p q")
    assert write('setup = "module load x"').setup == ("module load x",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("imag = 'x.sif'", "unknown setting imag: did you mean image?"),
        ("[defaults]\npartion = 'gpu'", "did you mean defaults.partition?"),
        ("[stages.encod]\ncpus = 2", "unknown setting stages.encod: did you mean stages.encode?"),
        ("[stages.encode]\ncpu = 2", "did you mean stages.encode.cpus?"),
        ("stages = 3", "setting stages: found 3, expected a section"),
        ("[stages]\nencode = 3", "setting stages.encode: found 3"),
        ("retries = 'three'", "setting retries: found 'three', expected int"),
        ("nv = 1", "setting nv: found 1, expected bool"),
        ("[defaults]\nmemory_gb = 1.5", "defaults.memory_gb: found 1.5, expected int"),
        ("[defaults]\nmemory_gb = 0", "defaults.memory_gb: found 0, expected at least 1"),
        ("[stages.decode]\ngpus = -1", "stages.decode.gpus: found -1, expected at least 0"),
        ("[stages.decode]\ntime_minutes = 2", "more than the 120 s of signal_seconds"),
        ("max_array = -1", "max_array: found -1"),
        ("signal_seconds = 0", "signal_seconds: found 0"),
        ("[defaults]\ngpus = 1\ngres = 'gpu:1'", "give one of them"),
        ("[defaults]\ngres = 'gpu: 1'", "defaults.gres: found 'gpu: 1'"),
        ("[defaults.extra]\nnice = 1.5", "defaults.extra.nice: found 1.5, expected str or int or bool"),
        ("[defaults.extra]\n'--nice' = 1", "without its dashes"),
        ("[defaults.extra]\nmem_per_cpu = 1", "without its dashes"),
        ("[defaults.extra]\ntime = 1", "a key of its own, time_minutes"),
        ("[defaults.extra]\ndependency = 'x'", "the launcher itself sets it"),
        ("[defaults.extra]\nexclusive = false", "leave the option out"),
        ('[defaults]\npartition = "a\\n#SBATCH --x"', "expected one line of text"),
        ('[defaults.extra]\ncomment = "a\\nb"', "defaults.extra.comment"),
        ("binds = ['relative']", 'binds: found \'relative\', expected "/source"'),
        ("binds = ['/a:b']", "binds: found '/a:b'"),
        ("binds = ['/a:/b:rx']", "binds: found '/a:/b:rx'"),
        ("image = 'oras://host/image'", "pull it to a file first"),
        ("a = = b", "not TOML"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_error_with_its_name(write, tmp_path, text, words):
    with pytest.raises(UsageError) as error:
        write(text)
    said = str(error.value)
    assert words in said
    assert str(tmp_path / "site.toml") in said
    assert len(said.splitlines()) == 1


def test_a_missing_file(tmp_path):
    with pytest.raises(UsageError, match=r"none\.toml: cannot be read"):
        site.load(tmp_path / "none.toml")


def test_the_formula_has_margins_and_bounds():
    asked = site.resources("decode", [SMALL, LARGE], site.Site())
    assert (asked.memory_gb, asked.time_minutes, asked.cpus, asked.gpus) == (30, 360, 16, 0)
    least = site.resources("prepare", [SMALL], site.Site())
    assert (least.memory_gb, least.time_minutes, least.cpus) == (4, 30, 2)
    assert site.resources("features", [ON_GPU], site.Site()).gpus == 1
    for hours, minutes in ((10, 30 * 60), (20, 48 * 60), (47, 48 * 60), (60, 60 * 60)):
        long = Cost("long", hours * 3600.0, 1.0, 1e9, 1e6, True, 4)
        assert site.resources("reconstruct", [long], site.Site()).time_minutes == minutes


def test_stage_over_defaults_over_formula(write):
    given = write(
        "[defaults]\npartition = 'long'\nmemory_gb = 8\nparallel = 5\nextra = {nice = 1, exclusive = true}\n"
        "[stages.encode]\nmemory_gb = 12\nextra = {nice = 2}\n"
    )
    asked = site.resources("encode", [LARGE], given)
    assert (asked.partition, asked.memory_gb, asked.parallel) == ("long", 12, 5)
    assert (asked.time_minutes, asked.cpus) == (360, 16)
    assert asked.extra == {"nice": 2, "exclusive": True}
    other = site.resources("kernel", [LARGE], given)
    assert (other.memory_gb, other.extra) == (8, {"nice": 1, "exclusive": True})
    assert given.stages["encode"]["extra"] == {"nice": 2}  # and nothing was changed in it


def test_fewer_cores_take_longer(write):
    few = site.resources("decode", [LARGE], write("[defaults]\ncpus = 4"))
    assert (few.cpus, few.time_minutes) == (4, 4 * 360)
    more = site.resources("decode", [LARGE], write("[defaults]\ncpus = 64"))
    assert (more.cpus, more.time_minutes) == (64, 360)
    gpu = site.resources("caption", [ON_GPU], write("[defaults]\ncpus = 2"))
    assert gpu.time_minutes == 360


def test_gpus_by_number_and_by_kind(write):
    kind = write("[defaults]\ngres = 'gpu:a100:2'\n[stages.caption]\ngpus = 1\n")
    asked = site.resources("features", [ON_GPU], kind)
    assert (asked.gres, asked.gpus) == ("gpu:a100:2", 2)
    assert site.resources("prepare", [SMALL], kind).gres == ""
    caption = site.resources("caption", [ON_GPU], kind)
    assert (caption.gres, caption.gpus) == ("", 1)
    own = write("[defaults]\ngpus = 2\n[stages.decode]\ngres = 'lscratch:10,gpu:h100'\n")
    asked = site.resources("decode", [LARGE], own)
    assert (asked.gres, asked.gpus) == ("lscratch:10,gpu:h100", 1)
    none = site.resources("features", [ON_GPU], write("[stages.features]\ngpus = 0"))
    assert none.gpus == 0


@pytest.mark.parametrize("text", ["", "[stages.decode]\nmemory_gb = 30\ntime_minutes = 360\n"])
def test_what_ran_out_is_doubled_each_time(write, text):
    given = write(text)

    def asked(memory: int, time: int) -> tuple[int, int]:
        found = site.resources("decode", [LARGE], given, memory, time)
        return found.memory_gb, found.time_minutes

    assert asked(0, 0) == (30, 360)
    assert asked(1, 0) == (60, 360)
    assert asked(2, 0) == (120, 360)
    assert asked(1, 2) == (60, 1440)
