"""BLIP's own checkpoints: the same numbers as the Hugging Face model they were made from, or one error."""

import collections
import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from small_blip import interpolated, originals_names, pretraining, random_blip, write_vocabulary

from nsdcap.blip import Blip
from nsdcap.config import Caption, Models
from nsdcap.errors import DataError
from nsdcap.stages import blip_config

WRITE = Caption(max_length=12, repetition_penalty=1.2)


@pytest.fixture(scope="module")
def model():
    return random_blip()


@pytest.fixture
def words(tmp_path):
    return write_vocabulary(tmp_path / "words")


@pytest.fixture
def settings(tmp_path, words):
    """Save tensors as a checkpoint; the settings that name it."""

    def save(content, **more) -> Models:
        file = tmp_path / "model.pth"
        torch.save(content, file, **more)
        return Models(blip=str(file), blip_tokenizer=str(words), device="cpu", batch=4)

    return save


@pytest.mark.parametrize("kind", ["pre-training", "captioner", "old format"])
def test_a_checkpoint_gives_what_the_model_gives(model, settings, kind):
    tensors = pretraining(model) if kind == "pre-training" else originals_names(model)
    content = {"model": tensors, "epoch": 19, "config": {"image_size": 32}}
    models = settings(content, _use_new_zipfile_serialization=kind != "old format")
    blip = Blip(models, WRITE)
    pictures = np.random.default_rng(0).integers(0, 256, (6, 50, 60, 3), np.uint8)
    pixels = blip.images(list(pictures), return_tensors="pt")["pixel_values"]
    z_v = blip.features(pictures)
    expected = model.vision_model(pixels).last_hidden_state.numpy()
    np.testing.assert_allclose(z_v, expected, atol=1e-5)
    assert expected.std() > 0.1
    ids = model.generate(
        pixel_values=pixels, input_ids=torch.tensor([[*blip.prompt, 3]] * 6), num_beams=3,
        min_length=5, max_length=12, repetition_penalty=1.2, do_sample=False,
    )  # fmt: skip
    texts = [text.removeprefix("a picture of").strip() for text in blip.tokenizer.batch_decode(
        ids, skip_special_tokens=True)]  # fmt: skip
    assert blip.captions(z_v) == texts
    assert len(set(texts)) > 1
    for name, values in model.state_dict().items():
        torch.testing.assert_close(blip.model.state_dict()[name], values, rtol=0, atol=0, msg=name)


def test_sizes_are_known_without_loading(model, settings):
    found = blip_config(settings({"model": pretraining(model)}).blip)
    config = model.config
    for part in ("vision_config", "text_config"):
        assert found[part]  # each of them as the model was made
        for key, value in found[part].items():
            assert getattr(getattr(config, part), key) == value, key


def test_the_true_sizes(settings):
    """Of model_base_capfilt_large.pth: ViT-B/16 at 224 pixels, BERT base with 30,524 tokens."""
    with torch.device("meta"):
        tensors = originals_names(random_blip(768, 12, 16, 224, 30524))
    from nsdcap.blip_original import configuration

    assert configuration(tensors) == {
        "vision_config": {
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "image_size": 224, "patch_size": 16, "layer_norm_eps": 1e-6,
        },
        "text_config": {
            "hidden_size": 768, "encoder_hidden_size": 768, "intermediate_size": 3072,
            "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 512,
            "vocab_size": 30524, "layer_norm_eps": 1e-12,
        },
    }  # fmt: skip


@pytest.mark.parametrize(("size", "tokens"), [(224, 197), (240, 226), (384, 577)])
def test_the_sizes_of_pictures_in_use(settings, size, tokens):
    """From 224 pixels, with the true patch of 16."""
    model = random_blip(patch=16, size=224)
    models = settings({"model": originals_names(model)})
    blip = Blip(dataclasses.replace(models, picture_size=size), WRITE)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 425, 425, 3), np.uint8)
    z_v = blip.features(pictures)
    assert z_v.shape == (2, tokens, 128)
    first = model.vision_model.embeddings.position_embedding
    expected = first if size == 224 else interpolated(first, size // 16)
    found = blip.model.vision_model.embeddings.position_embedding
    torch.testing.assert_close(found.data, expected.data, rtol=0, atol=0)
    pixels = blip.images(list(pictures), return_tensors="pt")["pixel_values"]
    theirs = model.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
    np.testing.assert_allclose(z_v, theirs, atol=1e-5)


NORM, QKV = "visual_encoder.norm.weight", "visual_encoder.blocks.1.attn.qkv.weight"
CROSS = "text_decoder.bert.encoder.layer.0.crossattention.self.key.weight"


def spoilt(model, kind):
    """The captioner's tensors with something wrong, and what the error must say."""
    tensors = originals_names(model)
    if kind == "missing":
        del tensors[NORM], tensors[CROSS]
        said = ["2 tensors missing", "vision_model.post_layernorm.weight", CROSS]
    elif kind == "surplus":
        tensors["visual_encoder.head.weight"] = tensors["momentum"] = torch.zeros(3)
        said = ["2 tensors unknown", "visual_encoder.head.weight", "momentum"]
    elif kind == "shape":
        tensors[QKV] = tensors[QKV][:-1]
        said = ["1 tensors of another shape", QKV, "(383, 128) and not (384, 128)"]
    elif kind == "all three":
        tensors[QKV] = tensors.pop(NORM)
        tensors["more"] = torch.zeros(1)
        said = ["missing", "unknown", "another shape", "post_layernorm", "more", QKV]
    elif kind == "untied":
        tensors["text_decoder.cls.predictions.decoder.weight"][0, 0] += 1
        said = ["decoder.weight is not", "word_embeddings"]
    elif kind == "odd width":
        tensors["visual_encoder.cls_token"] = torch.zeros(1, 1, 129)
        said = ["found widths [129, 128], expected multiples of 64"]
    else:
        tensors["text_encoder.embeddings.LayerNorm.weight"] = torch.ones(128)
        said = ["answers questions"]
    return tensors, said


@pytest.mark.parametrize(
    "kind",
    ["missing", "surplus", "shape", "all three", "untied", "odd width", "of question answering"],
)
def test_tensors_that_do_not_fit_are_one_error_that_lists_them(model, settings, kind):
    tensors, said = spoilt(model, kind)
    models = settings({"model": tensors})
    with pytest.raises(DataError) as error:
        Blip(models, Caption())
    for words in (*said, models.blip):
        assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1


class Code:
    """Unpickled by a plain ``pickle.load`` it makes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("old", [False, True])
def test_code_in_a_checkpoint_is_named_and_not_run(model, settings, tmp_path, old):
    mark = tmp_path / "it-ran"
    content = {"model": originals_names(model), "epoch": Code(mark)}
    models = settings(content, _use_new_zipfile_serialization=not old)
    with pytest.raises(DataError, match=r"model\.pth.*would run posix\.system.*never run"):
        Blip(models, Caption())
    assert not mark.exists()
    torch.load(models.blip, weights_only=False)
    assert mark.exists()  # so it would have


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read as a checkpoint"),
        (b"<html>404 Not Found</html>", "cannot be read as a checkpoint"),
        (b"PK\x03\x04 cut off", "cannot be read as a checkpoint"),
        (None, "there is no such file"),
    ],
)
def test_a_file_that_is_no_checkpoint(tmp_path, words, content, said):
    file = tmp_path / "model.pth"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=rf"models\.blip = .*model\.pth.*({said})"):
        Blip(Models(blip=str(file), blip_tokenizer=str(words), device="cpu"), Caption())


def test_a_checkpoint_that_was_cut_short(model, settings):
    models = settings({"model": originals_names(model)})
    os.truncate(models.blip, os.path.getsize(models.blip) // 2)
    with pytest.raises(DataError, match=r"models\.blip = .*model\.pth"):
        Blip(models, Caption())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state_dict": {}}, "found state_dict, expected tensors under 'model'"),
        ({"model": collections.OrderedDict(a=1)}, "found model, expected tensors under 'model'"),
        ([1, 2], "expected tensors under 'model'"),
        ({"model": {}}, "tensors missing"),
    ],
)
def test_a_checkpoint_of_something_else(settings, content, said):
    with pytest.raises(DataError, match=said):
        Blip(settings(content), Caption())


def test_a_tokenizer_that_is_not_at_hand_or_another(model, settings, tmp_path, monkeypatch):
    models = settings({"model": originals_names(model)})
    other = write_vocabulary(tmp_path / "other", 70)
    for where, said in (
        (tmp_path / "nowhere", "no BERT tokenizer could be read there"),
        (other, "found 72 tokens with .*models.blip has 62"),
    ):
        with pytest.raises(DataError, match=rf"models\.blip_tokenizer = '{where}'.*{said}"):
            Blip(Models(blip=models.blip, blip_tokenizer=str(where), device="cpu"), Caption())


def test_offline_without_a_tokenizer_is_one_clear_error(model, settings, tmp_path):
    """bert-base-uncased by its hub id, in a process that may not ask the hub."""
    models = settings({"model": originals_names(model)})
    code = (
        "from nsdcap.blip import Blip; from nsdcap.config import Caption, Models\n"
        f"Blip(Models(blip={models.blip!r}, device='cpu'), Caption())"
    )
    places = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **places}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert "models.blip_tokenizer = 'bert-base-uncased': no BERT tokenizer" in last
    assert "vocab.txt" in last
