"""What a public S3 bucket, or another server of the same layout, has: sizes and ETags, without an account."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import quote, urlencode
from xml.etree import ElementTree

from nsdcap import download
from nsdcap.errors import DataError

T = TypeVar("T")
LONGEST = 16 << 20  # bytes of a page of a listing; S3's hold a thousand keys, some 0.4 MB


@dataclass(frozen=True)
class Object:
    """A file of a bucket: ``size`` in bytes and its ETag without quotes, "" where there is none."""

    size: int
    etag: str


class NoListing(DataError):
    """The server has files, and no listing of them as S3 has."""


def address(base: str, key: str) -> str:
    """The URL of a key."""
    return f"{base.rstrip('/')}/{quote(key)}"


def place(folder: Path, key: str) -> Path:
    """Where a key lies below ``folder``.

    Raises
    ------
    DataError
        It would lie outside.
    """
    parts = key.split("/")
    if not key or {"", ".", ".."} & {*parts} or "\\" in key or "\0" in key:
        raise DataError(
            f"{key!r} would leave {folder}, expected a path below it; mend what names it"
        )
    return folder.joinpath(*parts)


def md5_of(etag: str) -> str:
    """The MD5 that an ETag is; "" for one of an upload in parts, which is no checksum of the file."""
    return etag.lower() if re.fullmatch(r"[0-9a-fA-F]{32}", etag) else ""


def find(base: str, keys: Iterable[str]) -> dict[str, Object]:
    """Those of ``keys`` that the server has: by listing their folders, or else asked one by one.

    Raises
    ------
    NoServer
        No network, or a server that refuses or is out of order.
    DataError
        An answer that cannot be understood.
    """
    keys = list(keys)
    folders = sorted({str(PurePosixPath(key).parent) for key in keys})
    try:
        with ThreadPoolExecutor(8) as pool:
            found = {
                k: v for part in pool.map(partial(listing, base), folders) for k, v in part.items()
            }
    except NoListing:
        with ThreadPoolExecutor(8) as pool:
            asked = zip(keys, pool.map(partial(_ask, base), keys), strict=True)
            return {key: one for key, one in asked if one is not None}
    return {key: found[key] for key in keys if key in found}


def listing(base: str, folder: str) -> dict[str, Object]:
    """What lies right below a folder, by S3's ListObjectsV2. Raises as ``find``, and NoListing."""
    found: dict[str, Object] = {}
    tokens = [""]
    while True:
        words = {"list-type": "2", "prefix": f"{folder}/", "delimiter": "/"}
        if tokens[-1]:
            words["continuation-token"] = tokens[-1]
        url = f"{base.rstrip('/')}/?{urlencode(words)}"
        page = _page(url)
        for row in page.iterfind("{*}Contents"):
            size = row.findtext("{*}Size") or ""
            if not size.isdigit():
                raise DataError(
                    f"{url}: found the size {size!r}, expected bytes; is it S3's listing?"
                )
            etag = (row.findtext("{*}ETag") or "").strip().strip('"')
            found[row.findtext("{*}Key") or ""] = Object(int(size), etag)
        if page.findtext("{*}IsTruncated") != "true":
            return found
        token = page.findtext("{*}NextContinuationToken") or ""
        if not token or token in tokens:
            raise DataError(f"{url}: the listing does not end; it names no page after this")
        tokens.append(token)


def _page(url: str) -> ElementTree.Element:
    try:
        text = _patiently(partial(_read, url))
    except download.NoServer:
        raise
    except DataError as error:  # 404 and the like
        raise NoListing(str(error)) from None
    # S3's have no document type; one could define entities without end
    if len(text) <= LONGEST and b"<!DOCTYPE" not in text:
        try:
            root = ElementTree.fromstring(text.decode())  # nosec B314
        except (ElementTree.ParseError, UnicodeDecodeError):
            root = ElementTree.Element("")
        if root.tag.rpartition("}")[2] == "ListBucketResult":
            return root
    raise NoListing(f"{url}: this is no listing as S3's")


def _read(url: str) -> bytes:
    with download.opened(urllib.request.Request(url)) as answer:
        try:
            text: bytes = answer.read(LONGEST + 1)
        except (OSError, HTTPException) as error:
            raise download.NoServer(
                f"{url}: the connection broke ({error!r})", answered=True
            ) from None
        return text


def _ask(base: str, key: str) -> Object | None:
    """By HEAD; None where there is no such file."""
    url = address(base, key)
    try:
        size, etag = _patiently(partial(download.head, url))
    except download.NoServer:
        raise
    except DataError:
        return None
    if size < 0:
        raise DataError(f"{url}: the server does not tell the file's size")
    return Object(size, etag)


def _patiently(ask: Callable[[], T]) -> T:
    """What ``ask`` returns; a server that is there and out of order is asked again."""
    for pause in download.PAUSES:
        try:
            return ask()
        except download.NoServer as error:
            if not (error.again and error.answered):
                raise
        time.sleep(pause)
    return ask()
