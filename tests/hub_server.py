"""A Hugging Face hub on loopback: as much of its HTTP API as huggingface_hub asks for, serving real folders."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = (
    ".safetensors",
    ".bin",
    ".ckpt",
    ".msgpack",
)  # kept by their SHA-256, served from elsewhere


@dataclass
class Repo:
    """Folders by commit hash; ``head`` is what main is; ``gate`` the status that files are refused with."""

    commits: dict[str, Path]
    head: str
    licence: str = ""
    gate: int = 0


@dataclass
class Hub:
    """``asked`` lists "METHOD path", with the range where there was one. ``stall`` (path's end, bytes): the
    file stops there and ``stalled`` is set. ``cut``: the connection is closed there, once."""

    port: int = 0
    repos: dict[str, Repo] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    large: dict[str, Path] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)  # that are told in place of the true ones
    asked: list[str] = field(default_factory=list)
    stall: tuple[str, int] | None = None
    cut: tuple[str, int] | None = None
    stalled: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, home: Path) -> dict[str, str]:
        """Variables under which huggingface_hub asks here and keeps what it keeps in ``home``."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
        return {
            **kept,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
        }

    def got(self, start: int = 0) -> list[str]:
        """Files that were fetched since request ``start``, by their names."""
        paths = (line.split()[1] for line in self.asked[start:] if line.startswith("GET"))
        return [path.rpartition("/")[2] for path in paths if not path.startswith("/api/")]


def commit_of(text: str) -> str:
    """Forty hex digits that stand for a commit."""
    return hashlib.sha1(text.encode()).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers while the block runs."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path, span = unquote(urlsplit(self.path).path), self.headers.get("Range", "")
            hub.asked.append(f"{self.command} {path} {span}".strip())
            answer(self, hub, path)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()


def answer(request: BaseHTTPRequestHandler, hub: Hub, path: str) -> None:
    """Answer one GET or HEAD."""
    if path.startswith("/files/"):
        file = hub.files.get(path)
        if file is None:
            return refuse(request, 404)
        return send(request, hub, file, {"ETag": f'"{digest(file)}"'})
    if path.startswith("/large/"):
        return send(request, hub, hub.large[path.split("/")[2]], {})
    api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
    if api:
        repo, commit = find(hub, api[1], api[3] or "main")
        if repo is None or commit is None:
            return refuse(request, *unknown(repo))
        listing = rows(hub, repo.commits[commit])
        if api[2] == "tree":
            return send_json(request, [
                {"type": "file", "path": row["rfilename"], "size": row["size"], "oid": row["blobId"],
                 **({"lfs": {"oid": row["lfs"]["sha256"], "size": row["size"], "pointerSize": 130}}
                    if "lfs" in row else {})}
                for row in listing
            ])  # fmt: skip
        card = {"license": repo.licence} if repo.licence else {}
        return send_json(request, {"id": api[1], "modelId": api[1], "sha": commit, "siblings": listing,
                                   "cardData": card, "tags": [], "private": False,
                                   "gated": bool(repo.gate)})  # fmt: skip
    named = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
    repo, commit = find(hub, named[1], named[2]) if named else (None, None)
    if named is None or repo is None or commit is None:
        return refuse(request, *unknown(repo))
    if repo.gate:
        return refuse(request, repo.gate, "GatedRepo")
    file = repo.commits[commit] / named[3]
    if not file.is_file():
        return refuse(request, 404, "EntryNotFound", {"X-Repo-Commit": commit})
    headers = {"X-Repo-Commit": commit}
    if file.suffix not in LARGE:
        return send(request, hub, file, {**headers, "ETag": f'"{blob(file)}"'})
    key = digest(file)
    hub.large[key] = file
    headers |= {"X-Linked-Etag": f'"{key}"', "X-Linked-Size": str(file.stat().st_size)}
    # another host, as the hub's is
    headers |= {
        "Location": f"http://localhost:{hub.port}/large/{key}/{file.name}",
        "Content-Length": "0",
    }
    request.send_response(302)
    return finish(request, headers)


def find(hub: Hub, name: str, revision: str) -> tuple[Repo | None, str | None]:
    repo = hub.repos.get(name)
    if repo is None:
        return None, None
    commit = repo.head if revision == "main" else revision
    return repo, commit if commit in repo.commits else None


def unknown(repo: Repo | None) -> tuple[int, str]:
    # the hub does not tell strangers whether a repository is private or none
    return (401, "RepoNotFound") if repo is None else (404, "RevisionNotFound")


def rows(hub: Hub, folder: Path) -> list[dict]:
    found = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        size = hub.sizes.get(name, file.stat().st_size)
        row: dict = {"rfilename": name, "size": size, "blobId": blob(file)}
        if file.suffix in LARGE:
            row["lfs"] = {"size": size, "sha256": digest(file), "pointerSize": 130}
        found.append(row)
    return found


def send(request: BaseHTTPRequestHandler, hub: Hub, file: Path, headers: dict[str, str]) -> None:
    content, total = file.read_bytes(), file.stat().st_size
    span = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
    start = int(span[1]) if span else 0
    request.send_response(206 if span else 200)
    if span:
        headers = {**headers, "Content-Range": f"bytes {start}-{total - 1}/{total}"}
    finish(request, {**headers, "Content-Length": str(total - start), "Accept-Ranges": "bytes"})
    if request.command == "HEAD":
        return
    for kind in ("stall", "cut"):
        given = getattr(hub, kind)
        if given and given[0] in request.path and not span:
            setattr(hub, kind, None)
            request.wfile.write(content[: given[1]])
            request.wfile.flush()
            if kind == "stall":
                hub.stalled.set()
                hub.go_on.wait(60)
            request.close_connection = True
            return
    try:
        request.wfile.write(content[start:])
    except (BrokenPipeError, ConnectionResetError):  # who asked was killed
        request.close_connection = True


def send_json(request: BaseHTTPRequestHandler, content: object) -> None:
    text = json.dumps(content).encode()
    request.send_response(200)
    finish(request, {"Content-Type": "application/json", "Content-Length": str(len(text))})
    if request.command != "HEAD":
        request.wfile.write(text)


def refuse(
    request: BaseHTTPRequestHandler,
    status: int,
    code: str = "",
    headers: dict[str, str] | None = None,
) -> None:
    request.send_response(status)
    told = {"X-Error-Code": code} if code else {}
    finish(request, {**(headers or {}), **told, "Content-Length": "0"})


def finish(request: BaseHTTPRequestHandler, headers: dict[str, str]) -> None:
    for name, value in headers.items():
        request.send_header(name, value)
    request.end_headers()


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def blob(file: Path) -> str:
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
