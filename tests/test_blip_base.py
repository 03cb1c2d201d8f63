"""BLIP at its true size: ViT-B/16 at 224 pixels, BERT base of 30,524 tokens, with random weights."""

import dataclasses
import resource
import time

import numpy as np
import pytest
import torch
from PIL import Image
from small_blip import interpolated, originals_names, random_blip, write_vocabulary

from nsdcap import config
from nsdcap.blip import Blip
from nsdcap.config import Caption, Models

WRITE = Caption()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The model by transformers, and ours of the checkpoint that it was saved as, with its settings."""
    folder = tmp_path_factory.mktemp("base")
    words, file = write_vocabulary(folder / "words", 30522), folder / "model_base.pth"
    model = random_blip(768, 12, 16, 224, 30524)
    torch.save({"model": originals_names(model)}, file)
    models = Models(blip=str(file), blip_tokenizer=str(words), device="cpu")
    yield model, Blip(models, WRITE), models
    file.unlink()


def test_captions_from_z_v_are_those_of_the_picture_token_for_token(base):
    model, blip, _ = base
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (2, 7, 7, 3), np.uint8).repeat(60, 1).repeat(60, 2)
    start = time.time()
    z_v = blip.features(pictures)
    assert z_v.shape == (2, 197, 768)
    texts = blip.captions(z_v)
    print(f"2 pictures to captions in {time.time() - start:.1f} s")
    pixels = blip.images(list(pictures), return_tensors="pt")["pixel_values"]
    ids = model.generate(
        pixel_values=pixels, input_ids=torch.tensor([[*blip.prompt, blip.end]] * 2),
        num_beams=WRITE.beams, min_length=WRITE.min_length, max_length=WRITE.max_length,
        repetition_penalty=WRITE.repetition_penalty, do_sample=False,
    )  # fmt: skip
    expected = [
        [token for token in row[len(blip.prompt) :] if token not in blip.tokenizer.all_special_ids]
        for row in ids.tolist()
    ]
    ours = [blip.tokens(text) for text in texts]
    assert ours == expected
    assert ours[0] != ours[1]
    assert all(len(set(row)) >= 5 for row in ours)  # no word said over and over
    states = blip.text_states(z_v, ours)
    assert states.shape == (2, 13, 3, 768)
    longer = [*ours[0], *blip.prompt[1:], *ours[1]]
    padded = blip.text_states(z_v, [ours[0], longer])[0]  # the first is padded to the second
    np.testing.assert_allclose(padded, states[0], atol=1e-5)
    alone = blip.text_states(z_v[:1], ours[:1])[0]
    np.testing.assert_allclose(alone, states[0], atol=1e-5)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"at most {peak:.1f} GB of memory")


def test_the_released_size_of_240_pixels(base):
    """226 tokens, by positions that are interpolated from those of 224; preset released does not normalise."""
    model, _, models = base
    released = config.load(preset="released").models
    settings = dataclasses.replace(
        models, picture_size=released.picture_size, normalise=released.normalise
    )
    blip = Blip(settings, dataclasses.replace(WRITE, max_length=8))
    picture = np.random.default_rng(2).integers(0, 256, (1, 5, 5, 3), np.uint8)
    picture = picture.repeat(85, 1).repeat(85, 2)  # 425 pixels, as NSD's
    z_v = blip.features(picture)
    assert z_v.shape == (1, 226, 768)
    first = model.vision_model.embeddings.position_embedding
    ours = blip.model.vision_model.embeddings.position_embedding
    torch.testing.assert_close(ours.data, interpolated(first, 15).data, rtol=0, atol=0)
    small = Image.fromarray(picture[0]).resize((240, 240), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float() / 255
    theirs = model.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
    np.testing.assert_allclose(z_v, theirs, atol=1e-4)
    ids = model.generate(
        pixel_values=pixels, input_ids=torch.tensor([[*blip.prompt, blip.end]]), max_length=8,
        num_beams=WRITE.beams, min_length=WRITE.min_length, do_sample=False,
        repetition_penalty=WRITE.repetition_penalty, interpolate_pos_encoding=True,
    )  # fmt: skip
    row = ids[0, len(blip.prompt) :].tolist()
    assert blip.write(z_v) == [row[: row.index(blip.end)] if blip.end in row else row]
