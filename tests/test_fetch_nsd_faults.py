"""hpc/fetch_nsd.py against a bucket that breaks off, lies and changes; killed, and on a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from bucket_server import Bucket
from fetched_nsd import (
    BETAS,
    DESIGN,
    FIRST,
    INFO,
    MB,
    ROOT,
    SECOND,
    WANTED,
    ZIP,
    arguments,
    check_whole,
    fetch_nsd,
    files,
)

# --- networks and servers -------------------------------------------------------------------------


def test_dropped_connections_are_taken_up_where_they_broke(bucket, fetch, tmp_path):
    bucket.faults = {FIRST: [("cut", MB), ("cut", 3 * MB), ("cut", 77)], INFO: [("cut", 0)],
                     ZIP: [("cut", 100)]}  # fmt: skip
    code, said = fetch()
    assert code == 0, said
    check_whole(bucket, tmp_path / "nsd")
    starts = [start for method, key, start in bucket.asked if key == FIRST]
    assert starts == [0, MB, 4 * MB, 4 * MB + 77]
    assert bucket.sent[FIRST] == 7 * MB
    assert bucket.sent[INFO] == 2 * MB


def test_a_server_that_stays_away_and_comes_back(bucket, fetch, tmp_path):
    bucket.faults = {FIRST: [("cut", 2 * MB)]}
    bucket.always = {FIRST: ("cut", 0)}
    code, said = fetch()
    assert code == 69
    assert f"{FIRST}: ended after {2 * MB} of {7 * MB} bytes" in said
    assert "the same command goes on" in said
    assert not (tmp_path / "nsd" / FIRST).exists()
    bucket.always = {FIRST: ("status", 503)}
    code, said = fetch()
    assert code == 69
    assert "the server answered 503" in said
    bucket.always, bucket.sent[FIRST] = {}, 0
    assert fetch()[0] == 0
    assert bucket.sent[FIRST] == 5 * MB
    check_whole(bucket, tmp_path / "nsd")
    assert fetch("--from", "http://127.0.0.1:9")[0] == 69


def test_out_of_order_for_a_while(bucket, fetch, tmp_path):
    slow = [("status", 503), ("status", 500)]
    bucket.faults = {"list": [*slow, ("status", 429)], SECOND: [*slow], DESIGN: [("status", 503)]}
    code, said = fetch("--jobs", "1")
    assert code == 0, said
    check_whole(bucket, tmp_path / "nsd")
    bucket.always = {"list": ("status", 503)}
    assert fetch()[0] == 69


@pytest.mark.parametrize("fault", [("whole",), ("span", "bytes 7-9/3145733"), ("span", "nonsense")])
def test_a_server_that_knows_no_ranges_or_gives_another(bucket, fetch, tmp_path, fault):
    bucket.faults = {SECOND: [("cut", MB), fault]}
    code, said = fetch()
    assert code == 0, said
    check_whole(bucket, tmp_path / "nsd")
    assert bucket.sent[SECOND] >= 4 * MB


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (("length", -5), 65, "the server has 3145728 bytes to come, expected 3145733"),
        (("length", 5), 65, "the server has 3145738 bytes to come, expected 3145733"),
        (("endless", 3), 65, "sent more than the 3145733 bytes"),
        (("etag", "another"), 65, "changed on the server, its ETag is another"),
        (("bytes", bytes(3 * MB + 5)), 65, "came damaged, or is another file: its MD5 is"),
        (("status", 404), 65, "the server answered 404"),
        (("status", 403), 69, "the server answered 403"),
        (("cut", 5), 69, "of 3145733 bytes (it ended there); the same command goes on there"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_a_wrong_file_is_named_and_not_placed(bucket, fetch, tmp_path, fault, code, words):
    bucket.always = {SECOND: fault}
    found, said = fetch()
    assert found == code, said
    assert words in said
    assert SECOND in said.splitlines()[-1]
    assert not (tmp_path / "nsd" / SECOND).exists()
    bucket.always = {}
    assert fetch()[0] == 0
    check_whole(bucket, tmp_path / "nsd")


def test_one_that_cannot_be_fetched_does_not_keep_the_others(bucket, fetch, tmp_path):
    bucket.always = {DESIGN: ("status", 404)}
    code, said = fetch("--jobs", "1")
    assert code == 65
    assert "1 of 10 files could not be fetched" in said
    assert files(tmp_path / "nsd") >= WANTED - {DESIGN}


def test_two_versions_are_never_joined(bucket, fetch, tmp_path):
    bucket.faults, bucket.always = {FIRST: [("cut", 2 * MB)]}, {FIRST: ("status", 503)}
    assert fetch()[0] == 69
    (bucket.root / FIRST).write_bytes(os.urandom(7 * MB))
    bucket.always, bucket.sent[FIRST] = {}, 0
    assert fetch()[0] == 0
    assert bucket.sent[FIRST] == 7 * MB
    check_whole(bucket, tmp_path / "nsd")


def test_listings_that_are_none(bucket, fetch):
    lost = b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"
    bucket.always = {"list": ("bytes", lost)}
    code, said = fetch()
    assert code == 65
    assert "the listing does not end" in said
    row = b"<ListBucketResult><Contents><Key>a</Key><Size>-1</Size></Contents></ListBucketResult>"
    bucket.always = {"list": ("bytes", row)}
    assert "found the size '-1'" in fetch()[1]
    entities = b'<!DOCTYPE a [<!ENTITY b "bbbb">]><ListBucketResult>&b;</ListBucketResult>'
    for text in (
        entities,
        entities.decode().encode("utf-16"),
        b"<ListBucketResult>",
        b"hello",
    ):  # then each is asked for by itself
        bucket.always = {"list": ("bytes", text)}
        assert fetch("--dry-run")[0] == 0


# --- one machine ----------------------------------------------------------------------------------


def start(bucket: Bucket, folder: Path, *words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "hpc/fetch_nsd.py"), *arguments(bucket, folder, *words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def wait_for_part(folder: Path, size: int) -> None:
    """Until what the server has sent is written."""
    tick = threading.Event()
    for _ in range(600):
        if any(p.stat().st_size >= size for p in (folder / BETAS).glob(".betas_session01*")):
            return
        tick.wait(0.05)
    raise AssertionError("nothing was written")


def test_killed_it_goes_on_and_two_are_not_let_in(bucket, fetch, tmp_path):
    folder = tmp_path / "nsd"
    bucket.faults = {FIRST: [("stall", 4 * MB)]}
    running = start(bucket, folder)
    assert bucket.stalled.wait(60)
    wait_for_part(folder, 4 * MB)
    code, said = fetch()
    assert code == 65
    assert "another fetch is at work there; wait for it" in said
    running.send_signal(signal.SIGKILL)
    running.communicate()
    bucket.go_on.set()
    assert not (folder / FIRST).exists()
    bucket.sent.clear()
    asked = len(bucket.asked)
    code, said = fetch()
    assert code == 0, said
    assert bucket.sent[FIRST] == 3 * MB
    assert ("GET", FIRST, 4 * MB) in bucket.asked[asked:]
    check_whole(bucket, folder)


def test_ctrl_c(bucket, fetch, tmp_path):
    bucket.faults = {FIRST: [("stall", 4 * MB)]}
    running = start(bucket, tmp_path / "nsd")
    assert bucket.stalled.wait(60)
    wait_for_part(tmp_path / "nsd", 4 * MB)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 130
    assert said.splitlines() == [
        "fetch_nsd: stopped; the same command goes on where this one ended"
    ]
    bucket.go_on.set()
    bucket.sent.clear()
    assert fetch()[0] == 0
    assert bucket.sent[FIRST] == 3 * MB
    check_whole(bucket, tmp_path / "nsd")


def test_a_disk_that_is_too_small(bucket, fetch, tmp_path):
    bucket.sizes[FIRST] = 10**16
    code, said = fetch()
    assert code == 65
    assert "are free, 1e+04 TB are to be fetched; free room or give another folder" in said
    assert not (tmp_path / "nsd").exists()
    assert bucket.got() == []


def test_a_disk_that_fills_and_a_folder_that_cannot_be_written(bucket, fetch, tmp_path):
    words = [sys.executable, str(ROOT / "hpc/fetch_nsd.py"), *arguments(bucket, tmp_path / "nsd")]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 2048; exec "$@"', "bash", *words],  # files of 2 MB at most
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 65
    assert done.stderr.splitlines()[-1].endswith(
        "File too large; mend it, the same command goes on"
    )
    assert fetch()[0] == 0
    check_whole(bucket, tmp_path / "nsd")
    (tmp_path / "file").write_text("")
    assert fetch_nsd.main(arguments(bucket, tmp_path / "file")) == 2
