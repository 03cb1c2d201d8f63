"""What is asked of the Hugging Face hub: which files of a repository are needed, and what errors mean."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from nsdcap.errors import DataError, absent, first_line
from nsdcap.weights import is_path, missing, offline, snapshot

TOKENIZER = (
    "config.json", "tokenizer_config.json", "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
FOLDERS = ("feature_extractor", "scheduler", "text_encoder", "tokenizer", "unet", "vae")
STEMS = ("model", "pytorch_model", "diffusion_pytorch_model")


def needed(files: Iterable[str], tokenizer_only: bool = False) -> list[str]:
    """The files of a repository that transformers' or diffusers' classes read, sorted.

    Configurations, tokenizers, and in each folder the weights in one format: safetensors, where there
    are none PyTorch's. No variant (fp16, non_ema), no other framework, no safety checker.
    """
    files = sorted(files)
    diffusion = "model_index.json" in files
    places = ("", *FOLDERS) if diffusion and not tokenizer_only else ("",)
    found = []
    for place in places:
        here = [name for name in files if str(PurePosixPath(name).parent) == (place or ".")]
        for name in here:
            base = PurePosixPath(name).name
            text = base.endswith(".json") and not base.endswith(".index.json")
            if base in TOKENIZER or (text and not tokenizer_only and not base.startswith(".")):
                found.append(name)
        if tokenizer_only or (diffusion and not place):
            continue
        for ending in (".safetensors", ".bin"):
            weights = [name for name in here if _plain(PurePosixPath(name).name, ending)]
            if weights:
                found += weights
                break
    return sorted(set(found))


def _plain(base: str, ending: str) -> bool:
    """Whether a file is weights of this ending: the whole, a numbered part, or the index of parts."""
    base = base.removesuffix(".index.json")
    stem, _, rest = base.removesuffix(ending).partition("-")
    parted = not rest or (rest[:5].isdigit() and "-of-" in rest and "." not in rest)
    return base.endswith(ending) and stem in STEMS and parted


def at_hand(model: str, where: str) -> bool:
    """See to it that a model is on this disk; a hub id is fetched to the cache. Returns whether it was.

    Raises
    ------
    DataError
        It is not there, and the network is not to be used: the command that fetches it. Or as ``to_cache``.
    """
    gap = missing(model, where)
    if gap and (is_path(where) or offline()):
        raise absent(gap)
    if gap:
        to_cache(f"models.{model}", where, tokenizer_only=model.endswith("tokenizer"))
    return bool(gap)


def to_cache(setting: str, repo: str, tokenizer_only: bool = False) -> None:
    """Fetch a hub id's needed files to Hugging Face's cache, where they are not there yet.

    Raises
    ------
    DataError
        It cannot be fetched: why, and what to do.
    """
    from huggingface_hub import HfApi, snapshot_download

    print(f"{setting}: {repo} is fetched to the cache", flush=True)
    try:
        info = HfApi().model_info(repo)
        names = needed([file.rfilename for file in info.siblings or ()], tokenizer_only)
        snapshot_download(repo, allow_patterns=names)
    except Exception as error:
        raise DataError(f"{setting} = {repo!r}: {reason(error, repo)}") from error
    if (folder := snapshot(repo)) is None or folder.name != info.sha:
        raise DataError(
            f"{setting} = {repo!r}: it changed on the hub while it was fetched; try again"
        )


def reason(error: Exception, what: str) -> str:
    """What an error of a download means and what to do, on one line; others are raised again.

    ``what`` is the hub id or URL that was asked for."""
    from huggingface_hub import constants, errors

    host = "//".join(what.split("/")[:3:2]) if "://" in what else constants.ENDPOINT
    chain: list[Any] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for one in chain:
        status = getattr(getattr(one, "response", None), "status_code", None)
        if isinstance(one, errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids the network; unset it to fetch"
        if isinstance(one, errors.RevisionNotFoundError):
            return f"{host} has no such revision of {what}"
        if isinstance(one, errors.GatedRepoError) or status == 403:
            return (
                f"{what} is gated: accept its terms at {host}/{what} with an account, then give its token "
                "(HF_TOKEN, or hf auth login)"
            )
        if isinstance(one, errors.RepositoryNotFoundError) or status == 401:
            return (
                f"{host} shows no such repository {what}: mend the name, or, if it is gated or private, give "
                "a token (HF_TOKEN, or hf auth login)"
            )
        if isinstance(one, errors.HFValidationError):
            return f"{what!r} is no hub id, expected OWNER/NAME"
        if status is not None:
            return f"{host} answered {status} for {what}; try again later"
        if isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"the disk is full ({one.strerror}); free room and run it again"
    for one in chain:
        if isinstance(one, (errors.HTTPError, ConnectionError, TimeoutError)):
            return f"no network: {host} cannot be reached ({first_line(one)})"
    if isinstance(error, OSError):
        return first_line(error)
    raise error
