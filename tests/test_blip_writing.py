"""What ``Caption``'s docstring says of lengths, beams and the penalty, against a plain beam search."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from small_blip import SPECIAL, originals_names, random_blip

from nsdcap import miniature
from nsdcap.blip import Blip
from nsdcap.config import Caption, Models
from nsdcap.miniature import world

MODELS = Models(blip=str(miniature.MODELS / "blip"), device="cpu")


def plain_search(
    blip: Blip,
    z_v: np.ndarray,
    settings: Caption,
    unpunished: int,
    length: Callable[[list[int]], int],
) -> list[int]:
    """The best sequence of one picture, prompt included, by beam search written out.

    Log-probabilities of words that a sequence holds, but its first ``unpunished``, are multiplied by the
    penalty; a finished sequence is judged by its sum over ``length``. One beam: the best logit each time,
    which the penalty divides where it is above 0. No cache: all is computed anew.
    """
    end, beams, z = blip.end, settings.beams, torch.from_numpy(z_v)[None]
    running, finished = [(0.0, list(blip.prompt))], []
    while True:
        found = []
        for total, row in running:
            with torch.no_grad():
                logits = blip.model.text_decoder(
                    input_ids=torch.tensor([row]), encoder_hidden_states=z
                ).logits[0, -1]
            scores = (torch.log_softmax(logits, -1) if beams > 1 else logits).tolist()
            for word in set(row[unpunished:]):
                penalty = settings.repetition_penalty
                scores[word] *= penalty if scores[word] < 0 else 1 / penalty
            if len(row) < settings.min_length:
                scores[end] = -np.inf
            found += [(total + score, [*row, word]) for word, score in enumerate(scores)]
        found = sorted(found, reverse=True)[: 2 * beams]
        full = len(found[0][1]) == settings.max_length
        ended = [pair for pair in found[:beams] if pair[1][-1] == end or full]
        finished += [(total / length(row), row) for total, row in ended]
        finished = sorted(finished, reverse=True)[:beams]
        running = [pair for pair in found if pair[1][-1] != end][:beams]
        if full or (beams == 1 and finished):
            return finished[0][1]
        if len(finished) == beams and finished[-1][0] >= running[0][0] / length(running[0][1]):
            return finished[0][1]


def texts_of(
    blip: Blip, z_v: np.ndarray, settings: Caption, unpunished=0, length=None
) -> list[str]:
    prompt = len(blip.prompt)
    length = length or (lambda row: len(row) - prompt)
    rows = [plain_search(blip, one, settings, unpunished, length) for one in z_v]
    texts = blip.tokenizer.batch_decode([row[prompt:] for row in rows], skip_special_tokens=True)
    return [" ".join(text.split()) for text in texts]


def features(blip: Blip, count: int) -> np.ndarray:
    rng, textures = np.random.default_rng(5), world.Textures(5)
    scenes = [world.draw_scene(rng) for _ in range(count)]
    return blip.features(np.stack([world.render(scene, textures, rng)[0] for scene in scenes]))


@pytest.mark.parametrize(
    "settings",
    [Caption(), Caption(beams=1), Caption(beams=5, repetition_penalty=1.0),
     Caption(prompt="a ball", max_length=11), Caption(prompt="a ball", min_length=14)],
)  # fmt: skip
def test_captions_are_those_of_a_plain_search(settings):
    blip = Blip(MODELS, settings)
    z_v = features(blip, 6)
    assert blip.captions(z_v) == texts_of(blip, z_v, settings)


def test_penalty_counts_the_prompt_and_lengths_do_not():
    """On a prompt that holds words of captions the other definitions write other captions."""
    settings = Caption(prompt="a red ball in a field and a", max_length=24)
    blip = Blip(MODELS, settings)
    z_v = features(blip, 12)
    ours = blip.captions(z_v)
    assert ours == texts_of(blip, z_v, settings)
    assert ours != texts_of(blip, z_v, settings, unpunished=len(blip.prompt))


def test_text_states_are_of_the_tokens_that_were_written(tmp_path):
    """Read from their text, many captions of this model would be cut into other tokens: it writes pieces
    that make up words, and special tokens, which the text leaves out."""
    pieces = ["".join(letters) for n in (1, 2, 3, 4) for letters in product("xy", repeat=n)]
    words = ["a", "picture", "of", *pieces, *(f"##{piece}" for piece in pieces)][:55]
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, *words]) + "\n")
    model = random_blip()
    torch.save({"model": originals_names(model)}, tmp_path / "model.pth")
    models = Models(
        blip=str(tmp_path / "model.pth"), blip_tokenizer=str(tmp_path), device="cpu", batch=7
    )
    blip = Blip(models, Caption(max_length=12, repetition_penalty=1.2))
    pictures = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), np.uint8).repeat(8, 1)
    pixels = blip.images(list(pictures), return_tensors="pt")["pixel_values"]
    told = model.generate(
        pixel_values=pixels, input_ids=torch.tensor([[*blip.prompt, blip.end]] * 40), num_beams=3,
        min_length=5, max_length=12, repetition_penalty=1.2, do_sample=False,
    ).tolist()  # fmt: skip
    rows = [row[: row.index(blip.end)] if blip.end in row else row for row in told]
    z_v = blip.features(pictures)
    written = blip.write(z_v)
    assert written == [row[len(blip.prompt) :] for row in rows]
    texts = blip.texts(written)
    assert texts == blip.captions(z_v)
    others = sum(blip.tokens(text) != row for text, row in zip(texts, written, strict=True))
    assert others > 20
    z_b = blip.text_states(z_v, written)
    for number, row in enumerate(rows):
        hidden = model.text_decoder(
            input_ids=torch.tensor([row]), encoder_hidden_states=torch.from_numpy(z_v[[number]]),
            output_hidden_states=True,
        ).hidden_states  # fmt: skip
        states = torch.stack(hidden)[:, 0, len(blip.prompt) :].numpy()
        # each position counts 60 times: 60 is a multiple of three whatever the length
        spread = np.stack(np.split(np.repeat(states, 60, axis=1), 3, axis=1), 1).mean(2)
        np.testing.assert_allclose(z_b[number], spread, atol=1e-5)


@pytest.mark.byhand
def test_how_other_definitions_differ():
    """Prints the share of captions that change; the figures are in ``Caption``'s docstring."""
    settings = Caption()
    blip = Blip(MODELS, settings)
    z_v = features(blip, 200)
    ours = blip.captions(z_v)
    for what, found in {
        "prompt not punished": texts_of(blip, z_v, settings, unpunished=len(blip.prompt)),
        # transformers 4.15, of BLIP's own code: the length has the prompt and not the end
        "length with prompt": texts_of(
            blip, z_v, settings, length=lambda row: len(row) - (row[-1] == blip.end)
        ),
        "no penalty": Blip(MODELS, Caption(repetition_penalty=1.0)).captions(z_v),
    }.items():
        changed = sum(one != other for one, other in zip(ours, found, strict=True))
        print(f"{what}: {changed} of {len(ours)} captions change")
