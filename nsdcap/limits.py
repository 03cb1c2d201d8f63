"""What models allow of the settings, told before any work by their small files alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from nsdcap import headers, weights
from nsdcap.cells import sessions_of
from nsdcap.config import Caption, Config, Models, Reconstruct
from nsdcap.errors import DataError, UsageError, first_line
from nsdcap.model_files import is_checkpoint, read_configuration
from nsdcap.nsd import NSD
from nsdcap.stages import SOLVERS, blip_config


def check(settings: Config, loaded: Iterable[str]) -> None:
    """Refuse settings that the models ``loaded``, which are at hand, cannot follow.

    Raises
    ------
    UsageError
        A picture size that is no multiple of the ViT's patch or of the autoencoder's reduction, a caption
        that has no room after its prompt or is longer than the text decoder's positions.
    DataError
        A configuration or tokenizer that is damaged, a model of another kind, tensors that are not those of
        its configuration.
    """
    models = settings.models
    loaded = set(loaded)
    for model in sorted(loaded):
        headers.check(model, getattr(models, model))
    if "blip_tokenizer" in loaded:
        _check_vocabulary(models)
    blip = blip_config(models.blip) if "blip" in loaded else {}
    if blip.get("model_type", "blip") == "blip" and blip:  # of another model its class tells
        check_picture_size(models.picture_size, blip.get("vision_config", {}).get("patch_size", 16))
        prompt = prompt_length(models, settings.caption.prompt)
        if prompt is not None:
            positions = blip.get("text_config", {}).get("max_position_embeddings", 512)
            check_lengths(settings.caption, prompt, positions)
    if "diffusion" in loaded:
        folder = _folder(models.diffusion)
        if folder and (file := folder / "vae" / "config.json").is_file():
            setting = f"models.diffusion = {models.diffusion!r}"
            check_sizes(settings.reconstruct, read_configuration(setting, file))


def check_picture_size(wanted: int, patch: int) -> None:
    """Raise UsageError for BLIP's pictures of ``wanted`` pixels that patches of ``patch`` do not fill."""
    if wanted % patch:
        raise UsageError(
            f"models.picture_size: found {wanted}, expected a multiple of {patch}, the patch of models.blip's "
            "ViT"
        )


def check_lengths(caption: Caption, prompt: int, positions: int) -> None:
    """Raise UsageError where a caption's tokens, ``prompt`` of them given before, cannot be written at the
    text decoder's ``positions``."""
    if caption.max_length <= prompt:
        raise UsageError(
            f"caption.max_length: found {caption.max_length}, expected more than {prompt}, the tokens of "
            f"caption.prompt = {caption.prompt!r} and its [DEC]; shorten the prompt or raise the length"
        )
    if caption.max_length > positions:
        raise UsageError(
            f"caption.max_length: found {caption.max_length}, expected at most {positions}, the positions of "
            "models.blip's text decoder"
        )


def check_sizes(settings: Reconstruct, autoencoder: Any) -> int:
    """The factor by which an autoencoder of this configuration reduces pictures.

    Raises
    ------
    UsageError
        A size that is not a multiple of it.
    """
    reduction = 2 ** (len(autoencoder.get("block_out_channels", (128, 256, 512, 512))) - 1)
    for size in ("coarse_size", "size"):
        if getattr(settings, size) % reduction:
            raise UsageError(
                f"reconstruct.{size}: found {getattr(settings, size)}, expected a multiple of {reduction}, by "
                "which the autoencoder of models.diffusion reduces"
            )
    return reduction


def prompt_length(models: Models, prompt: str) -> int | None:
    """Tokens of a prompt, [DEC] included, by the tokenizer's file; None where there is none to read.

    By the library under transformers', which loads in a moment. DataError where the file is damaged.
    """
    name = "blip_tokenizer" if is_checkpoint(models.blip) else "blip"
    tokenizer = _tokenizer(name, getattr(models, name))
    if tokenizer is None:
        return None
    return 1 + len(tokenizer.encode(prompt, add_special_tokens=False).ids)


def _tokenizer(name: str, where: str) -> Any:
    """A folder's or hub id's tokenizer, None where it is not at hand; DataError where it is damaged."""
    from tokenizers import Tokenizer
    from tokenizers.implementations import BertWordPieceTokenizer

    if (folder := _folder(where)) is None:
        return None
    kinds: dict[str, Any] = {
        "tokenizer.json": Tokenizer.from_file,
        "vocab.txt": BertWordPieceTokenizer,
    }
    files = [folder / kind for kind in kinds if (folder / kind).is_file()]
    if not files:
        return None
    try:
        return kinds[files[0].name](str(files[0]))
    except Exception as error:  # the library has no class of its own for them
        raise DataError(
            f"models.{name} = {where!r}: {files[0]} cannot be read as a tokenizer ({first_line(error)}); "
            "fetch the model again"
        ) from error


def check_folds(settings: Config, nsd: NSD, stages: Iterable[str]) -> None:
    """Raise UsageError where a stage of ``stages`` that fits by folds has fewer training pictures than folds;
    DataError as ``NSD.trials``."""
    if not SOLVERS & set(stages):
        return
    for subject in settings.data.subjects:
        sessions = sessions_of(settings, nsd, subject)
        pictures = np.setdiff1d(nsd.trials(subject, sessions).nsd_id, nsd.shared_ids())
        if len(pictures) < settings.ridge.folds:
            raise UsageError(
                f"setting ridge.folds: found {settings.ridge.folds}, expected at most {len(pictures)}, the "
                f"training pictures of subject {subject} in {len(sessions)} sessions"
            )


def _check_vocabulary(models: Models) -> None:
    """Hold the words of models.blip_tokenizer, which a checkpoint file has beside it, against the checkpoint.

    Raises
    ------
    DataError
        Another number of tokens than it was trained with.
    """
    where = models.blip_tokenizer
    words = _tokenizer("blip_tokenizer", where)
    if words is None:
        return
    # BERT's, and the two that BLIP adds
    found = words.get_vocab_size() + sum(
        words.token_to_id(name) is None for name in ("[DEC]", "[ENC]")
    )
    expected = blip_config(models.blip)["text_config"]["vocab_size"]
    if found != expected:
        raise DataError(
            f"models.blip_tokenizer = {where!r}: found {found} tokens with [DEC] and [ENC], models.blip has "
            f"{expected}; give the tokenizer that it was trained with, bert-base-uncased"
        )


def _folder(where: str) -> Path | None:
    return weights.folder_of(where) if weights.is_path(where) else weights.snapshot(where)
