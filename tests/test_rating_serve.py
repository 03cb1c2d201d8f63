"""The raters' server, by HTTP: who is let in, what is sent, what is kept."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image
from rating_runs import rater_file, sealed, write_run

from nsdcap.errors import DataError, UsageError
from nsdcap.paths import Cell, artefact
from nsdcap.rating.__main__ import main
from nsdcap.rating.make import make
from nsdcap.rating.serve import RatingServer, render
from nsdcap.rating.study import page_of, read_study


@pytest.fixture(params=["captions", "pictures"])
def server(request, tmp_path):
    out, folder = write_run(tmp_path / "out", n=6), tmp_path / "study"
    make(out, folder, request.param, raters=2, trials=8, seed=4, catch=2, log=lambda line: None)
    said: list[str] = []
    server = RatingServer(folder, 0, said.append)
    server.said = said
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(server, path: str, method: str = "GET", body: bytes | None = None, **headers):
    """Status, headers and body of one request; headers given replace the client's own."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    own = {name: value for name, value in headers.items() if value is not None}
    connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
    if body is not None and "Content_Length" not in headers:
        own["Content-Length"] = str(len(body))
    for name, value in own.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders(body)
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def address(server, rater: str = "rater01") -> str:
    return f"/{server.tokens[rater]}/"


def test_only_this_machine_can_reach_it(server):
    assert server.socket.getsockname()[0] == "127.0.0.1"
    with pytest.raises(OSError, match="refused"):  # another address of the same machine
        socket.create_connection(("127.0.0.2", server.server_port), timeout=5)


@pytest.mark.parametrize(
    "path", ["/", "/study.json", "/wrong/", "//", "*", "/%2e%2e/", "/TOKEN", "/TOKENx/", "/TOKE/"]
)
def test_without_the_token_there_is_nothing(server, path):
    token = server.tokens["rater01"]
    path = path.replace("TOKEN", token.swapcase()).replace("TOKE", token[:-1])
    status, headers, body = ask(server, path)
    assert (status, body) == (404, b"")
    assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "path", ["study.json", "tokens.json", "pages/", "pages/rater01.json", "pictures/", "answers/rater01.json",
             "../study.json", "picture/", "picture/x/shown", "picture/../study.json", "picture/ID/target",
             "picture/ID/../../study.json"]
)  # fmt: skip
def test_with_the_token_there_are_the_page_and_its_pictures_alone(server, path):
    name = server.study.raters["rater01"][0].id
    assert ask(server, address(server) + path.replace("ID", name))[0] == 404
    # and of one's own trials alone
    other = server.study.raters["rater02"][0].id
    assert ask(server, f"{address(server)}picture/{other}/shown")[0] == 404
    assert ask(server, f"{address(server)}picture/{name}/shown")[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "0.0.0.0", "", None],
)
def test_another_name_of_the_host_is_refused(server, host):
    for method, path in (("GET", ""), ("POST", "answers")):
        status, _, body = ask(server, address(server) + path, method, Host=host)
        assert (status, body) == (403, b"")


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost:9000", "LOCALHOST", "[::1]:8765"])
def test_a_tunnel_with_another_port_is_let_in(server, host):
    assert ask(server, address(server), Host=host)[0] == 200


def test_a_page_holds_nothing_of_the_key_and_may_load_nothing_from_elsewhere(server):
    status, headers, body = ask(server, address(server))
    page = body.decode()
    assert status == 200
    assert headers["Cache-Control"] == "no-store"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "http" not in policy
    assert not re.search(r"(src|href)=\"?(https?:)?//", page)
    holds = json.loads(re.search(r'id="data"[^>]*>(.*?)</script>', page)[1])
    about = {"captions": {"id", "left", "right"}, "pictures": {"id"}}[server.study.kind]
    assert all(set(trial) == about for trial in holds["trials"])
    assert not any(
        word in page for word in ("nsd_id", '"target"', "foil", ".png", "rater02", "subject")
    )
    assert ask(server, address(server).rstrip("/"))[1]["Location"] == address(server)


def test_pictures_are_those_of_the_trial_on_the_sides_of_the_key(server):
    for asked in server.study.raters["rater02"]:
        trial = server.study.trials[asked.trial]
        pixel = {}
        for place in ("shown", "left", "right"):
            path = f"{address(server, 'rater02')}picture/{asked.id}/{place}"
            status, headers, body = ask(server, path)
            if place != "shown" and server.study.kind == "captions":
                assert status == 404
                continue
            assert (status, headers["Content-Type"]) == (200, "image/png")
            assert headers["Cache-Control"] == "no-store"
            image = Image.open(io.BytesIO(body))
            assert (image.format, image.mode, image.info) == (
                "PNG",
                "RGB",
                {},
            )  # nothing but pixels
            assert not {"Last-Modified", "ETag", "Content-Disposition"} & set(headers)
            pixel[place] = np.asarray(image)[0, 0].tolist()
        assert pixel["shown"] == [trial.nsd_id, 0, 0]
        if server.study.kind == "pictures":
            other = {"left": "right", "right": "left"}[asked.side]
            if trial.catch:
                assert pixel[asked.side] == pixel["shown"] != pixel[other]
            else:
                assert pixel[asked.side][1] == pixel[other][2] == 100 + trial.sample


def test_answers_are_kept_as_they_came_once(server):
    body = rater_file(server.folder, "rater01", {1})
    post = address(server) + "answers"
    assert ask(server, post, "POST", body)[0] == 200
    assert server.answers("rater01").read_bytes() == body
    assert server.said[-1] == f"rater01 has handed in: {server.answers('rater01')}"
    assert ask(server, post, "POST", body)[::2] == (200, b"Stored before")
    status, _, told = ask(server, post, "POST", rater_file(server.folder, "rater01", {2}))
    assert status == 409
    assert b"nothing was overwritten" in told
    assert server.answers("rater01").read_bytes() == body
    assert [path.name for path in server.answers("rater01").parent.iterdir()] == ["rater01.json"]


def test_answers_that_are_broken_foreign_or_too_large_are_not_kept(server):
    post, body = address(server) + "answers", rater_file(server.folder, "rater01")
    short = json.loads(body)
    short["answers"] = short["answers"][:-1]
    for wrong in (b"", b"[" * 100_000, body[:-9], b"\xff", sealed(short)):
        assert ask(server, post, "POST", wrong)[0] == 400
    status, _, told = ask(server, post, "POST", rater_file(server.folder, "rater02"))
    assert status == 400
    assert b"these are the answers of rater02" in told
    assert ask(server, post, "POST", body, Origin="http://evil.example")[0] == 403
    assert ask(server, post, "POST", b"", Content_Length="9" * 11)[0] == 413
    assert ask(server, post, "POST", b"", Content_Length="-1")[0] == 411
    assert ask(server, address(server), "POST", body)[0] == 404
    assert not server.answers("rater01").parent.exists()
    assert ask(server, address(server))[0] == 200  # and it lives on


def test_addresses_last_and_only_their_owner_can_read_them(server):
    tokens = server.folder / "tokens.json"
    assert RatingServer(server.folder, 0).tokens == server.tokens
    assert len(set(server.tokens.values())) == 2
    for path in (server.folder, tokens, server.folder / "study.json"):
        assert path.stat().st_mode & 0o077 == 0
    tokens.write_text('{"rater01": "x"}')
    with pytest.raises(
        DataError, match=r"tokens\.json: found no token for each of rater01, rater02"
    ):
        RatingServer(server.folder, 0)
    tokens.unlink()
    assert RatingServer(server.folder, 0).tokens != server.tokens
    with pytest.raises(UsageError, match=f"--port {server.server_port}: cannot be used"):
        RatingServer(server.folder, server.server_port)


def test_a_changed_key_is_not_served(server, capsys):
    path = server.folder / "study.json"
    path.write_text(path.read_text().replace('"side": "left"', '"side": "right"', 1))
    assert main(["serve", str(server.folder)]) == 65
    assert "study.json: was changed" in capsys.readouterr().err


def test_a_caption_cannot_become_part_of_the_page(tmp_path):
    out = write_run(tmp_path / "out", subjects=(1,), n=2)
    path, text = artefact(out, Cell("caption", 1)), "A </script><b id=x>'\" & {{ page }}"
    content = json.loads(path.read_text())
    content["captions"]["3"]["brain"] = text
    path.write_text(json.dumps(content))
    make(out, tmp_path / "study", "captions", trials=1, catch=0, log=lambda line: None)
    page = render(page_of(read_study(tmp_path / "study"), "rater01"), "nonce")
    (trial,) = json.loads(re.search(r'id="data"[^>]*>(.*?)</script>', page)[1])["trials"]
    assert text in (trial["left"], trial["right"])
    assert "<b id=x>" not in page


def test_a_study_that_lacks_a_picture_is_not_served(server):
    shown = server.study.trials[0].shown
    (server.folder / shown).unlink()
    with pytest.raises(DataError, match=f"{shown}: missing, and 0 others"):
        RatingServer(server.folder, 0)


def test_ctrl_c_ends_it_in_order(tmp_path):
    out, folder = write_run(tmp_path / "out", n=3), tmp_path / "study"
    make(out, folder, "captions", raters=2, trials=2, catch=0, log=lambda line: None)
    command = [sys.executable, "-m", "nsdcap.rating", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ.copy()
    ) as process:
        lines = [process.stdout.readline() for _ in range(3)]
        found = [
            re.fullmatch(r"(rater0\d)  http://127\.0\.0\.1:(\d+)(/\S+/)\n", x) for x in lines[1:]
        ]
        assert [match[1] for match in found] == ["rater01", "rater02"]
        connection = http.client.HTTPConnection("127.0.0.1", int(found[0][2]), timeout=10)
        connection.request("GET", found[0][3])  # and the connection stays open
        assert connection.getresponse().status == 200
        process.send_signal(signal.SIGINT)
        said, complained = process.communicate(timeout=20)
    assert (process.returncode, complained) == (0, "")
    assert said.endswith("ended; 0 of 2 raters have handed in\n")
