"""The raters' pages on 127.0.0.1: a secret in the address, one file of answers back from each."""

from __future__ import annotations

import hmac
import json
import re
import secrets
import signal
import socketserver
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from nsdcap.errors import DataError, UsageError
from nsdcap.pages import fill
from nsdcap.paths import atomic
from nsdcap.rating.study import Study, check_answers, page_of, picture_of, read_study

LARGEST = 8 << 20  # bytes of a rater's file; one of 600 trials has 80 kB
# a page elsewhere that had its own name lead here would send that name
_OWN_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.IGNORECASE)


def serve(folder: Path, port: int = 8765, say: Callable[[str], object] = print) -> None:
    """Serve a study until Ctrl-C; says the address of each rater's page.

    Raises
    ------
    DataError
        No study lies there, or its tokens are of another one.
    UsageError
        The port is taken or not allowed.
    """
    server = RatingServer(folder, port, say)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    say(
        f"{server.study.kind} study in {folder}; Ctrl-C ends it, answers given so far stay in the browsers"
    )
    for rater, token in server.tokens.items():
        done = ", handed in" if server.answers(rater).exists() else ""
        say(f"{rater}  http://127.0.0.1:{server.server_port}/{token}/{done}")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        with server.lock:  # what is being stored
            server.server_close()
    there = sum(server.answers(rater).exists() for rater in server.tokens)
    say(f"ended; {there} of {len(server.tokens)} raters have handed in")


class RatingServer(ThreadingHTTPServer):
    """One study, bound to 127.0.0.1. Port 0: any that is free."""

    def __init__(self, folder: Path, port: int, say: Callable[[str], object] = print):
        if not 0 <= port <= 65535:
            raise UsageError(f"--port {port}: expected 0 to 65535")
        self.folder, self.say, self.lock = folder, say, threading.Lock()
        self.study = read_study(folder)
        self.tokens = tokens_of(folder, list(self.study.raters))
        _check_files(folder, self.study)
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except OSError as error:
            raise UsageError(
                f"--port {port}: cannot be used ({error.strerror}); give another one. Answers that raters have "
                "begun stay with the port they were given at"
            ) from None

    def server_bind(self) -> None:
        """As the base class does, but asks no name server for this machine's name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent where a browser has gone; else as the base class does."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def answers(self, rater: str) -> Path:
        return self.folder / "answers" / f"{rater}.json"

    def rater_of(self, token: str) -> str | None:
        """Whose token it is; takes as long whatever it is."""
        given = token.encode()
        found = [
            name for name, own in self.tokens.items() if hmac.compare_digest(own.encode(), given)
        ]
        return found[0] if found else None

    def store(self, rater: str, body: bytes) -> tuple[int, str]:
        """Keep a rater's file as it is; HTTP status, and what to tell the rater."""
        path = self.answers(rater)
        try:
            answers = check_answers(json.loads(body), self.study, "the answers")
        except (DataError, ValueError, RecursionError) as error:
            return 400, f"Refused: {error}"
        if answers.rater != rater:
            return (
                400,
                f"Refused: these are the answers of {answers.rater}, and this page is {rater}'s",
            )
        with self.lock:
            if path.exists():
                if path.read_bytes() == body:
                    return 200, "Stored before"
                return 409, f"Other answers of {rater} are stored already; nothing was overwritten"
            try:
                with atomic(path) as partial:
                    partial.write_bytes(body)
            except OSError as error:
                return 500, f"Could not be stored ({error.strerror})"
        self.say(f"{rater} has handed in: {path}")
        return 200, "Stored"


class Handler(BaseHTTPRequestHandler):
    """GET the page and its pictures, POST the answers; all else does not exist."""

    server: RatingServer
    server_version, sys_version = "nsdcap", ""
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a connection may say nothing

    def do_GET(self) -> None:
        rater, place = self._admitted()
        if rater is None:
            return
        if place is None:
            self._send(301, b"", "text/plain", {"Location": self.path.partition("?")[0] + "/"})
        elif place == [""]:
            self._page(rater)
        elif len(place) == 3 and place[0] == "picture":
            name = picture_of(self.server.study, rater, place[1], place[2])
            if name is None:
                self._refuse(404)
            else:
                self._send(200, (self.server.folder / name).read_bytes(), "image/png")
        else:
            self._refuse(404)

    def do_POST(self) -> None:
        self.close_connection = True  # a body that is not read must not be taken for a request
        rater, place = self._admitted()
        if rater is None:
            return
        origin = self.headers.get("Origin")
        length = self.headers.get("Content-Length", "")
        if place != ["answers"]:
            self._refuse(404)
        elif origin is not None and origin != f"http://{self.headers['Host']}":
            self._refuse(403)
        elif not re.fullmatch(r"\d{1,12}", length):
            self._refuse(411)
        elif int(length) > LARGEST:
            self._refuse(413)
        else:
            body = self.rfile.read(int(length))
            status, told = self.server.store(rater, body)
            self._send(status, told.encode(), "text/plain; charset=utf-8")

    def _admitted(self) -> tuple[str | None, list[str] | None]:
        """The rater whose address it is, and the parts of the path below it (none: its last slash lacks)."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not _OWN_HOST.fullmatch(hosts[0]):
            self._refuse(403)
            return None, None
        parts = self.path.partition("?")[0].split("/")[1:] or [""]
        rater, place = self.server.rater_of(parts[0]), parts[1:]
        if rater is None:
            self._refuse(404)
        return rater, place or None

    def _page(self, rater: str) -> None:
        nonce = secrets.token_urlsafe(16)
        body = render(page_of(self.server.study, rater), nonce).encode()
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src blob: data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self._send(200, body, "text/html; charset=utf-8", {"Content-Security-Policy": policy})

    def _refuse(self, status: int) -> None:
        self.close_connection = True
        self._send(status, b"", "text/plain")

    def _send(
        self, status: int, body: bytes, kind: str, more: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        if self.close_connection:
            self.send_header("Connection", "close")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a request's line holds the token."""


def render(page: dict[str, Any], nonce: str) -> str:
    """The page of a rater, from what ``page_of`` gives."""
    return fill("nsdcap.rating", "page.html.j2", page=page, nonce=nonce)


def _check_files(folder: Path, study: Study) -> None:
    """DataError where a picture is not there, so that no rater finds out half-way."""
    names: set[str] = set()
    for trial in study.trials:
        names |= (
            {trial.shown} if study.kind == "captions" else {trial.shown, trial.target, trial.foil}
        )
    lacking = sorted(name for name in names if not (folder / name).is_file())
    if lacking:
        raise DataError(
            f"{folder / lacking[0]}: missing, and {len(lacking) - 1} others of {len(names)} files; copy the "
            "whole folder, or make the study again"
        )


def tokens_of(folder: Path, raters: list[str]) -> dict[str, str]:
    """Each rater's token, the same at every start, so that addresses last; made at the first.

    Raises DataError where the file is broken or of other raters.
    """
    path = folder / "tokens.json"
    if not path.exists():
        tokens = {rater: secrets.token_urlsafe(24) for rater in raters}
        with atomic(path) as partial:
            partial.touch(mode=0o600)
            partial.write_text(json.dumps(tokens, indent=1) + "\n")
    try:
        tokens = json.loads(path.read_text())
        if list(tokens) == raters and all(len(token) >= 20 for token in tokens.values()):
            return tokens
    except (ValueError, TypeError):
        pass
    raise DataError(
        f"{path}: found no token for each of {', '.join(raters)}; remove it, and new ones are made"
    )
