"""Pictures made ready for a ViT by threads, while it computes; the bits of transformers' PIL processor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image

from nsdcap.errors import DataError


class Pixels:
    """What a processor of transformers makes of pictures that it resizes to a square.

    Pillow resizes, and lets other threads run meanwhile. Rescaling and normalising make one number of a
    level and a channel, so the processor is asked once for those of all 256 levels.

    Raises
    ------
    DataError
        It does something else to pictures; ``place`` names it.
    """

    def __init__(self, processor: Any, place: str):
        self.size = (processor.size["width"], processor.size["height"])
        self.resample = processor.resample
        ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
        found = processor([ramp], do_resize=False, return_tensors="pt")["pixel_values"][0]
        self.table = found.flatten(1).numpy()  # (3, 256)
        picture = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
        expected = processor([picture], return_tensors="pt")["pixel_values"]
        as_usual = self.table.shape == (3, 256)
        if not as_usual or not np.array_equal(self.of(picture), expected[0]):
            raise DataError(
                f"{place}: its image processor does more to pictures than to resize them to {self.size}, to "
                "rescale and to normalise them"
            )

    def of(self, picture: np.ndarray) -> np.ndarray:
        """(3, height, width) float32 of a picture (h, w, 3) uint8."""
        levels = np.asarray(Image.fromarray(picture).resize(self.size, self.resample))
        found = np.empty((3, *levels.shape[:2]), np.float32)
        for channel, values in enumerate(self.table):
            np.take(values, levels[..., channel], out=found[channel], mode="clip")
        return found

    @contextmanager
    def ahead(self, pictures: np.ndarray) -> Iterator[Callable[[slice], torch.Tensor]]:
        """In the block a function that gives the pixels of some rows of ``pictures`` (n, h, w, 3) uint8.

        As many threads as torch's make them, in their order, beside what is computed of those before.
        Rows are asked for one slice after another, the last one again if need be. Memory: the pixels of two
        slices, float32.
        """
        if len(pictures) == 1:  # there is nothing beside it
            yield lambda rows: torch.from_numpy(self.of(pictures[0])[None])
            return
        pool = ThreadPoolExecutor(torch.get_num_threads())
        waiting: dict[int, Future[np.ndarray]] = {}

        def pixels(rows: slice) -> torch.Tensor:
            for row in [row for row in waiting if row < rows.start]:
                del waiting[row]
            for row in range(rows.start, min(2 * rows.stop - rows.start, len(pictures))):
                if row not in waiting:
                    waiting[row] = pool.submit(self.of, pictures[row])
            found = [waiting[row].result() for row in range(rows.start, rows.stop)]
            return torch.from_numpy(np.stack(found))

        try:
            yield pixels
        finally:
            pool.shutdown(cancel_futures=True)
