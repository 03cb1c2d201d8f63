"""BLIP: ours against transformers' own generate, and text states against plain sums."""

import dataclasses

import numpy as np
import pytest
import torch

from nsdcap import miniature
from nsdcap.blip import Blip
from nsdcap.config import Caption, Models
from nsdcap.errors import DataError
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


def test_text_states_are_means_over_thirds_of_the_written_tokens(blip, z_v):
    texts = ["a red ball on the beach", "a car", "one sees a bird at night"][:1] * 2
    texts += ["there is a white house in a grass field"]
    states = blip.text_states(z_v[:3], texts)
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
    one, other = (blip.text_states(z_v[:1], [text])[0] for text in (first, second))
    np.testing.assert_allclose(one[:, 0], other[:, 0], atol=1e-5)
    assert np.abs(one[:, 2] - other[:, 2]).max() > 0.1


def test_batch_of_one_equals_batch_of_many(blip, pictures, z_v):
    texts = blip.captions(z_v)
    together = blip.text_states(z_v, texts)
    alone = Blip(dataclasses.replace(MODELS, batch=1), Caption())
    np.testing.assert_allclose(alone.features(pictures), z_v, atol=1e-5)
    assert alone.captions(z_v) == texts
    np.testing.assert_allclose(alone.text_states(z_v, texts), together, atol=1e-5)


def test_other_picture_sizes_interpolate_positions(pictures):
    larger = Blip(dataclasses.replace(MODELS, picture_size=80), Caption())
    assert larger.features(pictures[:2]).shape == (2, 101, 128)


def test_a_caption_too_short_for_three_phases_is_refused(blip, z_v):
    with pytest.raises(DataError, match="fewer than 3 tokens"):
        blip.text_states(z_v[:1], ["a car"])


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
