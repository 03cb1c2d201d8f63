"""What a user can get wrong in options and settings: one clear error, before anything is written."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_blip import originals_names, random_blip, write_vocabulary

from nsdcap import cancel, config, launch, miniature, plots, report, status
from nsdcap.headers import ENDS
from nsdcap.metrics import __main__ as metrics
from nsdcap.metrics.peers import BACKBONES
from nsdcap.miniature import __main__ as make_miniature
from nsdcap.ranges import RANGES
from nsdcap.rating import __main__ as rating

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("blip", "diffusion", "clip")


def prefetch():
    """hpc/prefetch.py, which is no module of the package."""
    spec = importlib.util.spec_from_file_location("prefetch_program", ROOT / "hpc/prefetch.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their types
    spec.loader.exec_module(module)
    return module


def lying_in(folder: Path) -> dict[str, tuple]:
    """All that is below a folder: sizes and times of writing."""
    found = {}
    for path in folder.rglob("*"):
        stat = path.lstat()
        found[str(path)] = (stat.st_size, stat.st_mtime_ns, path.is_dir())
    return found


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """Run a command that is to be refused: by this code, in one line that holds these words."""

    def run(main, arguments, code, *words) -> str:
        before = lying_in(tmp_path)
        capsys.readouterr()
        try:
            with monkeypatch.context() as patch:  # one that is not refused ends at once, and fails
                patch.setattr("nsdcap.inline.run_inline", lambda *words: 99)
                patch.setattr("nsdcap.launch.run_local", lambda *words: 99)
                found = main([str(word) for word in arguments])
            parsed = True
        except SystemExit as stop:
            found, parsed = stop.code, False
        said = capsys.readouterr().err.strip()
        assert found == code, said
        assert "Traceback" not in said
        if parsed:
            assert len(said.splitlines()) == 1, said
            assert said.startswith(("nsdcap", "prefetch: ", "error: ")), said
            assert len(said) < 1500
        for word in words:
            assert word in said, said
        assert lying_in(tmp_path) == before
        return said

    return run


@pytest.fixture
def arguments(tiny_tree, tmp_path):
    """Of a run that would begin."""
    words = ["--nsd-root", str(tiny_tree), "--out", str(tmp_path / "out")]
    settings = [f"models.{name}={miniature.MODELS / name}" for name in MODELS]
    for setting in (*settings, "data.subjects=1", "data.sessions=2", "models.picture_size=64"):
        words += ["--set", setting]
    return words


# --- settings -------------------------------------------------------------------------------------

SETTINGS = [
    # a key or section that is none: the nearest is named
    ("decode.gian=cv", "unknown setting decode.gian: did you mean decode.gain?"),
    ("ridg.folds=3", "unknown setting ridg: did you mean ridge?"),
    ("folds=3", "unknown setting folds: known: preset, seed,"),
    ("data.x.y=3", "unknown setting data.x: known: nsd_root,"),
    ("a\nb=1", "unknown setting 'a\\nb'"),
    ("sessions", "--set sessions: expected section.key=value"),
    ("=3", "--set =3: expected section.key=value"),
    ("data..sessions=3", "expected section.key=value"),
    ("data=3", "setting data: found 3, expected a section"),
    # another type
    ("data.sessions='1'", "setting data.sessions: found '1', expected int"),
    ("data.sessions=1.0", "setting data.sessions: found 1.0, expected int"),
    ("data.sessions=true", "setting data.sessions: found True, expected int"),
    ("ridge.alphas=[true]", "setting ridge.alphas: found True, expected float"),
    ("ridge.alphas=['1']", "found '1', expected float"),
    ("ridge.alphas=[[1.0]]", "found [1.0], expected float"),
    ("data.scale=1", "found 1, expected bool"),
    ("data.scale='false'", "found 'false', expected bool"),
    ("models.blip=1", "setting models.blip: found 1, expected str"),
    ("models.blip=[]", "setting models.blip: found [], expected str"),
    ("caption.prompt=1979-05-27", "setting caption.prompt: found datetime.date(1979, 5, 27), expected str"),
    ("roi.z=[1]", "setting roi.z: found 1, expected str"),
    ("seed=1\nb = 2", "setting seed: found '1\\nb = 2', expected int"),
    ("seed=[[[[", "setting seed: found '[[[[', expected int"),
    ("seed=" + "[" * 9000, "setting seed: found '[[["),
    ("preset=[1]", "preset: found [1], expected one of paper, released"),
    ("preset=''", "preset: found '', expected one of paper, released"),
    # words
    ("models.dtype=half", "found 'half', expected one of float32, bfloat16, float16"),
    ("models.device=gpu", "expected auto, cpu, cuda, cuda:1"),
    ("ridge.device=cuda:1", "setting ridge.device: found 'cuda:1', expected auto, cpu, cuda"),
    ("data.betas=../x", "setting data.betas: found '../x', expected the name of a folder of NSD"),
    ("data.space=", "setting data.space: found '', expected the name of a folder of NSD"),
    # lists
    ("data.subjects=[]", "setting data.subjects: found an empty list"),
    ("data.subjects=[1, 2, 1]", "setting data.subjects: found 1 twice, expected numbers from 1 to 8"),
    ("roi.z_v=['early', 'early']", "setting roi.z_v: found early twice"),
    ("roi.c=[]", "setting roi.c: found an empty list, expected some of early,"),
    ("roi.c=V1", "setting roi.c: found 'V1', expected some of early,"),
    ("ridge.alphas=[]", "setting ridge.alphas: found an empty list"),
    ("ridge.alphas=[1, 1.0]", "setting ridge.alphas: found 1.0 twice"),
    ("encode.layers=[3, 3]", "setting encode.layers: found 3 twice"),
    ("encode.ratios=[]", "setting encode.ratios: found an empty list"),
    (f"encode.layers={list(range(1001))}", "setting encode.layers: found 1001 values, expected at most 1000"),
    # text
    ('caption.prompt="a\\u0000b"', "setting caption.prompt: found 'a\\x00b', which holds '\\x00'"),
    ('data.annotations="/a\\nb"', "which holds '\\n'; expected one line of text"),
    ("models.blip=/x/\udcff", "which holds '\\udcff'"),
    ("models.clip=" + "x" * 300, "setting models.clip: found a name of 300 bytes"),
    ("caption.prompt=" + "x" * 5000, "found 5000 letters, expected at most 4096"),
    ("models.clip=~no-such-user/clip", "of which there is no such home"),
    # together
    ("caption.max_length=4", "expected at least min_length, 5"),
    ("reconstruct.strength=0.01", "of 50 steps takes 0; expected 1 to 50"),
]  # fmt: skip


@pytest.mark.parametrize(("setting", "words"), SETTINGS, ids=range(len(SETTINGS)))
def test_settings(refused, arguments, setting, words):
    refused(launch.main, [*arguments, "--set", setting], 2, words)


@pytest.mark.parametrize("name", sorted(RANGES))
def test_every_number_has_a_range_and_its_ends_are_in_it(refused, arguments, name):
    low, high = RANGES[name]
    section, _, key = name.rpartition(".")
    usual = getattr(getattr(config.Config(), section) if section else config.Config(), key)
    many, one = isinstance(usual, tuple), usual[0] if usual and isinstance(usual, tuple) else usual
    whole = isinstance(one, int) or name == "encode.layers"
    beyond = [low - 1, high + 1, 10**30, -(10**30)] if whole else [low / 2 if low > 0 else 2 * low,
              2 * high, "1e300", "-1e300", "nan", "-nan", "inf", "-inf"]  # fmt: skip
    if low > 0:
        beyond += [0 if whole else 0.0, -1]
    for value in beyond:
        text = str(value) if isinstance(value, str) else repr(value)
        given = f"{name}={'[' + text + ']' if many else text}"
        refused(launch.main, [*arguments, "--set", given], 2, f"setting {name}: found ", "expected")
    others = {
        "caption.max_length": "caption.min_length=0",
        "caption.min_length": "caption.max_length=10000",
        "reconstruct.steps": "reconstruct.strength=1",
        "reconstruct.strength": "reconstruct.steps=1000",
    }
    for value in (int(low), int(high)) if whole else (low, high):
        more = (others[name],) if name in others else ()
        assert config.load(settings=(*more, f"{name}={[value] if many else value}"))


FILES = [
    (b"", None, ""),  # an empty file says nothing wrong: the next thing that is wrong is told
    (b"\xef\xbb\xbf[data]\nsessions = 2\n[ridge]\nfolds = 1\n", 2, "setting ridge.folds: found 1,"),
    (b"[data]\nsesions = 3\n", 2, "did you mean data.sessions?"),
    ('[caption]\nprompt = "ein Bild für"\n'.encode("latin-1"), 2, "line 2 is not UTF-8 (byte 0xfc)"),
    (b"\xff\xfe[\x00d\x00", 2, "line 1 is not UTF-8"),
    (b"a = = b", 2, "not TOML ("),
    (b"seed = 1\nseed = 2\n", 2, "not TOML ("),
    (b"seed = " + b"[" * 20000, 2, "not TOML (nested too deep)"),
    (b"seed = " + b"9" * 5000, 2, "not TOML ("),
    (b"\x00", 2, "not TOML ("),
    (b"# \n" * 400_000, 2, "found more than 1048576 bytes, expected settings"),
    (b'{"seed": 1}', 2, "not TOML ("),
    (b"[[data]]\nsessions = 2\n", 2, "setting data: found [{'sessions': 2}], expected a section"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "code", "words"), FILES, ids=range(len(FILES)))
def test_files_of_settings(refused, arguments, tmp_path, content, code, words):
    file = tmp_path / "c.toml"
    file.write_bytes(content)
    given = [*arguments, "--config", str(file), *([] if code else ["--subjects", "9"])]
    named = [f"--config {file}"] if "TOML" in words or "UTF-8" in words else []
    refused(launch.main, given, code or 2, words, *named)


def test_text_of_any_script_and_paths_with_odd_signs_come_back_as_they_were(tmp_path):
    odd = tmp_path / 'it\'s "NSD" $(x) \\n \u00a0ü 脳 😀'
    for text in ("ein Bild für 😀 脳", "\u00a0\u200b\u202e", "a\"b'c\\d", "=[]{}#"):
        dumped = config.dump(
            config.load(settings=(f"caption.prompt={json.dumps(text, ensure_ascii=False)}",))
        )
        (tmp_path / "c.toml").write_text(dumped, encoding="utf-8")
        assert config.load(tmp_path / "c.toml").caption.prompt == text
    settings = config.load(settings=tuple(miniature.places(odd)))
    assert settings.data.nsd_root == str(odd)


# --- options --------------------------------------------------------------------------------------

OPTIONS = [
    (["--stage", "decoding"], 2, "invalid choice: 'decoding'"),
    (["--subjects", "9"], 2, "setting data.subjects: found 9, expected numbers from 1 to 8"),
    (["--subjects", "1", "1"], 2, "setting data.subjects: found 1 twice"),
    (["--subjects", "one"], 2, "invalid int value: 'one'"),
    (["--subjects", "3"], 65, "subject 3 has no betas: there is no"),
    (["--layers", "7"], 65, "encode.layers: found [7], expected numbers from 0 (embeddings) to 6"),
    (["--layers", "-1"], 2, "setting encode.layers: found -1, expected numbers from 0"),
    (["--layers", "1", "1"], 2, "setting encode.layers: found 1 twice"),
    (["--preset", "fast"], 2, "invalid choice: 'fast'"),
    (["--jobs", "0"], 2, "--jobs: found 0, expected at least 1"),
    (["--jobs", "99999"], 2, "--jobs: found 99999, expected at least 1, at most 1024"),
    (["--processes", "-1"], 2, "--processes: found -1, expected at least 1"),
    (["--executor", "cloud"], 2, "invalid choice: 'cloud'"),
    (["--no-such-option"], 2, "unrecognized arguments: --no-such-option"),
    (["--config", "{}"], 2, "cannot be read (Is a directory)"),
    (["--config", "{}/no.toml"], 2, "no.toml: cannot be read (No such file or directory)"),
    (["--config", "x" * 300], 2, "--config: found a name of 300 bytes"),
    (["--config", "a\0b"], 2, "which holds '\\x00'"),
    (["--nsd-root", "{}/no"], 65, "no: found no folder nsddata/ there"),
    (["--nsd-root", "{}/file"], 65, "file: found no folder nsddata/ there"),
    (["--nsd-root", "{}/" + "x" * 256], 2, "--nsd-root: found a name of 256 bytes"),
    (["--set", "data.sessions=3"], 65, "subject 1 has no betas of session 3"),
    (["--out", "{}/file"], 2, "file: cannot be written"),
    (["--out", "{}/file/out"], 2, "out: cannot be written"),
    (["--out", "/proc/nsdcap"], 2, "--out /proc/nsdcap: "),
    (["--out", "{}/" + "x" * 300], 2, "--out: found a name of 300 bytes"),
    (["--out", "{}/a\nb"], 2, "which holds '\\n'"),
    (["--set", "ridge.folds=900"], 2, "setting ridge.folds: found 900, expected at most "),
    (["--set", "reconstruct.samples=1000", "--set", "reconstruct.size=4096"], 2,
     "TB (--dry-run lists them); free room, name a folder on another disk"),
    (["--image", "{}/no.sif", "--executor", "local"], 65, "no.sif: No such file or directory; build it"),
    (["--image", "{}", "--executor", "local"], 65, "Is a directory; build it"),
    (["--image", "{}/file", "--executor", "local"], 65, "file: not an Apptainer image (SIF)"),
    (["--image", "{}/cut.sif", "--executor", "local"], 65, "found 1000 bytes, expected 5128 by its header"),
    (["--image", "{}/short.sif", "--executor", "local"], 65, "found 60 bytes, expected 128 by its header"),
    (["--image", "oras://host/nsdcap:1", "--executor", "local"], 2, "pull it first"),
    (["--image", "{}/cut.sif"], 2, "add --executor local"),
    (["--executor", "slurm", "--site", "{}/no.toml"], 2, "no.toml: cannot be read"),
    (["--executor", "slurm", "--site", "{}"], 2, "cannot be read (Is a directory)"),
    (["--executor", "slurm", "--site", "{}/file"], 2, "file: not TOML"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "code", "words"), OPTIONS, ids=range(len(OPTIONS)))
def test_options(refused, arguments, tmp_path, more, code, words):
    (tmp_path / "file").write_text("no such thing " * 20)
    sif = bytes(32) + b"SIF_MAGIC\0" + bytes(70) + (1032).to_bytes(8, "little")
    whole = sif + (4096).to_bytes(8, "little") + bytes(872)
    (tmp_path / "cut.sif").write_bytes(whole)
    (tmp_path / "short.sif").write_bytes(whole[:60])
    given = [word.replace("{}", str(tmp_path)) for word in more]
    refused(launch.main, [*arguments, *given], code, words)


def test_what_is_there_already_is_left_as_it_was(refused, arguments, tmp_path):
    """Also in the folder of a run that has begun."""
    assert launch.main([*arguments, "--stage", "prepare"]) == 0
    for more in (
        ["--set", "ridge.folds=1"],
        ["--subjects", "3"],
        ["--set", "models.clip=/no/clip"],
    ):
        refused(launch.main, [*arguments, *more], 65 if "ridge.folds=1" not in more else 2)


def test_a_full_disk_can_be_begun_on_all_the_same(arguments, capsys):
    large = ["--set", "reconstruct.samples=1000", "--set", "reconstruct.size=4096"]
    assert launch.main([*arguments, *large, "--stage", "reconstruct", "--no-room-check"]) == 75
    assert "needs 2 cells that are not done" in capsys.readouterr().err


def test_by_the_real_program_too(tiny_tree, tmp_path):
    for module, words, code in (
        ("launch", ["--nsd-root", "/no/such", "--out", str(tmp_path / "out")], 65),
        ("launch", ["--set", "ridge.alphas=[-1]", "--out", str(tmp_path / "out")], 2),
        ("status", [str(tmp_path / "none")], 2),
    ):
        line = [sys.executable, "-m", f"nsdcap.{module}", *words]
        done = subprocess.run(line, capture_output=True, text=True, timeout=120, cwd=tmp_path)
        assert done.returncode == code
        assert len(done.stderr.strip().splitlines()) == 1
        assert done.stderr.startswith("nsdcap")
    assert not list(tmp_path.iterdir())


# --- weights --------------------------------------------------------------------------------------


def bert(folder: Path) -> Path:
    """A BERT, as transformers saves it."""
    from transformers import BertConfig, BertModel

    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    BertModel(BertConfig(vocab_size=60, **sizes)).save_pretrained(folder)
    write_vocabulary(folder)
    return folder


def changed(name: str, folder: Path, part: str, change) -> Path:
    """A copy of one of the miniature's models whose tensors are not as they were."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(miniature.MODELS / name, folder)
    (file,) = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def without(name: str):
    return lambda tensors: tensors.pop(name)


def narrowed(name: str):
    def change(tensors):
        tensors[name] = tensors[name][:-1].contiguous()

    return change


def test_weights_of_another_architecture(refused, arguments, tmp_path):
    a_bert = bert(tmp_path / "bert")
    for name, where, words in (
        (
            "blip",
            a_bert,
            "config.json is of model_type bert, expected blip; give the folder of a blip model",
        ),
        ("blip", miniature.MODELS / "clip", "is of model_type clip, expected blip"),
        ("blip", miniature.MODELS / "diffusion", "neither a folder with config.json nor a hub id"),
        ("clip", miniature.MODELS / "blip", "is of model_type blip, expected clip"),
        ("clip", a_bert, "is of model_type bert, expected clip"),
        ("diffusion", miniature.MODELS / "blip", "no model_index.json in it"),
        ("diffusion", a_bert, "no model_index.json in it"),
        ("backbones", tmp_path / "none", "there is no such folder"),
        ("blip", tmp_path / "none", "neither a folder with config.json nor a hub id"),
        ("blip", tmp_path / "none.pth", "there is no such file"),
    ):
        refused(launch.main, [*arguments, "--set", f"models.{name}={where}"], 65,
                f"models.{name} = '{where}'", words)  # fmt: skip
    swapped = shutil.copytree(miniature.MODELS / "diffusion", tmp_path / "swapped")
    for part in ("unet", "vae"):
        shutil.rmtree(swapped / part)
    for part, other in (("unet", "vae"), ("vae", "unet")):
        shutil.copytree(miniature.MODELS / "diffusion" / part, swapped / other)
    refused(launch.main, [*arguments, "--set", f"models.diffusion={swapped}"], 65,
            "unet/config.json is of _class_name AutoencoderKL, expected UNet2DConditionModel")  # fmt: skip


TENSORS = [
    ("blip", "", "text_decoder.bert.encoder.layer.3.crossattention.self.key.weight"),
    ("blip", "", "vision_model.embeddings.position_embedding"),
    ("clip", "", "visual_projection.weight"),
    ("clip", "", "text_model.encoder.layers.1.mlp.fc2.bias"),
    ("diffusion", "unet", "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k.weight"),
    ("diffusion", "vae", "decoder.up_blocks.1.resnets.0.conv_shortcut.weight"),
    ("diffusion", "text_encoder", "text_model.embeddings.token_embedding.weight"),
]


@pytest.mark.parametrize(("model", "part", "tensor"), TENSORS, ids=range(len(TENSORS)))
def test_tensors_that_are_missing_or_of_another_shape(
    refused, arguments, tmp_path, model, part, tensor
):
    for how, change, words in (
        ("lost", without(tensor), "tensors 1 missing: "),
        ("cut", narrowed(tensor), "tensors 1 of another shape: "),
    ):
        where = changed(model, tmp_path / how, part, change)
        said = refused(launch.main, [*arguments, "--set", f"models.{model}={where}"], 65, words)
        assert tensor.removeprefix("text_model.") in said
        assert f"models.{model} = " in said


def test_files_of_tensors_that_are_cut_short_or_none(refused, arguments, tmp_path):
    whole = (miniature.MODELS / "clip/model.safetensors").read_bytes()
    clip = shutil.copytree(miniature.MODELS / "clip", tmp_path / "clip")
    given = [*arguments, "--set", f"models.clip={clip}"]
    for content, words in (
        (whole[:-1], f"has {len(whole) - 1} bytes, its header tells of {len(whole)}"),
        (whole[:100], "no safetensors file, or damaged"),
        (b"", "no safetensors file, or damaged"),
        (b"<html>not found</html>", "no safetensors file, or damaged"),
        (b"\xff" * 64, "no safetensors file, or damaged"),
        (b"version https://git-lfs.github.com/spec/v1\n", "no safetensors file, or damaged"),
    ):
        (clip / "model.safetensors").write_bytes(content)
        refused(launch.main, given, 65, words, f"{clip / 'model.safetensors'}")


def test_checkpoints_of_blips_own_code_and_their_words(refused, arguments, tmp_path):
    model = random_blip()
    words = write_vocabulary(tmp_path / "bert")
    good = originals_names(model)
    file = tmp_path / "base.pth"
    given = [*arguments, "--set", f"models.blip={file}", "--set", f"models.blip_tokenizer={words}",
             "--set", "models.picture_size=0", "--stage", "features"]  # fmt: skip
    torch.save({"model": good}, file)
    small = write_vocabulary(tmp_path / "small", tokens=61)
    clip = ["--set", f"models.blip_tokenizer={miniature.MODELS / 'clip'}"]
    refused(
        launch.main, [*given, *clip], 65, "models.blip_tokenizer", "tokens with [DEC] and [ENC]"
    )
    other = ["--set", f"models.blip_tokenizer={small}"]
    refused(
        launch.main,
        [*given, *other],
        65,
        "found 63 tokens with [DEC] and [ENC], models.blip has 62",
    )
    empty = tmp_path / "none"
    empty.mkdir()
    refused(
        launch.main,
        [*given, "--set", f"models.blip_tokenizer={empty}"],
        65,
        "no tokenizer.json in it",
    )
    lost = {name: value for name, value in good.items() if not name.endswith("blocks.1.norm2.bias")}
    torch.save({"model": lost}, file)
    refused(
        launch.main, given, 65, "1 tensors missing: vision_model.encoder.layers.1.layer_norm2.bias"
    )
    torch.save({"state_dict": good}, file)
    refused(launch.main, given, 65, "found state_dict, expected tensors under 'model'")
    file.write_bytes(b"not a checkpoint")
    refused(launch.main, given, 65, f"models.blip = '{file}'")


def test_networks_that_score_pictures(refused, arguments, tmp_path):
    folder = tmp_path / "nets"
    folder.mkdir()
    file = folder / BACKBONES["alexnet"].file
    given = [*arguments, "--set", f"models.backbones={folder}"]
    shapes = ENDS["inception"]
    torch.save({name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}, file)
    refused(
        launch.main,
        given,
        65,
        "holds no such tensor as features.0.weight, expected (64, 3, 11, 11)",
    )
    torch.save([torch.zeros(1)], file)
    refused(launch.main, given, 65, "holds no such tensor as features.0.weight")
    file.write_bytes(b"<html>")
    refused(launch.main, given, 65, f"{file}: cannot be read as a checkpoint")


# --- other commands -------------------------------------------------------------------------------


@pytest.fixture
def broken_run(tmp_path):
    """A folder whose config.toml is none."""
    out = tmp_path / "broken"
    (out / "jobs").mkdir(parents=True)
    (out / "config.toml").write_bytes(b"[data\xff")
    return out


OTHERS = [
    (status.main, ["{}/no"], 2, "no: found no config.toml there; give the folder of a run"),
    (status.main, ["{}"], 2, "found no config.toml there"),
    (status.main, ["{}/file"], 2, "file: found no config.toml there"),
    (status.main, ["x" * 300], 2, "found a name of 300 bytes"),
    (status.main, ["{}/broken"], 2, "config.toml: line 1 is not UTF-8"),
    (status.main, ["{}/other"], 2, "unknown setting data.root: did you mean data.nsd_root?"),
    (status.main, ["{}/gone"], 65, "NSD root /no/nsd: found no folder nsddata/ there"),
    (status.main, ["{}/other", "--watch", "-1"], 2, "--watch: found -1.0, expected a number above 0"),
    (status.main, ["{}/other", "--watch", "nan"], 2, "--watch: found nan, expected a number above 0"),
    (status.main, [], 2, "the following arguments are required: out"),
    (cancel.main, ["{}/no"], 2, "no: found no jobs/ there; give the folder of a run on a cluster"),
    (cancel.main, ["{}/file"], 2, "found no jobs/ there"),
    (cancel.main, ["{}/other", "--stage", "x"], 2, "invalid choice: 'x'"),
    (report.main, ["{}/no"], 2, "no: found no config.toml there"),
    (report.main, ["{}/broken"], 65, "has no run.json; run the aggregate stage first"),
    (plots.main, ["{}/no"], 65, "has no run.json; run the aggregate stage first"),
    (plots.main, ["{}/no", "--figure", "12"], 2, "figure: found 12, expected some of 3 (captions)"),
    (rating.main, ["make", "{}/no", "{}/study", "--study", "captions"], 2, "found no config.toml there"),
    (rating.main, ["make", "{}/broken", "{}/study", "--study", "captions"], 2, "is not UTF-8"),
    (rating.main, ["make", "{}/gone", "{}/study", "--study", "captions"], 65, "not done; run the"),
    (rating.main, ["make", "{}/gone", "{}/broken", "--study", "captions"], 2, "is there already"),
    (rating.main, ["make", "{}/gone", "{}/s", "--study", "captions", "--raters", "0"], 2, "--raters 0:"),
    (rating.main, ["make", "{}/gone", "{}/s", "--study", "captions", "--seed", "-1"], 2, "--seed -1: expected"),
    (rating.main, ["make", "{}/gone", "{}/s", "--study", "smells"], 2, "invalid choice: 'smells'"),
    (rating.main, ["make", "{}/gone", "{}/s", "--study", "pictures", "--arm", "x"], 2, "--arm x: is for"),
    (rating.main, ["serve", "{}/no"], 65, "study.json: cannot be read"),
    (rating.main, ["serve", "{}/no", "--port", "99999"], 2, "--port 99999: expected"),
    (rating.main, ["serve", "{}/no", "--port", "-1"], 2, "--port -1: expected"),
    (rating.main, ["score", "{}/no"], 65, "study.json: cannot be read"),
    (rating.main, ["score", "{}/no", "--into", "{}/no"], 2, "--into {}/no: found no config.toml there"),
    (metrics.main, ["captions", "{}/no.json", "{}/no.json"], 65, "no.json: does not exist"),
    (metrics.main, ["captions", "{}/file", "{}/file"], 65, "found no JSON"),
    (metrics.main, ["captions", "{}", "{}"], 65, "cannot be read (Is a directory)"),
    (metrics.main, ["captions", "{}/two.json", "{}/refs.json", "--clip", "x"], 2, "expected both or neither"),
    (metrics.main, ["captions", "{}/deep.json", "{}/refs.json"], 65, "found no JSON"),
    (metrics.main, ["pictures", "{}/no", "{}/no"], 2, "no: there is no such folder"),
    (metrics.main, ["pictures", "{}/other", "{}/other"], 65, "other"),
    (metrics.main, ["pictures", "{}/other", "{}/other", "--backbones", "{}/no"], 2, "--backbones {}/no"),
    (metrics.main, ["smells"], 2, "invalid choice: 'smells'"),
    (make_miniature.main, ["{}/broken"], 2, "is not an empty folder"),
    (make_miniature.main, ["{}/file"], 2, "is not an empty folder"),
    (make_miniature.main, ["{}/file/nsd"], 2, "cannot be written"),
    (make_miniature.main, ["{}/new", "--sessions", "0"], 2, "1 to 37 sessions"),
    (make_miniature.main, ["{}/new", "--sessions", "99"], 2, "1 to 37 sessions"),
    (make_miniature.main, ["{}/new", "--subjects", "9"], 2, "subjects among 1 to 8"),
    (make_miniature.main, ["{}/new", "--seed", "-1"], 2, "a seed of 0 or more"),
    ("prefetch", ["{}/file"], 2, "cannot be written"),
    ("prefetch", ["{}/new", "--models", "../x=a/b"], 2, "expected NAME=REPO"),
    ("prefetch", ["{}/new", "--models", "none"], 2, "found 'none', expected NAME=REPO or one of"),
    ("prefetch", ["{}/new", "--check"], 65, "there is no such file, or it names no files"),
    ("prefetch", ["{}/locked", "--check"], 65, "cannot be read as a lock of weights"),
    ("prefetch", ["{}/new", "--check", "--update"], 2, "not allowed with argument"),
]  # fmt: skip


@pytest.mark.parametrize(("main", "words", "code", "said"), OTHERS, ids=range(len(OTHERS)))
def test_other_commands(refused, broken_run, tmp_path, main, words, code, said):
    (tmp_path / "file").write_text("no such thing")
    for name, text in (
        ("other", "[data]\nroot = '/x'\n"),
        ("gone", "[data]\nnsd_root = '/no/nsd'\n"),
    ):
        (tmp_path / name / "jobs").mkdir(parents=True)
        (tmp_path / name / "config.toml").write_text(text)
    (tmp_path / "two.json").write_text('{"a": "x", "b": "y"}')
    (tmp_path / "refs.json").write_text('{"a": ["x"], "b": ["y"]}')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked/weights.lock.json").write_text('{"files": {"../x": {}}}')
    given = [word.replace("{}", str(tmp_path)) for word in words]
    program = prefetch().main if main == "prefetch" else main
    refused(program, given, code, said.replace("{}", str(tmp_path)))
