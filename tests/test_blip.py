"""BLIP: ours against transformers' own generate, and text states against plain sums."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_blip import interpolated

from nsdcap import miniature
from nsdcap.blip import Blip
from nsdcap.config import Caption, Models
from nsdcap.errors import DataError, UsageError
from nsdcap.miniature import world

MODELS = Models(blip=str(miniature.MODELS / "blip"), device="cpu", batch=7)


@pytest.fixture(scope="module")
def blip():
    return Blip(MODELS, Caption())


@pytest.fixture(scope="module")
def pictures():
    rng, textures = np.random.default_rng(3), world.Textures(3)
    return np.stack([world.render(world.draw_scene(rng), textures, rng)[0] for _ in range(20)])


@pytest.fixture(scope="module")
def z_v(blip, pictures):
    return blip.features(pictures)


def test_captions_are_those_that_generate_writes_for_the_picture(blip, pictures, z_v):
    settings = Caption()
    pixels = blip.images(list(pictures), return_tensors="pt")["pixel_values"]
    # generate drops the prompt's last token: it expects the [SEP] that a tokenizer puts there
    prompt = torch.tensor([[*blip.prompt, blip.end]] * len(pictures))
    written = blip.model.generate(
        pixel_values=pixels,
        input_ids=prompt,
        num_beams=settings.beams,
        min_length=settings.min_length,
        max_length=settings.max_length,
        repetition_penalty=settings.repetition_penalty,
        do_sample=False,
    )
    decoded = blip.tokenizer.batch_decode(written, skip_special_tokens=True)
    expected = [text.removeprefix(settings.prompt).strip() for text in decoded]
    assert blip.captions(z_v) == expected
    assert len(set(expected)) > 10


def test_z_v_is_the_normed_output_sequence(blip, pictures, z_v):
    pixels = blip.images(list(pictures[:3]), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = blip.model.vision_model(pixels).last_hidden_state.numpy()
    assert z_v.shape == (20, 65, 128)
    np.testing.assert_allclose(z_v[:3], expected, atol=1e-5)


@pytest.mark.parametrize(("size", "normalise"), [(64, True), (80, True), (40, False)])
def test_z_v_is_of_the_bits_that_the_image_processor_gives(blip, pictures, size, normalise):
    """And of the pictures' own order, whatever thread has resized them."""
    shown = np.random.default_rng(9).integers(0, 256, (20, 97, 113, 3), np.uint8)
    shown[:, ::2] = np.resize(pictures, (20, 49, 113, 3))
    other = Blip(dataclasses.replace(MODELS, picture_size=size, normalise=normalise), Caption())
    found = other.features(shown)
    for start in range(0, 20, MODELS.batch):
        rows = slice(start, start + MODELS.batch)
        pixels = other.images(list(shown[rows]), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            expected = other.model.vision_model(pixels).last_hidden_state.numpy()
        np.testing.assert_array_equal(found[rows], expected)
    np.testing.assert_allclose(other.features(shown[3:4])[0], found[3], atol=1e-5)


def test_a_processor_that_does_more_is_refused(folder):
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    settings["image_processor"] |= {
        "do_center_crop": True,
        "crop_size": {"height": 32, "width": 32},
    }
    file.write_text(json.dumps(settings))
    with pytest.raises(DataError, match=r"models\.blip = .*image processor does more"):
        Blip(Models(blip=str(folder), device="cpu"), Caption())


def test_text_states_are_means_over_thirds_of_the_written_tokens(blip, z_v):
    texts = ["a red ball on the beach", "a car", "one sees a bird at night"][:1] * 2
    texts += ["there is a white house in a grass field"]
    states = text_states(blip, z_v[:3], texts)
    assert states.shape == (3, blip.states, 3, 128)
    for row, text in enumerate(texts):
        words = blip.tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            output = blip.model.text_decoder(
                input_ids=torch.tensor([[*blip.prompt, *words]]),
                encoder_hidden_states=torch.from_numpy(z_v[row : row + 1]),
                output_hidden_states=True,
            )
        hidden = torch.stack(output.hidden_states)[:, 0, len(blip.prompt) :].numpy()
        # each position counts 60 times: 60 is a multiple of three whatever the length
        spread = np.repeat(hidden, 60, axis=1)
        thirds = np.stack(np.split(spread, 3, axis=1), 1).mean(2)  # (states, 3, width)
        np.testing.assert_allclose(states[row], thirds, atol=1e-5)


def test_text_states_see_no_later_word(blip, z_v):
    """The decoder is causal: the first third does not change with the caption's last words."""
    first, second = "a red ball on the beach", "a red ball in the snow"
    one, other = (text_states(blip, z_v[:1], [text])[0] for text in (first, second))
    np.testing.assert_allclose(one[:, 0], other[:, 0], atol=1e-5)
    assert np.abs(one[:, 2] - other[:, 2]).max() > 0.1


def test_batch_of_one_equals_batch_of_many(blip, pictures, z_v):
    written = blip.write(z_v)
    together = blip.text_states(z_v, written)
    alone = Blip(dataclasses.replace(MODELS, batch=1), Caption())
    np.testing.assert_allclose(alone.features(pictures), z_v, atol=1e-5)
    assert alone.write(z_v) == written
    np.testing.assert_allclose(alone.text_states(z_v, written), together, atol=1e-5)


@pytest.mark.parametrize("size", [64, 80, 40])
def test_other_picture_sizes_interpolate_positions_as_blip_does(blip, pictures, size):
    other = Blip(dataclasses.replace(MODELS, picture_size=size), Caption())
    z_v = other.features(pictures[:2])
    assert z_v.shape == (2, (size // 8) ** 2 + 1, 128)
    embeddings = other.model.vision_model.embeddings
    first = blip.model.vision_model.embeddings.position_embedding
    expected = first if size == 64 else interpolated(first, size // 8)
    torch.testing.assert_close(embeddings.position_embedding.data, expected.data, rtol=0, atol=0)
    # and as transformers does it at each picture
    pixels = other.images(list(pictures[:2]), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        theirs = blip.model.vision_model(pixels, interpolate_pos_encoding=True)
    np.testing.assert_allclose(z_v, theirs.last_hidden_state, atol=1e-5)


def test_a_size_that_is_no_multiple_of_the_patch_is_refused():
    with pytest.raises(
        UsageError, match=r"models\.picture_size: found 60, expected a multiple of 8"
    ):
        Blip(dataclasses.replace(MODELS, picture_size=60), Caption())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_nearly_the_same_in_float32(pictures, z_v, blip, dtype):
    half = Blip(dataclasses.replace(MODELS, dtype=dtype), Caption())
    found = half.features(pictures)
    assert found.dtype == np.float32
    spread = z_v.std()
    assert 0 < np.abs(found - z_v).mean() < {"bfloat16": 0.03, "float16": 0.004}[dtype] * spread
    full, rounded = blip.write(z_v), half.write(z_v)
    assert np.mean([one == other for one, other in zip(full, rounded, strict=True)]) >= 0.7
    states, expected = half.text_states(z_v, full), blip.text_states(z_v, full)
    assert states.dtype == np.float32
    assert 0 < np.abs(states - expected).mean() < 0.05 * expected.std()


def test_a_batch_that_does_not_fit_is_halved_and_stays_so(pictures, z_v, monkeypatch, capsys):
    small = Blip(dataclasses.replace(MODELS, batch=16), Caption())
    see = small.model.vision_model.forward

    def short_of_memory(pixels, *rest, **named):
        if len(pixels) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return see(pixels, *rest, **named)

    monkeypatch.setattr(small.model.vision_model, "forward", short_of_memory)
    np.testing.assert_allclose(small.features(pictures), z_v, atol=1e-5)
    assert small.batch == 4
    assert "BLIP: 8 at a time do not fit into memory, going on with 4" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["a", "a car"])
def test_a_caption_of_one_or_two_words_has_three_phases(blip, z_v, text):
    """The prompt's tokens count to the shortest length, so such captions are written; others beside it
    do not change."""
    other = "a red ball on the beach"
    alone = text_states(blip, z_v[:1], [text])[0]
    together = text_states(blip, z_v[:2], [text, other])
    np.testing.assert_allclose(together[0], alone, atol=1e-5)
    np.testing.assert_allclose(together[1], text_states(blip, z_v[1:2], [other])[0], atol=1e-5)
    hidden = states_of(blip, z_v[0], text)  # (states, tokens, width)
    np.testing.assert_allclose(alone[:, 0], hidden[:, 0], atol=1e-5)
    np.testing.assert_allclose(alone[:, 1], hidden.mean(1), atol=1e-5)
    np.testing.assert_allclose(alone[:, 2], hidden[:, -1], atol=1e-5)


def test_a_caption_of_nothing_has_the_state_at_which_that_was_decided(blip, z_v):
    prompt_alone = states_of(blip, z_v[0], "", skip=0)[:, -1]
    for texts in ([""], ["", "a red ball on the beach"]):
        found = text_states(blip, z_v[: len(texts)], texts)[0]
        for phase in range(3):
            np.testing.assert_allclose(found[:, phase], prompt_alone, atol=1e-5)


def text_states(blip, z_v, texts):
    return blip.text_states(z_v, [blip.tokens(text) for text in texts])


def states_of(blip, z, text, skip=None):
    """Hidden states (states, tokens, width) of the written tokens, by the decoder itself."""
    words = blip.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    with torch.no_grad():
        output = blip.model.text_decoder(
            input_ids=torch.tensor([[*blip.prompt, *words]]),
            encoder_hidden_states=torch.from_numpy(z[None]),
            output_hidden_states=True,
        )
    skip = len(blip.prompt) if skip is None else skip
    return torch.stack(output.hidden_states)[:, 0, skip:].numpy()


@pytest.fixture
def folder(tmp_path):
    """A copy of the miniature's captioner, to be spoilt."""
    return Path(shutil.copytree(miniature.MODELS / "blip", tmp_path / "blip"))


def spoil(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return Models(blip=str(folder), device="cpu")


def test_weights_that_do_not_fit_are_one_error_that_lists_them(folder):
    def change(tensors):
        del tensors["vision_model.post_layernorm.bias"]
        tensors["vision_model.head.weight"] = torch.zeros(3)
        name = "text_decoder.bert.encoder.layer.2.crossattention.self.key.weight"
        tensors[name] = tensors[name][:5].clone()

    with pytest.raises(DataError) as error:
        Blip(spoil(folder, change), Caption())
    for words in (
        str(folder),
        "1 missing: vision_model.post_layernorm.bias",
        "1 surplus: vision_model.head.weight",
        "1 of another shape: text_decoder.bert.encoder.layer.2.crossattention",
    ):
        assert words in str(error.value)


def test_positions_kept_by_older_versions_do_no_harm(folder, blip, pictures, z_v):
    def change(tensors):
        tensors["text_decoder.bert.embeddings.position_ids"] = torch.arange(32)[None]

    older = Blip(spoil(folder, change), Caption())
    np.testing.assert_array_equal(older.features(pictures[:7]), z_v[:7])


def test_a_folder_without_vocabulary_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"models\.blip = .*tokeniz"):
        Blip(Models(blip=str(folder), device="cpu"), Caption())


@pytest.mark.parametrize("folder", ["clip", "nowhere"])
def test_a_folder_without_blip_is_refused(folder):
    models = dataclasses.replace(MODELS, blip=str(miniature.MODELS / folder))
    with pytest.raises(DataError, match=r"models\.blip"):
        Blip(models, Caption())


def test_the_miniature_captioner_describes_pictures_it_never_saw(blip):
    """Planted truth: place >= .95, object recall >= .90, colour given the object >= .90."""
    rng, textures = np.random.default_rng(17), world.Textures(17)
    scenes = [world.draw_scene(rng) for _ in range(150)]
    shown = np.stack([world.render(scene, textures, rng)[0] for scene in scenes])
    read = [world.read_caption(text) for text in blip.captions(blip.features(shown))]
    score = world.compare(scenes, read)
    assert score["place"] >= 0.95
    assert score["kind"] >= 0.90
    assert score["colour"] >= 0.90
