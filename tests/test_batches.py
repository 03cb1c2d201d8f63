"""Batches that do not fit are halved, and nothing is computed twice."""

import numpy as np
import pytest

from nsdcap import config, miniature
from nsdcap.batches import in_batches
from nsdcap.blip import Blip
from nsdcap.diffusion import Diffusion, resize
from nsdcap.features import posterior_noise
from nsdcap.score import Clip


def fits(most: int, seen: list[slice]):
    def compute(rows: slice) -> list[int]:
        if rows.stop - rows.start > most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        seen.append(rows)
        return list(range(rows.start, rows.stop))

    return compute


@pytest.mark.parametrize(("most", "fitted"), [(8, 8), (7, 4), (1, 1)])
def test_every_row_once_and_in_order(most, fitted, capsys):
    seen: list[slice] = []
    parts, batch = in_batches(fits(most, seen), 19, 8, "features")
    assert [row for part in parts for row in part] == list(range(19))
    assert batch == fitted
    told = capsys.readouterr().out
    assert told.count("do not fit into memory") == {8: 0, 4: 1, 1: 3}[fitted]
    assert told.endswith(f"going on with {fitted}\n") == (fitted < 8)


def test_memory_that_runs_out_later_keeps_what_is_done():
    seen: list[slice] = []
    many = fits(8, seen)

    def compute(rows: slice) -> list[int]:
        return many(rows) if rows.start < 8 else fits(3, seen)(rows)

    in_batches(compute, 16, 8, "features")
    assert [(rows.start, rows.stop) for rows in seen][:2] == [(0, 8), (8, 10)]


def test_other_errors_and_too_little_for_one_row_are_raised():
    def broken(rows: slice) -> None:
        raise ValueError("no such picture")

    with pytest.raises(ValueError, match="no such picture"):
        in_batches(broken, 4, 2, "features")
    with pytest.raises(RuntimeError, match="features: not even one fits into memory"):
        in_batches(fits(0, []), 4, 2, "features")


def test_no_rows_are_no_parts():
    assert in_batches(fits(1, []), 0, 4, "features") == ([], 4)


def test_no_rows_are_no_results_of_the_same_shape():
    """Of every method, beside what it gives of one row."""
    places = {name: str(miniature.MODELS / name) for name in ("blip", "diffusion", "clip")}
    models = config.Models(**places, device="cpu")
    settings = config.Reconstruct(coarse_size=32, size=64, steps=2)
    blip, painter, clip = Blip(models, config.Caption()), Diffusion(models, settings), Clip(models)
    picture, ids = np.zeros((1, 50, 60, 3), np.uint8), np.array([7])
    z_v, written, texts = blip.features(picture), [blip.tokens("a red ball")], ["a red ball"]
    z, c = painter.encode(picture, 32), painter.text_latents(texts)
    coarse, noise = painter.coarse(z), painter.noise(0, 1, ids, 0)
    sampling = config.load(settings=("reconstruct.posterior=sample", "reconstruct.coarse_size=32"))
    methods = [
        (blip.features, picture), (blip.write, z_v), (blip.texts, written), (blip.captions, z_v),
        (blip.text_states, z_v, written), (lambda some: painter.encode(some, 32), picture),
        (painter.decode, z), (painter.coarse, z), (painter.text_latents, texts),
        (painter.latents, coarse, c, noise), (painter.reconstruct, coarse, c, noise),
        (lambda some: painter.noise(0, 1, some, 0), ids), (clip.pictures, picture), (clip.texts, texts),
        (lambda some: posterior_noise(painter, some, sampling), ids),
        (lambda some: resize(some, 20), picture),
    ]  # fmt: skip
    for method, *given in methods:
        one, none = method(*given), method(*(each[:0] for each in given))
        assert (len(one), len(none)) == (1, 0)
        if isinstance(one, np.ndarray):
            assert (none.shape, none.dtype) == ((0, *one.shape[1:]), one.dtype)
