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

import json
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nsdcap import weights
from nsdcap.config import MODEL_NAMES, SPEED, Config
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
    pictures may be divided among processes, see ``shards``. ``unused``: those of ``settings`` that a cell
    does not read with the others as they are; a change of them leaves it as it is.
    """

    function: str
    cells: Callable[[Config], list[Cell]]
    inputs: Callable[[Cell, Config], list[Cell]]
    settings: tuple[str, ...]
    nsd: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    shared_out: bool = False
    unused: Callable[[Cell, Config], set[str]] = lambda cell, config: set()


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


def _no_checkpoint(cell: Cell, config: Config) -> set[str]:
    """A folder of BLIP holds its own vocabulary."""
    return set() if is_checkpoint(config.models.blip) else {"models.blip_tokenizer"}


def _unused_by_features(cell: Cell, config: Config) -> set[str]:
    drawn = config.reconstruct.posterior == "sample"
    return _no_checkpoint(cell, config) | (set() if drawn else {"seed"})


def _unused_by_decode(cell: Cell, config: Config) -> set[str]:
    own = config.decode.z_alphas and config.decode.c_alphas and config.decode.z_v_alphas
    return ({"ridge.alphas"} if own else set()) | (set() if config.ridge.group_folds else {"seed"})


def _unused_by_encode(cell: Cell, config: Config) -> set[str]:
    """Without a layer there is no joint model."""
    return {"encode.ratios", "encode.bootstraps"} if cell.layer is None else set()


_BLIP = (
    "models.blip", "models.blip_tokenizer", "models.picture_size", "models.normalise", "models.dtype",
)  # fmt: skip
_DECODED = ("decode.gain", "decode.intercept")
_PLACES = {f"models.{name}" for name in (*MODEL_NAMES, "blip_tokenizer", "backbones")}
_FOLDS = ("ridge.folds", "seed")
_RIDGE = (*_FOLDS, "ridge.alphas")

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
        settings=(*_BLIP, "models.diffusion", "data.sessions", "caption", "reconstruct.coarse_size",
                  "reconstruct.posterior", "seed"),
        nsd=("design", "stimuli", "captions"),
        weights=("blip", "diffusion"),
        shared_out=True,
        unused=_unused_by_features,
    ),
    "decode": Stage(
        "nsdcap.decode:run",
        _per_subject("decode"),
        _from("prepare", "features"),
        settings=(*_RIDGE, "ridge.absolute", "ridge.group_folds", "roi", "decode.alpha",
                  "decode.z_alphas", "decode.c_alphas", "decode.z_v_alphas"),
        unused=_unused_by_decode,
    ),
    "caption": Stage(
        "nsdcap.caption:run",
        _per_subject("caption"),
        _from("decode", "features"),
        settings=(*_BLIP, *_DECODED, "models.clip", "caption", "seed"),
        nsd=("stimuli", "captions"),
        weights=("blip", "clip"),
        shared_out=True,
        unused=_no_checkpoint,
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
        unused=_unused_by_encode,
    ),
    "aggregate": Stage(
        "nsdcap.aggregate:run",
        lambda config: [Cell("aggregate")],
        _aggregate_inputs,
        settings=("preset", "no_stimuli", "data.subjects", "encode.layers"),
        nsd=("surfaces",),
    ),
}  # fmt: skip


def counted(cell: Cell, config: Config) -> dict[str, Any]:
    """The settings that decide a cell's result, by "section.key", as JSON reads them.

    What changes speed alone is not among them. Of a folder or file of weights only its own name is: what it
    holds is looked at, and it may be moved.
    """
    stage = STAGES[cell.stage]
    found: dict[str, Any] = {}
    for name in stage.settings:
        section, _, key = name.partition(".")
        value = getattr(config, section)
        if key:
            found[name] = getattr(value, key)
        elif is_dataclass(value):
            found |= {f"{name}.{k}": v for k, v in vars(value).items() if k not in SPEED}
        else:
            found[name] = value
    for name in stage.unused(cell, config):
        found.pop(name, None)
    for name, value in found.items():
        if name in _PLACES and value and weights.is_path(value):
            found[name] = Path(value).name
    return json.loads(json.dumps(found))


SOLVERS = {"decode", "kernel", "encode"}  # stages that fit by folds, with CuPy where it is there


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
