"""Settings that models cannot follow: one clear error before any work, as their own classes would give."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from small_blip import originals_names, random_blip, write_vocabulary

from nsdcap import config, launch, limits, miniature
from nsdcap.blip import Blip
from nsdcap.diffusion import Diffusion
from nsdcap.errors import UsageError


@pytest.mark.parametrize(
    ("setting", "stages", "said"),
    [
        ("models.picture_size=60", "fc", "models.picture_size: found 60, expected a multiple of 8, the"),
        ("caption.prompt=" + "a red ball " * 7, "fc", "found 20, expected more than 22, the tokens of"),
        ("caption.max_length=33", "fc", "found 33, expected at most 32, the positions"),
        ("reconstruct.size=66", "fr", "reconstruct.size: found 66, expected a multiple of 4"),
        ("reconstruct.coarse_size=42", "fr", "coarse_size: found 42, expected a multiple of 4"),
    ],
)  # fmt: skip
def test_what_models_cannot_do_is_told_before_any_work(
    tiny_tree, tmp_path, capsys, setting, stages, said
):
    """By the dry run, by a launch, and by the models' own classes."""
    places = tuple(
        f"models.{name}={miniature.MODELS / name}" for name in ("blip", "diffusion", "clip")
    )
    words = ["--nsd-root", str(tiny_tree), "--subjects", "1", "--out", str(tmp_path / "out")]
    words += [word for text in (*places, "data.sessions=2", setting) for word in ("--set", text)]
    for stage in ("features", "caption", "reconstruct", "all", "decode"):
        wrong = stage[0] in stages or stage == "all"
        assert launch.main([*words, "--stage", stage, "--dry-run"]) == (2 if wrong else 0)
        error = capsys.readouterr().err.strip()
        assert len(error.splitlines()) == wrong
        assert (said in error) == wrong
    assert launch.main(words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    small = ("reconstruct.size=64", "reconstruct.coarse_size=40")
    settings = config.load(settings=(*places, *small, setting))

    def load() -> None:
        Blip(settings.models, settings.caption)
        Diffusion(settings.models, settings.reconstruct)

    with pytest.raises(UsageError) as error:
        load()
    assert said in str(error.value)


def test_a_prompt_is_counted_as_the_captioner_counts_it(tmp_path):
    for prompt in ("", "a picture of", "A red BALL, in a strange-looking field!"):
        models = config.Models(blip=str(miniature.MODELS / "blip"), device="cpu")
        blip = Blip(models, config.Caption(prompt=prompt, max_length=32))
        assert limits.prompt_length(models, prompt) == len(blip.prompt)
        write_vocabulary(tmp_path)
        torch.save({"model": originals_names(random_blip())}, tmp_path / "base.pth")
        models = replace(models, blip=str(tmp_path / "base.pth"), blip_tokenizer=str(tmp_path))
        blip = Blip(models, config.Caption(prompt=prompt, max_length=32))
        assert limits.prompt_length(models, prompt) == len(blip.prompt)


@pytest.mark.parametrize("content", ["{broken", "[]", ""], ids=["broken", "a list", "empty"])
@pytest.mark.parametrize(
    ("model", "name"),
    [("blip", "config.json"), ("blip", "tokenizer.json"), ("diffusion", "vae/config.json")],
)
def test_damaged_small_files_are_one_error_before_any_work(
    tiny_tree, tmp_path, capsys, model, name, content
):
    mine = tmp_path / model
    shutil.copytree(miniature.MODELS / model, mine)
    (mine / name).write_text(content)
    places = {kind: miniature.MODELS / kind for kind in ("blip", "diffusion", "clip")}
    named = [f"models.{kind}={str(where)!r}" for kind, where in (places | {model: mine}).items()]
    words = ["--nsd-root", str(tiny_tree), "--subjects", "1", "--out", str(tmp_path / "out")]
    words += [word for text in (*named, "data.sessions=2") for word in ("--set", text)]
    assert launch.main([*words, "--stage", "features"]) == 65
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert f"models.{model} = {str(mine)!r}: {mine / name} cannot be read as" in error
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_at_hand_is_not_looked_for_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    shutil.copytree(miniature.MODELS / "diffusion/vae", tmp_path / "vae")
    write_vocabulary(tmp_path)
    monkeypatch.chdir(tmp_path)
    models = config.Models(blip="lab/blip", diffusion="lab/sd")
    assert limits.prompt_length(models, "a picture of") is None
    odd = config.Reconstruct(size=42)  # which the vae here would refuse
    limits.check(config.Config(models=models, reconstruct=odd), ["diffusion"])
