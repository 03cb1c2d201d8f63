"""Damaged files of PyTorch's own format: what is read, or one DataError of one line, whatever the damage."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from nsdcap import blip_original, checkpoints, headers, miniature
from nsdcap.backbones import _fill
from nsdcap.errors import DataError
from nsdcap.loading import load_part

MARK = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how files before torch 1.6 begin
NETWORK = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))


def saved(content: object, old: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut, flipped, overwritten, or replaced by junk that begins as the file does."""
    data = bytearray(content)
    # pickles and names are at the start of the old format, at both ends of a zip
    at = int(rng.integers(len(data))) if rng.random() < 0.5 else int(rng.integers(300)) % len(data)
    how = rng.integers(6)
    if how == 0:
        del data[at:]
    elif how == 1:
        data[at] ^= 1 << int(rng.integers(8))
    elif how == 2:
        data[at : at + 9] = rng.bytes(9)
    elif how == 3:
        del data[at : at + int(rng.integers(1, 40))]
    elif how == 4:
        data = bytearray(rng.bytes(int(rng.integers(0, 60))))
    else:
        data = bytearray(MARK + rng.bytes(int(rng.integers(0, 60))))
    return bytes(data)


def pth(file: Path) -> None:
    blip_original.check(file)


def network(file: Path) -> None:
    _fill(NETWORK, "alexnet", file)


def bin_file(file: Path) -> None:
    checkpoints.check(file, "models.clip = 'x'", "fetch it")
    checkpoints.read(file, "models.clip = 'x'", "fetch it")


BLIP = {"model": {"visual_encoder.cls_token": torch.ones(1, 1, 128), "temp": torch.ones(())}}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("read", "content"), [(pth, BLIP), (network, NETWORK.state_dict()), (bin_file, BLIP)]
)
def test_damaged_checkpoints_are_one_error(tmp_path, read, content, old):
    rng = np.random.default_rng([7, old])
    whole, refused = saved(content, old), list[str]()
    for number in range(80):
        file = tmp_path / f"{number}.pth"
        file.write_bytes(damaged(whole, rng))
        try:
            read(file)
        except DataError as error:
            refused.append(str(error))
    assert len(refused) > 30
    assert not [words for words in refused if "\n" in words or len(words) > 2000]


@pytest.mark.parametrize(
    "content",
    [b"root:x:0:0::/:/bin/bash\n", b"junk" * 5, b".", b"0", b"\x80\x02.", MARK + b"0", MARK + b"\x80\x02u."],
)  # fmt: skip
def test_what_the_unpickler_chokes_on(tmp_path, content):
    file = tmp_path / "model.pth"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"models\.blip = .*model\.pth.*download it anew"):
        blip_original.read(file)
    with pytest.raises(DataError, match=r"model\.pth: cannot be read .*fetch it again from http"):
        network(file)


@pytest.mark.parametrize(
    ("model", "part"), [("blip", ""), ("clip", ""), ("diffusion", "text_encoder")]
)
def test_a_bin_of_junk_is_refused_before_work(tmp_path, model, part):
    folder = tmp_path / model
    shutil.copytree(miniature.MODELS / model, folder)
    (folder / part / "model.safetensors").unlink()
    file = folder / part / "pytorch_model.bin"
    whole = saved({"a": torch.ones(3)}, False)
    for content in (b"0junk", b"", b"<html>", whole[:200], whole[:-30]):
        file.write_bytes(content)
        said = f"models.{model} = .*{re.escape(str(file))}: cannot be read as a checkpoint"
        with pytest.raises(DataError, match=said):
            headers.check(model, str(folder))
    for old in (False, True):
        file.write_bytes(saved({"a": torch.ones(3)}, old))
        headers.check(model, str(folder))


def test_a_bin_that_only_loading_shows_as_junk(tmp_path):
    from transformers import CLIPModel

    folder = tmp_path / "clip"
    shutil.copytree(miniature.MODELS / "clip", folder)
    (folder / "model.safetensors").unlink()
    for content in (MARK + b"0", b"0junk"):
        (folder / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(DataError, match=r"models\.clip = .*clip") as error:
            load_part(CLIPModel, "models.clip", str(folder))
        assert "\n" not in str(error.value)
