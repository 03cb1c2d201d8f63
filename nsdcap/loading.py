"""Models' parts as their libraries load them, every tensor accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import torch

from nsdcap.errors import DataError, NsdcapError, first_line

# Counters 0, 1, 2 ... that older releases of transformers saved with CLIP's weights.
HARMLESS = ("position_ids",)


def load_part(
    kind: Any, setting: str, where: str, part: str = "", dtype: str = "float32", **options: Any
) -> Any:
    """A model of transformers or diffusers, ready for use: in eval mode, without gradients.

    ``kind`` is its class, ``where`` the hub id or folder that ``setting`` names, ``part`` a folder in
    it, ``dtype`` torch's name of one; ``options`` are for its ``from_pretrained``.

    Raises
    ------
    DataError
        It cannot be read there, or a tensor is missing, surplus or of another shape. Surplus ones that
        end in a word of ``HARMLESS`` are left out.
    """
    place = f"{setting} = {where!r}" + (f", {part}" if part else "")
    if kind.__module__.startswith("transformers"):
        options["ignore_mismatched_sizes"] = True  # reports them by name, which it else does not
    with reading(place, kind.__name__):
        model, report = kind.from_pretrained(
            where,
            subfolder=part,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            **options,
        )
    surplus = [key for key in report["unexpected_keys"] if not key.endswith(HARMLESS)]
    found = {
        "missing": report["missing_keys"],
        "surplus": surplus,
        "of another shape": report["mismatched_keys"],
    }
    wrong = [f"{len(keys)} {how}: {_few(keys)}" for how, keys in found.items() if keys]
    if wrong:
        raise DataError(
            f"{place}: the weights are not those of the configuration beside them, tensors "
            f"{'; '.join(wrong)}; expected those of {kind.__name__}, no more and no fewer: fetch the "
            "folder again"
        )
    return model.eval().requires_grad_(False)


@contextmanager
def reading(place: str, what: str) -> Iterator[None]:
    """Within it the libraries' errors as they read ``what`` at ``place`` become one DataError."""
    try:
        yield
    except UnpicklingError as error:
        raise DataError(
            f"{place}: a file of {what} is damaged, or holds code beside tensors and is not run; fetch it "
            "anew, best as safetensors"
        ) from error
    except (NsdcapError, ImportError, MemoryError):
        raise
    except Exception as error:  # a damaged file may raise anything in torch's unpickler
        raise DataError(
            f"{place}: no {what} could be read there ({first_line(error)}); "
            "give a folder in Hugging Face's layout or a hub id"
        ) from error


def _few(keys: Any, most: int = 5) -> str:
    names = sorted(key if isinstance(key, str) else str(key[0]) for key in keys)
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")
