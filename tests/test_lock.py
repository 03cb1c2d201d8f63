"""One command at a time works on a run; a holder that is gone is no obstacle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from threading import Timer

import pytest

from nsdcap import launch, lock, status
from nsdcap.errors import UsageError

pytestmark = pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="no /proc here")
HOLD = (
    "import sys, time; from pathlib import Path; from nsdcap.lock import holding\n"
    "with holding(Path(sys.argv[1]), 'nsdcap.other'):\n"
    "    print('held', flush=True); sys.stdin.readline()"
)


def hold(out: Path) -> subprocess.Popen:
    """Another process that holds the run until its standard input is closed."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], **pipes)
    assert process.stdout.readline() == "held\n"
    return process


def put(out: Path, holder: lock.Holder, age: float = 0.0) -> Path:
    """A lock that was last touched ``age`` seconds ago."""
    path = lock.path_of(out)
    path.write_text(json.dumps(asdict(holder)))
    os.utime(path, (time.time() - age,) * 2)
    return path


def taken(out: Path) -> bool:
    with lock.holding(out, "nsdcap.test"):
        assert lock.read(out).pid == os.getpid()
    assert list(out.iterdir()) == []
    return True


def test_who_holds_a_run_is_told_and_it_is_free_afterwards(tmp_path):
    with hold(tmp_path) as other:
        with pytest.raises(lock.HeldError) as error, lock.holding(tmp_path, "nsdcap.launch"):
            pass
        assert error.value.exit_code == 75
        assert str(error.value).startswith(f"{tmp_path}: {lock._me('').user} on {lock.HOST} works")
        assert f"process {other.pid}: nsdcap.other {tmp_path})" in str(error.value)
        assert lock.read(tmp_path).pid == other.pid  # untouched
        other.stdin.close()
    assert taken(tmp_path)


def test_a_holder_of_this_machine_that_was_killed_is_followed_at_once(tmp_path):
    """Also as a zombie, and where its number is another's by now."""
    with hold(tmp_path) as other:
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        assert taken(tmp_path)
    put(tmp_path, replace(lock._me(""), start="1"))
    assert taken(tmp_path)


def test_one_that_is_elsewhere_counts_as_gone_when_it_has_long_been_silent(tmp_path):
    mine = lock._me("nsdcap.launch")
    for elsewhere in (replace(mine, host="far", place="x"), replace(mine, place="a container")):
        path = put(tmp_path, replace(elsewhere, pid=1), age=lock.GONE - 60)
        with pytest.raises(
            lock.HeldError, match=r"last sign of life was 5\d\d s ago.*remove .*lock\.json"
        ):
            taken(tmp_path)
        put(tmp_path, replace(elsewhere, pid=1), age=-3600)  # the file server's clock is fast
        with pytest.raises(lock.HeldError):
            taken(tmp_path)
        assert path.exists()
        put(tmp_path, replace(elsewhere, pid=1), age=lock.GONE + 5)
        assert taken(tmp_path)


def test_a_holder_gives_signs_of_life_and_not_for_another(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    with lock.holding(tmp_path, "nsdcap.test"):
        path = lock.path_of(tmp_path)
        os.utime(path, (0, 0))
        time.sleep(0.3)
        assert time.time() - path.stat().st_mtime < 60
        other = replace(lock._me(""), host="far")
        put(tmp_path, other, age=1000)
        time.sleep(0.3)
        assert time.time() - path.stat().st_mtime > 900
    assert lock.read(tmp_path) == other  # nor is it taken away


def test_a_lock_that_is_being_written_is_waited_for_and_one_that_stays_empty_is_not(
    tmp_path, monkeypatch
):
    path = lock.path_of(tmp_path)
    path.touch()
    writer = Timer(0.3, put, [tmp_path, lock._me("")])
    writer.start()
    with pytest.raises(lock.HeldError):
        taken(tmp_path)
    writer.join()
    monkeypatch.setattr(lock, "WRITING", 0.1)
    nobody = ("{}", '{"user": "x"}', '{"user": "x", "pid": 0}', '{"user": "", "pid": 1}')
    for text in ("", '{"user": "x', "[1]", "3", "[" * 100_000, *nobody):
        path.write_text(text)
        assert taken(tmp_path)


def test_a_lock_of_another_version_is_held_while_it_is_touched(tmp_path):
    path = lock.path_of(tmp_path)
    path.write_text('{"user": "someone", "pid": 1, "more": 2}')
    with pytest.raises(lock.HeldError, match="someone on"):
        taken(tmp_path)
    os.utime(path, (0, 0))
    assert taken(tmp_path)


def test_of_many_that_come_at_once_one_at_a_time_gets_it(tmp_path):
    """Each adds one to a number in a file, reading and writing it apart; the first finds a dead holder."""
    count = tmp_path / "count"
    count.write_text("0")
    put(tmp_path, replace(lock._me(""), start="1"))
    code = (
        "import sys, time; from pathlib import Path; from nsdcap import lock\n"
        "out = Path(sys.argv[1]); done = 0\n"
        "while done < 10:\n"
        "    try:\n"
        "        with lock.holding(out, 'x'):\n"
        "            n = int((out / 'count').read_text()); time.sleep(0.002)\n"
        "            (out / 'count').write_text(str(n + 1)); done += 1\n"
        "    except lock.HeldError: time.sleep(0.001)\n"
    )
    crowd = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(6)]
    assert [process.wait(60) for process in crowd] == [0] * 6
    assert count.read_text() == "60"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_of_many_that_take_over_a_dead_lock_one_alone_gets_it(tmp_path):
    """Each leaves a dead lock in the place of its own, so that every one that comes has to take over."""
    count, dead = tmp_path / "count", tmp_path / "dead"
    count.write_text("0")
    dead.write_text(json.dumps(asdict(replace(lock._me(""), start="1"))))
    code = (
        "import os, shutil, sys, time; from pathlib import Path; from nsdcap import lock\n"
        "out = Path(sys.argv[1]); mine = out / f'dead{os.getpid()}'; done = 0\n"
        "while done < 25:\n"
        "    try:\n"
        "        with lock.holding(out, 'x'):\n"
        "            n = int((out / 'count').read_text()); time.sleep(0.001)\n"
        "            (out / 'count').write_text(str(n + 1)); done += 1\n"
        "            shutil.copy(out / 'dead', mine); mine.replace(out / 'lock.json')\n"
        "    except lock.HeldError: pass\n"
    )
    crowd = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(8)]
    assert [process.wait(60) for process in crowd] == [0] * 8
    assert count.read_text() == "200"
    assert {path.name for path in tmp_path.iterdir()} == {"count", "dead", "lock.json"}


def test_one_that_was_killed_at_taking_it_is_no_obstacle_for_long(tmp_path, monkeypatch):
    taking = tmp_path / "lock.json.taking"
    taking.touch()
    monkeypatch.setattr(lock, "TAKING", 0.3)
    begun = time.monotonic()
    assert taken(tmp_path)
    assert time.monotonic() - begun > 0.2


def test_a_kill_at_any_time_leaves_what_the_next_one_takes_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "TAKING", 0.1)
    code = (
        "import sys; from pathlib import Path; from nsdcap.lock import holding\n"
        "print('begun', flush=True)\n"
        "while True:\n"
        "    with holding(Path(sys.argv[1]), 'x'): pass"
    )
    for number in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE
        ) as other:
            other.stdout.readline()
            time.sleep(0.003 * number)
            other.send_signal(signal.SIGKILL)
            other.wait()
        assert taken(tmp_path)


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    with (
        pytest.raises(UsageError, match=r"lock\.json: cannot be written"),
        lock.holding(tmp_path / "none", "nsdcap.test"),
    ):
        pass


def test_a_lock_that_is_a_folder_is_named_and_stays(tmp_path):
    path = lock.path_of(tmp_path)
    path.mkdir()
    with pytest.raises(UsageError, match=r"lock\.json: found a folder"):
        taken(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_who_is_told_to_work_on_a_run_lives(tmp_path):
    mine = lock._me("nsdcap.launch")
    far = replace(mine, host="far", place="x")
    for holder, age, lives in (
        (mine, 0, True), (mine, 9999, True), (replace(mine, start="1"), 0, False),
        (far, 0, True), (far, lock.GONE + 5, False),
    ):  # fmt: skip
        put(tmp_path, holder, age)
        assert lock.living(tmp_path) == (holder if lives else None)
    lock.path_of(tmp_path).unlink()
    assert lock.living(tmp_path) is None


def test_a_second_launch_leaves_and_changes_nothing(small_run, tmp_path, capsys):
    """Also for another stage, and with other settings."""
    arguments, done = small_run
    out = Path(shutil.copytree(done, tmp_path / "out", copy_function=os.link))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    words = [*arguments, "--stage", "kernel", "--out", str(out), "--set", "seed=5"]
    with hold(out) as other:
        for executor in ("inline", "local"):
            assert launch.main([*words, "--executor", executor]) == 75
            said = capsys.readouterr().err.splitlines()
            assert len(said) == 1
            assert f"process {other.pid}: nsdcap.other" in said[0]
        assert status.main([str(out), "--json"]) == 75  # reads all the same: aggregate is missing
        found = json.loads(capsys.readouterr().out)["holder"]
        assert (found["pid"], found["command"]) == (other.pid, f"nsdcap.other {out}")
        status.main([str(out)])
        said = capsys.readouterr().out.splitlines()[-1]
        assert said == (
            f"nsdcap.other of {found['user']} on {lock.HOST} (process {other.pid}) works on this run since "
            f"{found['since']}"
        )
        assert status._tell(out, False, True)[1]  # as --watch asks: it may still change
        capsys.readouterr()
        other.stdin.close()
    status.main([str(out), "--json"])
    assert json.loads(capsys.readouterr().out)["holder"] is None
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert {path for path in out.rglob("*") if path.is_file()} == set(before)
