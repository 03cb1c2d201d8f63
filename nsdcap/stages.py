"""The stages: what each reads, what it computes, over which subjects and BERT layers.

prepare   betas -> trials x voxels, split          one cell a subject
features  pictures -> z_v, z_B, z, c               one for the shared pictures, one a subject
decode    voxels -> z_v, c, z of test pictures     one a subject
caption   decoded z_v -> captions                  one a subject
reconstruct  captions, c, z -> pictures            one a subject
compare   pictures -> how near to those shown      one a subject
kernel    z_v -> its kernel's eigenbases           one a subject
encode    z_v, z_B -> voxels, r and p              z_v and each BERT layer, for each subject
aggregate everything -> tables, figures, report    one
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nsdcap import weights
from nsdcap.config import Config
from nsdcap.errors import DataError
from nsdcap.model_files import is_checkpoint, read_configuration
from nsdcap.paths import Cell


@dataclass(frozen=True)
class Stage:
    """A row of the table.

    ``function`` is "module:name", imported when a cell runs, called as
    ``function(cell, config, nsd, out, target)``. ``settings`` are the parts of the configuration
    that its result depends on, ``weights`` the models and ``nsd`` the kinds of NSD files it reads.
    ``inputs`` are the same for all layers of a subject: it is called without one. ``shared_out``: its
    pictures may be divided among processes, see ``shards``.
    """

    function: str
    cells: Callable[[Config], list[Cell]]
    inputs: Callable[[Cell, Config], list[Cell]]
    settings: tuple[str, ...]
    nsd: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    shared_out: bool = False


def _per_subject(stage: str) -> Callable[[Config], list[Cell]]:
    return lambda config: [Cell(stage, subject) for subject in config.data.subjects]


def _features_cells(config: Config) -> list[Cell]:
    return [Cell("features"), *_per_subject("features")(config)]


def _encode_cells(config: Config) -> list[Cell]:
    return [
        Cell("encode", subject, layer)
        for subject in config.data.subjects
        for layer in (None, *encode_layers(config))
    ]


def _aggregate_inputs(cell: Cell, config: Config) -> list[Cell]:
    stages = ("prepare", "decode", "caption", "reconstruct", "compare", "encode")
    return [cell for stage in stages for cell in STAGES[stage].cells(config)]


def _from(*stages: str) -> Callable[[Cell, Config], list[Cell]]:
    """Inputs of the same subject; of features also the shared pictures."""

    def inputs(cell: Cell, config: Config) -> list[Cell]:
        needed = [Cell(stage, cell.subject) for stage in stages]
        return [*needed, Cell("features")] if "features" in stages else needed

    return inputs


_PICTURES = (
    "models.blip", "models.blip_tokenizer", "models.picture_size", "models.normalise", "models.dtype",
    "models.diffusion",
)  # fmt: skip
_DECODED = ("decode.gain", "decode.intercept")
_FOLDS = ("ridge.folds", "seed")
_RIDGE = (*_FOLDS, "ridge.alphas", "ridge.absolute")

STAGES: dict[str, Stage] = {
    "prepare": Stage(
        "nsdcap.prepare:run",
        _per_subject("prepare"),
        lambda cell, config: [],
        settings=("data.sessions", "data.betas", "data.space", "data.scale", "data.zscore_sessions"),
        nsd=("design", "betas", "volumes"),
    ),
    "features": Stage(
        "nsdcap.features:run",
        _features_cells,
        lambda cell, config: [],
        settings=(*_PICTURES, "data.sessions", "caption", "reconstruct.coarse_size",
                  "reconstruct.posterior", "seed"),
        nsd=("design", "stimuli", "captions"),
        weights=("blip", "diffusion"),
        shared_out=True,
    ),
    "decode": Stage(
        "nsdcap.decode:run",
        _per_subject("decode"),
        _from("prepare", "features"),
        settings=(*_RIDGE, "ridge.group_folds", "roi", "decode.alpha", "decode.z_alphas",
                  "decode.c_alphas", "decode.z_v_alphas"),
    ),
    "caption": Stage(
        "nsdcap.caption:run",
        _per_subject("caption"),
        _from("decode", "features"),
        settings=(*_PICTURES, *_DECODED, "models.clip", "caption"),
        nsd=("stimuli", "captions"),
        weights=("blip", "clip"),
        shared_out=True,
    ),
    "reconstruct": Stage(
        "nsdcap.reconstruct:run",
        _per_subject("reconstruct"),
        _from("decode", "caption"),
        settings=(*_DECODED, "models.diffusion", "models.clip", "models.dtype", "reconstruct",
                  "seed"),
        nsd=("stimuli",),
        weights=("diffusion", "clip"),
        shared_out=True,
    ),
    "compare": Stage(
        "nsdcap.compare:run",
        _per_subject("compare"),
        _from("reconstruct"),
        settings=("models.backbones",),
        weights=("backbones",),
    ),
    "kernel": Stage(
        "nsdcap.kernel:run",
        _per_subject("kernel"),
        _from("prepare", "features"),
        settings=_FOLDS,
    ),
    "encode": Stage(
        "nsdcap.encode:run",
        _encode_cells,
        _from("prepare", "features", "kernel"),
        settings=(*_RIDGE, "encode.ratios", "encode.nulls", "encode.bootstraps"),
    ),
    "aggregate": Stage(
        "nsdcap.aggregate:run",
        lambda config: [Cell("aggregate")],
        _aggregate_inputs,
        settings=("preset", "no_stimuli", "data.subjects", "encode.layers"),
        nsd=("surfaces",),
    ),
}  # fmt: skip


def encode_layers(config: Config) -> tuple[int, ...]:
    """BERT layers to encode from: those asked for, or all that the captioner has.

    Raises
    ------
    DataError
        A layer that the captioner does not have.
    """
    text = blip_config(config.models.blip).get("text_config", {})
    count = 1 + int(text.get("num_hidden_layers", 12))
    wrong = [layer for layer in config.encode.layers if not 0 <= layer < count]
    if wrong:
        raise DataError(
            f"encode.layers: found {wrong}, expected numbers from 0 (embeddings) to {count - 1}, "
            f"the layers of {config.models.blip!r}"
        )
    return config.encode.layers or tuple(range(count))


@lru_cache
def blip_config(where: str) -> dict[str, Any]:
    """A BLIP's config.json, of a folder or a hub id, or what a checkpoint file's tensors tell of it.

    Raises
    ------
    DataError
        Neither a folder with config.json nor a hub id that can be reached, no checkpoint of BLIP, or a
        config.json that is damaged.
    """
    if not where:
        raise DataError(
            "models.blip is empty: give a Hugging Face folder, a hub id or a .pth of a BLIP captioner"
        )
    if is_checkpoint(where):
        from nsdcap.blip_original import configuration, read

        return configuration(read(Path(where)))
    # of the cache first: the library would ask the hub, and make what it has by now the cache's
    folder = Path(where) if weights.is_path(where) else weights.snapshot(where)
    file = (folder or Path(where)) / "config.json"
    if not file.is_file():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HFValidationError

        try:
            file = Path(hf_hub_download(where, "config.json"))
        except (OSError, HFValidationError) as error:
            raise DataError(
                f"models.blip = {where!r}: neither a folder with config.json nor a hub id that can be "
                f"reached; fetch the weights on a machine with a network, python hpc/prefetch.py FOLDER, and "
                "give the folder of it"
            ) from error
    return read_configuration(f"models.blip = {where!r}", file)
