"""Which processor the models run on, and their libraries kept from chatting."""

from __future__ import annotations

from nsdcap.errors import UsageError


def choose_device(wanted: str):
    """The torch device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    UsageError
        Another word, or a GPU was asked for and there is none.
    """
    import torch

    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UsageError(f"models.device: found {wanted!r}, expected auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"models.device = {wanted!r}: torch finds no GPU here; use auto or cpu")
    return device


def quiet() -> None:
    """No loading bars and no advice from transformers and diffusers; their errors stay."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def array_library(wanted: str):
    """The array module that ridge computes with: numpy for ``cpu``, cupy for ``cuda``.

    ``auto`` takes cupy where it is installed and finds a GPU.

    Raises
    ------
    UsageError
        Another word, or ``cuda`` where CuPy is missing or finds no GPU.
    """
    import numpy

    if wanted not in ("auto", "cpu", "cuda"):
        raise UsageError(f"ridge.device: found {wanted!r}, expected auto, cpu or cuda")
    if wanted == "cpu":
        return numpy
    try:
        import cupy

        if cupy.cuda.runtime.getDeviceCount() > 0:
            return cupy
        why = "finds no GPU"
    except ImportError:
        why = "is not installed"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        why = f"cannot use the GPU: {error}"
    if wanted == "cuda":
        raise UsageError(
            f"ridge.device = 'cuda': CuPy {why}; install nsdcap[cuda12] or [cuda13], or use auto or cpu"
        )
    return numpy
