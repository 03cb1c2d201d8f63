"""A public S3 bucket on loopback: its listing in pages, its ETags and ranges, and what can go wrong there."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 3  # keys of a page
PARTS = 6 << 20  # bytes; larger files were uploaded in parts


@dataclass
class Bucket:
    """``faults`` of a key, or of "list", come true one a request; a lone one in ``always`` for ever.

    ("status", 503), ("cut", n) closes after n bytes of those due, ("stall", n) waits there for ``go_on``,
    ("length", n) tells a length that is n too large, ("bytes", content) sends others under the right length,
    ("endless", n) tells no length and sends n bytes more, ("span", text) tells that Content-Range, ("whole",)
    takes no notice of a range, ("etag", text).
    """

    root: Path
    port: int = 0
    listed: bool = True  # else 404, as of a plain web server
    sizes: dict[str, int] = field(default_factory=dict)  # that the listing tells
    faults: dict[str, list[tuple]] = field(default_factory=dict)
    always: dict[str, tuple] = field(default_factory=dict)
    asked: list[tuple[str, str, int]] = field(default_factory=list)  # method, key, first byte
    sent: Counter[str] = field(default_factory=Counter)  # bytes by key
    stalled: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    etags: dict[tuple, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def got(self, start: int = 0) -> list[str]:
        return [key for method, key, _ in self.asked[start:] if method == "GET" and key != "list"]

    def fault(self, key: str) -> tuple:
        if self.faults.get(key):
            return self.faults[key].pop(0)
        return self.always.get(key, ("none",))

    def etag(self, file: Path) -> str:
        stat = file.stat()
        key = (file, stat.st_size, stat.st_mtime_ns)
        if key not in self.etags:
            found = hashlib.md5(file.read_bytes()).hexdigest()
            self.etags[key] = f"{found}-2" if stat.st_size > PARTS else found
        return self.etags[key]


@contextmanager
def serving(root: Path) -> Iterator[Bucket]:
    """A bucket that answers while the block runs."""
    bucket = Bucket(root)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self, bucket)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    bucket.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield bucket
    finally:
        bucket.go_on.set()
        server.shutdown()
        server.server_close()


def answer(request: BaseHTTPRequestHandler, bucket: Bucket) -> None:
    parts = urlsplit(request.path)
    key = unquote(parts.path).lstrip("/") or "list"
    span = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
    start = int(span[1]) if span else 0
    bucket.asked.append((request.command, key, start))
    fault = bucket.fault(key) if request.command == "GET" else ("none",)
    if fault[0] == "status":
        return reply(request, fault[1], {}, b"<Error/>")
    if key == "list":
        if not bucket.listed:
            return reply(request, 404, {}, b"<!DOCTYPE html><html></html>")
        text = fault[1] if fault[0] == "bytes" else listing(bucket, parse_qs(parts.query))
        return reply(request, 200, {"Content-Type": "application/xml"}, text)
    file = bucket.root / key
    if not file.is_file():
        return reply(request, 404, {}, b"<Error><Code>NoSuchKey</Code></Error>")
    send(request, bucket, key, file, start, fault)


def listing(bucket: Bucket, words: dict[str, list[str]]) -> bytes:
    """A page of ListObjectsV2; the token is the last key before it."""
    prefix, after = words["prefix"][0], words.get("continuation-token", [""])[0]
    assert words["list-type"] == ["2"]
    assert words["delimiter"] == ["/"]
    folder = bucket.root / prefix
    there = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    keys = [
        key for key in (path.relative_to(bucket.root).as_posix() for path in there) if key > after
    ]
    rows = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>2021-08-30T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;{bucket.etag(bucket.root / key)}&quot;</ETag>"
        f"<Size>{bucket.sizes.get(key, (bucket.root / key).stat().st_size)}</Size></Contents>"
        for key in keys[:PAGE]
    )
    more = len(keys) > PAGE
    token = f"<NextContinuationToken>{keys[PAGE - 1]}</NextContinuationToken>" if more else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult '
        f'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Prefix>{prefix}</Prefix>'
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{rows}{token}</ListBucketResult>"
    ).encode()


def send(
    request: BaseHTTPRequestHandler, bucket: Bucket, key: str, file: Path, start: int, fault: tuple
) -> None:
    content, kind = file.read_bytes(), fault[0]
    total = len(content)
    if kind == "whole":
        start = 0
    if kind == "bytes":
        content = fault[1]
    body = content[start:]
    headers = {"ETag": f'"{fault[1] if kind == "etag" else bucket.etag(file)}"'}
    length = len(body) + (fault[1] if kind == "length" else 0)
    if kind != "endless":
        headers["Content-Length"] = str(length)
    if start:
        told = fault[1] if kind == "span" else f"bytes {start}-{total - 1}/{total}"
        headers["Content-Range"] = told
    head(request, 206 if start else 200, headers)
    if request.command == "HEAD":
        return
    if kind == "endless":
        body += b"?" * fault[1]
    try:
        if kind in ("cut", "stall"):
            write(request, bucket, key, body[: fault[1]])
            if kind == "stall":
                bucket.stalled.set()
                bucket.go_on.wait(60)
        else:
            write(request, bucket, key, body[: max(length, 0)] if kind == "length" else body)
        if kind in ("cut", "stall", "length", "endless"):
            request.close_connection = True
    except (BrokenPipeError, ConnectionResetError):  # who asked was killed
        request.close_connection = True


def write(request: BaseHTTPRequestHandler, bucket: Bucket, key: str, body: bytes) -> None:
    request.wfile.write(body)
    request.wfile.flush()
    bucket.sent[key] += len(body)


def reply(
    request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes
) -> None:
    head(request, status, {**headers, "Content-Length": str(len(body))})
    if request.command != "HEAD":
        request.wfile.write(body)


def head(request: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.end_headers()
