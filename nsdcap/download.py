"""One file of weights by the Hugging Face hub's library or plain HTTP, gone on with where a run was stopped."""

from __future__ import annotations

import urllib.error
import urllib.request
from hashlib import sha256
from pathlib import Path
from typing import Any

from nsdcap.errors import DataError
from nsdcap.hub import reason

PIECE = 1 << 20


def from_hub(repo: str, revision: str, file: str, staging: Path, target: Path) -> None:
    """By huggingface_hub, which takes up a broken connection by itself, to a staging folder, then moved.

    Raises
    ------
    DataError
        It cannot be fetched: why, and what to do.
    """
    from huggingface_hub import hf_hub_download

    try:
        got = hf_hub_download(repo, file, revision=revision, local_dir=staging)
    except Exception as error:
        raise DataError(f"{repo}@{revision}, {file}: {reason(error, repo)}") from error
    Path(got).replace(target)


def size_at(url: str) -> int:
    """Bytes of the file at a URL, -1 where the server does not tell. DataError as ``from_url``."""
    with _opened(urllib.request.Request(url, method="HEAD")) as answer:
        return int(answer.headers.get("Content-Length", -1))


def from_url(url: str, n_bytes: int, target: Path) -> None:
    """A file by plain HTTP; what an earlier run has got of the same version is gone on from.

    The version, by its ETag or date, stands in the name of the part, so never are two versions joined.

    Raises
    ------
    DataError
        No network, a refusal, or an end before ``n_bytes``.
    """
    with _opened(urllib.request.Request(url, method="HEAD")) as answer:
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    mark = sha256(f"{url} {version}".encode()).hexdigest()[:12]
    part = target.with_name(f"{target.name}-{mark}")
    for other in target.parent.glob(f"{target.name}-*"):
        if other != part or not version:
            other.unlink()
    start = part.stat().st_size if part.exists() else 0
    if start < n_bytes:
        request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
        with _opened(request) as answer, part.open("ab" if answer.status == 206 else "wb") as file:
            while piece := answer.read(PIECE):
                file.write(piece)
    if (got := part.stat().st_size) < n_bytes:
        raise DataError(
            f"{url}: ended after {got} of {n_bytes} bytes; the same command goes on there"
        )
    part.replace(target)


def _opened(request: urllib.request.Request) -> Any:
    try:
        return urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        raise DataError(
            f"{request.full_url}: the server answered {error.code} {error.reason}"
        ) from None
    except (urllib.error.URLError, ValueError) as error:
        why = getattr(error, "reason", error)
        raise DataError(f"{request.full_url}: no network, it cannot be reached ({why})") from None
