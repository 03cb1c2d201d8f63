"""hpc/prefetch.py against a hub on loopback, by the real huggingface_hub: fetched, pinned, checked, resumed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_server import Hub, Repo, commit_of, serving

from nsdcap import miniature
from nsdcap.hub import needed
from nsdcap.weights import LOCK

ROOT = Path(__file__).resolve().parents[1]
BLIP, SD, CLIP = "lab/blip", "lab/stable-diffusion", "lab/clip"
NAMES = [f"blip={BLIP}", f"sd={SD}", f"clip={CLIP}"]
OLD, NEW = commit_of("old"), commit_of("new")
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def hub(tmp_path):
    """A hub with the miniature's models as a full-size repository looks, with much that nobody needs."""
    with serving() as found:
        licences = {
            "blip": "bsd-3-clause",
            "stable-diffusion": "creativeml-openrail-m",
            "clip": "mit",
        }
        for name, licence in licences.items():
            folder = tmp_path / "served" / name
            source = "diffusion" if name == "stable-diffusion" else name
            shutil.copytree(miniature.MODELS / source, folder)
            for file in folder.rglob("*.safetensors"):  # the same in other formats
                for ending in (".bin", ".fp16.safetensors", ".msgpack"):
                    file.with_name(file.name.replace(".safetensors", ending)).write_bytes(b"other")
            (folder / "README.md").write_text("a card")
            (folder / ".gitattributes").write_text("")
            found.repos[f"lab/{name}"] = Repo({OLD: folder}, OLD, licence)
        folder = tmp_path / "served/stable-diffusion"
        shutil.copytree(folder / "text_encoder", folder / "safety_checker")
        (folder / "sd-v1-4.ckpt").write_bytes(b"all in one")
        (tmp_path / "base.pth").write_bytes(os.urandom(3 << 20))
        found.files["/files/base.pth"] = tmp_path / "base.pth"
        yield found


@pytest.fixture
def prefetch(hub: Hub, tmp_path):
    """The program as a user runs it, on the hub; gives the exit code and what it said."""

    def run(*words: str, **variables: str) -> tuple[int, str]:
        done = subprocess.run(
            command(tmp_path / "models", *words),
            env={**hub.environment(tmp_path / "home"), "PYTHONPATH": str(ROOT), **variables},
            capture_output=True, text=True,
        )  # fmt: skip
        error = [
            line for line in done.stderr.splitlines() if line.startswith(("prefetch", "Trace"))
        ]
        assert "Traceback" not in done.stderr, done.stderr
        assert len(error) <= 1
        return done.returncode, done.stdout + "".join(error)

    return run


def command(folder: Path, *words: str) -> list[str]:
    return [sys.executable, str(ROOT / "hpc/prefetch.py"), str(folder), *words]


def files(folder: Path) -> dict[str, str]:
    """SHA-256 of all files below a folder, hidden ones too, but what is kept beside the lock."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (LOCK, ".weights.seen.json")
    }


def expected() -> dict[str, str]:
    """What should be in the folder: the miniature's own files, without the logs of their training."""
    found = {}
    for name, source in (("blip", "blip"), ("sd", "diffusion"), ("clip", "clip")):
        own = {k: v for k, v in files(miniature.MODELS / source).items() if not k.endswith(".log")}
        found |= {f"{name}/{k}": v for k, v in own.items()}
    return found


def test_fetched_pinned_checked_and_not_fetched_again(hub, prefetch, tmp_path):
    url = f"base={hub.endpoint}/files/base.pth"
    code, said = prefetch("--models", *NAMES, url)
    assert code == 0, said
    folder = tmp_path / "models"
    wanted = expected() | {
        "base/base.pth": hashlib.sha256((tmp_path / "base.pth").read_bytes()).hexdigest()
    }
    assert files(folder) == wanted
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    lock = json.loads((folder / LOCK).read_text())["files"]
    assert {name: row["sha256"] for name, row in lock.items()} == wanted
    for name, row in lock.items():
        assert row["size"] == (folder / name).stat().st_size
    assert lock[f"sd/{UNET}"] == {
        "repo": SD, "revision": OLD, "file": UNET, "licence": "creativeml-openrail-m",
        "size": (folder / "sd" / UNET).stat().st_size, "sha256": wanted[f"sd/{UNET}"],
    }  # fmt: skip
    assert {row["licence"] for name, row in lock.items() if name.startswith("blip/")} == {
        "bsd-3-clause"
    }
    assert lock["base/base.pth"]["repo"] == f"{hub.endpoint}/files/base.pth"
    assert "licence: creativeml-openrail-m" in said

    asked = len(hub.asked)
    assert prefetch("--models", *NAMES, url)[0] == 0
    assert len(hub.asked) == asked  # nobody was asked, so it also works where there is no network
    code, said = prefetch("--check")
    assert (code, len(hub.asked)) == (0, asked)
    assert said.count("ok    ") == len(wanted)


def test_a_changed_byte_is_found_and_mended(hub, prefetch, tmp_path):
    assert prefetch("--models", *NAMES[1:])[0] == 0
    file = tmp_path / "models/sd" / UNET
    before, stat = file.read_bytes(), file.stat()
    with file.open("rb+") as opened:
        opened.seek(-1, 2)
        opened.write(bytes([before[-1] ^ 1]))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (tmp_path / "models/clip/pytorch_model.bin").write_bytes(b"whose is this")
    code, said = prefetch("--check")
    assert code == 65
    wrong = [line for line in said.splitlines() if line.startswith("WRONG")]
    assert len(wrong) == 2
    assert f"{file}: found SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()}" in wrong[0]
    assert "pytorch_model.bin: it is not in" in wrong[1]
    (tmp_path / "models/clip/pytorch_model.bin").unlink()
    asked = len(hub.asked)
    code, said = prefetch("--models", *NAMES[1:])
    assert code == 0, said
    assert hub.got(asked) == [Path(UNET).name]
    assert file.read_bytes() == before
    file.unlink()
    code, said = prefetch("--check")
    assert code == 65
    assert f"{UNET}: No such file" in said


def kill_when_stalled(hub: Hub, tmp_path: Path, file: str, *words: str) -> None:
    """Start the program, and end it by SIGKILL when it has got 1 MB of ``file``."""
    hub.stall = (file, 1 << 20)
    env = {**hub.environment(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(
        command(tmp_path / "models", *words), env=env, stderr=subprocess.DEVNULL
    )
    assert hub.stalled.wait(60)
    end = time.monotonic() + 60
    while file == "base.pth" and not any(
        p.stat().st_size for p in tmp_path.glob("models/base/.base.pth*")
    ):
        assert time.monotonic() < end
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    hub.go_on.set()


@pytest.mark.parametrize("what", ["hub", "url"])
def test_killed_halfway_it_goes_on(hub, prefetch, tmp_path, what):
    words = ["--models", NAMES[1] if what == "hub" else f"base={hub.endpoint}/files/base.pth"]
    large = "diffusion_pytorch_model.safetensors" if what == "hub" else "base.pth"
    kill_when_stalled(hub, tmp_path, large, *words)
    there = files(tmp_path / "models")
    if what == "hub":  # in the order of their names: the text encoder was done, the UNet was not
        assert "sd/text_encoder/model.safetensors" in there
        assert f"sd/{UNET}" not in there
    asked = len(hub.asked)
    code, said = prefetch(*words)
    assert code == 0, said
    if what == "hub":
        assert "model.safetensors" not in hub.got(asked)
        assert files(tmp_path / "models") == {k: v for k, v in expected().items() if k[:3] == "sd/"}
    else:
        (line,) = (line for line in hub.asked[asked:] if line.startswith("GET"))
        assert int(line.partition("bytes=")[2].rstrip("-")) > 0
        whole = hashlib.sha256((tmp_path / "base.pth").read_bytes()).hexdigest()
        assert files(tmp_path / "models") == {"base/base.pth": whole}


def test_a_broken_connection_is_taken_up(hub, prefetch, tmp_path):
    hub.cut = ("diffusion_pytorch_model.safetensors", 1 << 20)
    code, said = prefetch("--models", NAMES[1])
    assert code == 0, said
    assert hub.got().count(Path(UNET).name) == 3  # the UNet's twice, and the VAE's
    hub.cut = ("base.pth", 1 << 20)
    words = ("--models", f"base={hub.endpoint}/files/base.pth")
    code, said = prefetch(*words)
    assert code == 0, said
    assert hub.asked[-1].endswith(f"bytes={1 << 20}-")
    assert prefetch("--check")[0] == 0


def test_another_version_of_a_url_is_not_joined_to_the_first(hub, prefetch, tmp_path):
    words = ("--models", f"base={hub.endpoint}/files/base.pth")
    kill_when_stalled(hub, tmp_path, "base.pth", *words)
    other = os.urandom(3 << 20)
    (tmp_path / "base.pth").write_bytes(other)
    assert prefetch(*words)[0] == 0
    assert (tmp_path / "models/base/base.pth").read_bytes() == other
    # and now it is pinned
    (tmp_path / "models/base/base.pth").unlink()
    (tmp_path / "base.pth").write_bytes(os.urandom(3 << 20))
    code, said = prefetch(*words)
    assert code == 65
    assert "expected 3145728 bytes of SHA-256 " + hashlib.sha256(other).hexdigest() in said
    assert not (tmp_path / "models/base/base.pth").exists()
    assert prefetch(*words, "--update")[0] == 0


def test_the_lock_holds_the_revision_until_update(hub, prefetch, tmp_path):
    words = ("--models", f"clip={CLIP}")
    assert prefetch(*words)[0] == 0
    folder, served = tmp_path / "models/clip", tmp_path / "served/clip"
    weights, lock = folder / "model.safetensors", tmp_path / "models" / LOCK
    old = weights.read_bytes()
    shutil.copytree(served, tmp_path / "served/new")
    (tmp_path / "served/new/model.safetensors").write_bytes(old[:-1] + b"?")
    (tmp_path / "served/new/tokenizer.json").unlink()
    hub.repos[CLIP].commits[NEW] = tmp_path / "served/new"
    hub.repos[CLIP].head = NEW

    weights.unlink()
    assert prefetch(*words)[0] == 0  # main has moved on, what is pinned has not
    assert weights.read_bytes() == old
    code, said = prefetch("--models", f"clip={CLIP}@{NEW}")
    assert code == 65
    assert f"pins {CLIP}@{OLD}, asked for is {CLIP}@{NEW}; --update" in said
    assert prefetch("--models", f"clip={CLIP}@{OLD[:8]}")[0] == 0
    code, said = prefetch("--models", f"clip={SD}")
    assert code == 65
    assert "give another NAME" in said

    (served / "model.safetensors").write_bytes(old[:-1] + b"!")  # other bytes under the same hash
    weights.unlink()
    code, said = prefetch(*words)
    assert code == 65
    assert "what is pinned has changed there" in said
    assert not weights.exists()
    del hub.repos[CLIP].commits[OLD]
    code, said = prefetch(*words)
    assert code == 65
    assert "no such revision" in said

    assert json.loads(lock.read_text())["files"]["clip/model.safetensors"]["revision"] == OLD
    assert prefetch(*words, "--update")[0] == 0
    assert json.loads(lock.read_text())["files"]["clip/model.safetensors"]["revision"] == NEW
    assert weights.read_bytes() == old[:-1] + b"?"
    assert not (folder / "tokenizer.json").exists()  # which the new revision has not
    assert prefetch("--check")[0] == 0


def test_a_lock_by_itself_says_where_its_models_are_from(hub, prefetch, tmp_path):
    """Another's lock, or one's own with damaged files: a name is enough, be it of the hub or a URL."""
    mine = f"mine={hub.endpoint}/files/base.pth"
    assert prefetch("--models", f"clip={CLIP}", mine)[0] == 0
    models = tmp_path / "models"
    lock, whole = (models / LOCK).read_bytes(), (models / "mine/base.pth").read_bytes()
    shutil.rmtree(models)
    models.mkdir()
    (models / LOCK).write_bytes(lock)
    assert prefetch("--models", "clip", "mine")[0] == 0
    assert (models / LOCK).read_bytes() == lock
    (models / "mine/base.pth").write_bytes(whole[:-1])
    code, said = prefetch("--check")
    assert (code, "WRONG" in said) == (65, True)
    assert prefetch("--models", "mine")[0] == 0
    assert (models / "mine/base.pth").read_bytes() == whole
    assert prefetch("--models", "other")[0] == 2


def test_what_cannot_be_fetched_is_one_line(hub, prefetch, tmp_path):
    def refused(*words: str, **variables: str) -> str:
        code, said = prefetch("--models", *words, **variables)
        assert code == 65
        assert said.startswith("prefetch: ")
        return said

    said = refused(NAMES[0], HF_ENDPOINT="http://127.0.0.1:9")
    assert f"{BLIP}@main: no network: http://127.0.0.1:9 cannot be reached" in said
    assert "no network" in refused("base=http://127.0.0.1:9/base.pth")
    assert "answered 404" in refused(f"base={hub.endpoint}/files/none.pth")
    assert "shows no such repository lab/none" in refused("x=lab/none")
    assert "no such revision of lab/blip" in refused(f"x={BLIP}@{NEW}")
    assert "unset it to fetch" in refused(NAMES[0], HF_HUB_OFFLINE="1")
    assert "is no hub id" in refused("x=a/b/c")
    for status in (401, 403):
        hub.repos[SD].gate = status
        said = refused(NAMES[1])
        assert f"{SD} is gated: accept its terms at {hub.endpoint}/{SD}" in said
        assert "HF_TOKEN" in said
    hub.sizes["model.safetensors"] = 10**16
    assert "are free, 1e+04 TB are to be fetched" in refused(NAMES[2])
    assert prefetch("--check") == (65, f"prefetch: {tmp_path / 'models' / LOCK}: there is no such file, or "
                                       "it names no files; fetch first")  # fmt: skip
    (tmp_path / "models" / LOCK).write_text("{")
    assert "cannot be read as a lock" in prefetch("--check")[1]
    (tmp_path / "models" / LOCK).unlink()
    for words in (["clip b=x/y"], ["none"], ["../x=a/b"]):
        assert prefetch("--models", *words)[0] == 2


def test_the_files_of_full_size_repositories():
    """Names as the repositories have them: one format of weights, no safety checker, no variants."""
    tokenizer = ["tokenizer/merges.txt", "tokenizer/special_tokens_map.json",
                 "tokenizer/tokenizer_config.json", "tokenizer/vocab.json"]  # fmt: skip
    kept = [
        "feature_extractor/preprocessor_config.json", "model_index.json",
        "scheduler/scheduler_config.json", "text_encoder/config.json", "text_encoder/model.safetensors",
        *tokenizer, "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    others = [
        ".gitattributes", "README.md", "safety_checker/config.json", "safety_checker/model.safetensors",
        "text_encoder/model.fp16.safetensors", "text_encoder/pytorch_model.bin",
        "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors", "vae/diffusion_pytorch_model.fp16.bin",
        "sd-v1-4.ckpt",
    ]  # fmt: skip
    assert needed([*kept, *others]) == sorted(kept)
    words = ["config.json", "merges.txt", "preprocessor_config.json", "pytorch_model.bin", "tokenizer.json",
             "tokenizer_config.json", "vocab.json"]  # fmt: skip
    assert needed([*words, "flax_model.msgpack", "tf_model.h5", "README.md"]) == words
    parts = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
             "model.safetensors.index.json"]  # fmt: skip
    whole = ["config.json", "vocab.txt"]
    assert needed([*parts, *whole, "pytorch_model.bin.index.json", "onnx/config.json"]) == sorted(
        [*parts, *whole]
    )
    bert = ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    assert needed([*bert, "model.safetensors", "rust_model.ot"], tokenizer_only=True) == bert
