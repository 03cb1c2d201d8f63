"""Settings: what is read, what is refused, and that what is written is read back."""

import pytest

from nsdcap import config
from nsdcap.errors import UsageError


def test_dump_reads_back_equal(tmp_path):
    for preset in config.PRESETS:
        settings = config.load(preset=preset, settings=("seed=7", "data.sessions=40"))
        file = tmp_path / f"{preset}.toml"
        file.write_text(config.dump(settings))
        assert config.load(file) == settings


def test_settings_stand_over_file_over_preset(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('preset = "released"\n[data]\nsessions = 40\n[decode]\ngain = "cv"\n')
    settings = config.load(file, settings=("data.sessions=30",))
    assert (settings.data.sessions, settings.decode.gain, settings.data.scale) == (30, "cv", False)
    assert settings.roi.c == ("ventral",)
    assert config.load(file, preset="paper").data.scale is True


def test_bare_words_and_lists_in_set():
    settings = config.load(settings=("decode.gain=cv", "data.subjects=[2]", "roi.z=early"))
    assert settings.decode.gain == "cv"
    assert settings.data.subjects == (2,)
    assert settings.roi.z == ("early",)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("decode.gian=cv", "did you mean decode.gain"),
        ("decod.gain=cv", "did you mean decode"),
        ("data.sessions=many", "expected int"),
        ("data.scale=1", "expected bool"),
        ("seed=true", "expected int"),
        ("decode.gain=double", "one of none, cv"),
        ("data.subjects=[9]", "from 1 to 8"),
        ("data.subjects=[1, 1]", "each once"),
        ("data.subjects=[]", "from 1 to 8"),
        ("roi.z=[]", "expected some of"),
        ("roi.z_v=[\"V1\"]", "expected some of"),
        ("ridge.alphas=[-1.0]", "from 1e-20"),
        ("ridge.alphas=[]", "empty list"),
        ("ridge.folds=1", "from 2 to 1000"),
        ("reconstruct.strength=1.5", "from 0.001 to 1"),
        ("reconstruct.steps=1001", "from 1 to 1000"),
        ("reconstruct.guidance=nan", "found nan, expected a number"),
        ("models.device=gpu", "expected auto, cpu, cuda"),
        ("caption.max_length=4", "expected at least min_length, 5"),
        ("caption.repetition_penalty=0.0", "from 0.01 to 100"),
        ("reconstruct.strength=0.01", "of 50 steps takes 0; expected 1 to 50"),
        ("reconstruct.batch=0", "from 1 to"),
        ("models.dtype=half", "one of float32, bfloat16, float16"),
        ("reconstruct.start=late", "one of diffusers, released"),
        ("sessions", "section.key=value"),
        ("seed.x=1", "expected int"),
    ],
)  # fmt: skip
def test_bad_settings_say_what_is_expected(setting, words):
    with pytest.raises(UsageError, match=words):
        config.load(settings=(setting,))


def test_file_that_is_missing_or_no_toml(tmp_path):
    with pytest.raises(UsageError, match=r"c\.toml: cannot be read"):
        config.load(tmp_path / "c.toml")
    (tmp_path / "c.toml").write_text("a = = b")
    with pytest.raises(UsageError, match=r"c\.toml: not TOML"):
        config.load(tmp_path / "c.toml")


def test_released_start_needs_a_step_beyond():
    whole = ("reconstruct.strength=1.0",)
    assert config.load(settings=whole).reconstruct.strength == 1
    with pytest.raises(UsageError, match=r"takes 50; expected 1 to 49 .* 'released'"):
        config.load(preset="released", settings=whole)
