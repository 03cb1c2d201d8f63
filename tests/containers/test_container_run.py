"""containers/run.sh: signals, exit codes, environment, requeueing, odd characters, refused images.

Every test runs on the host and, where Apptainer is, in a real container.
"""

from __future__ import annotations

import functools
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from images import RUN, TinyImage

ODD = "a b\"c'd,e:f;$(touch pwned)`touch pwned` *é\\"


@pytest.fixture(params=["host", "image"])
def argv(request):
    """Function from a program (and run.sh's options) to run.sh's command line."""
    if request.param == "image":
        return request.getfixturevalue("tiny_image").argv
    return lambda *program, options=(): [str(RUN), *options, "--", *program]


def run(argv: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in ``cwd`` with more environment."""
    env = {**os.environ, **environment}
    return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


def python(code: str) -> tuple[str, ...]:
    """A program that runs lines of Python."""
    return sys.executable, "-c", code


def started(argv: list[str], cwd: Path, said: str = "ready", **how) -> subprocess.Popen[str]:
    """Start a command line and wait until its program has printed a line."""
    process = subprocess.Popen(
        argv, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == said
    return process


# ---- exit codes


@pytest.mark.parametrize("code", [0, 1, 65, 75, 255])
def test_exit_code_is_the_programs(argv, tmp_path, code):
    done = run(argv(*python(f"raise SystemExit({code})")), tmp_path)
    assert done.returncode == code
    last = f"nsdcap: the task ended with exit status {code}"
    assert done.stderr.splitlines()[-1:] == ([last] if code else [])


@pytest.mark.parametrize("name", ["KILL", "TERM", "SEGV"])
def test_a_killed_program_is_told_by_the_signals_name(argv, tmp_path, name):
    done = run(argv("sh", "-c", f"kill -{name} $$"), tmp_path)
    number = 128 + signal.Signals[f"SIG{name}"]
    assert done.returncode == number
    assert done.stderr == f"nsdcap: the task ended with exit status {number} (signal {name})\n"


def test_a_program_that_is_not_there_fails(argv, tmp_path):
    done = run(argv("no-such-program"), tmp_path)
    assert done.returncode in (127, 255)
    assert "no-such-program" in done.stderr


# ---- signals

TELLS = """
import os, signal, sys, time
def tell(number, frame):
    os.write(1, signal.Signals(number).name.encode() + b" ")
    if number == signal.SIGUSR2:
        time.sleep(0.5)  # a checkpoint takes a while, and run.sh must wait for it
        sys.exit(9)
for name in ("SIGTERM", "SIGCONT", "SIGUSR2"):
    signal.signal(getattr(signal, name), tell)
print("ready", flush=True)
time.sleep(30)
sys.exit(1)
"""


@pytest.mark.parametrize("whole_group", [False, True])
def test_signals_reach_the_program_and_its_end_is_waited_for(argv, tmp_path, whole_group):
    """SLURM signals all processes of a task, submitit's local executor the first alone."""
    env = {**os.environ, "SUBMITIT_EXECUTOR": "slurm" if whole_group else "local"}
    process = started(argv(*python(TELLS)), tmp_path, env=env, start_new_session=True)
    send = os.killpg if whole_group else os.kill
    for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2):
        send(process.pid, number)
        time.sleep(0.2)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 9, err
    seen = out.split()
    assert {"SIGTERM", "SIGCONT", "SIGUSR2"} == set(seen)
    assert err == "nsdcap: the task ended with exit status 9\n"


def test_interrupt_ends_the_program_as_it_would_alone(argv, tmp_path):
    code = "print('ready', flush=True)\nimport time\ntime.sleep(30)"
    # a shell that starts these tests in the background has them ignore it
    heed = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = started(argv(*python(code)), tmp_path, preexec_fn=heed)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in err
    assert process.returncode == 130


def test_ctrl_c_at_a_terminal_reaches_the_program_once(argv, tmp_path):
    """Twice would break off what the program does to end well."""
    code = """
import os, signal, time
signal.signal(signal.SIGINT, lambda *_: os.write(1, b"INT "))
os.write(1, b"ready ")
time.sleep(1)
raise SystemExit(4)
"""
    child, terminal = pty.fork()
    if child == 0:
        command = argv(*python(code))
        os.execv(command[0], command)
    said = b""
    try:
        while b"ready" not in said:
            said += os.read(terminal, 1000)
        os.write(terminal, b"\x03")
        while True:
            said += os.read(terminal, 1000)
    except OSError:  # the program and its terminal have ended
        os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    assert said.count(b"INT") == 1, said


def test_no_program_goes_on_when_run_sh_is_killed(argv, tmp_path):
    beat = tmp_path / "beat"
    code = f"""
import time
with open({str(beat)!r}, 'a') as beat:
    print('ready', flush=True)
    while beat.write('.') and not beat.flush():
        time.sleep(0.02)
"""
    process = started(argv(*python(code), options=("--bind", str(tmp_path))), tmp_path)
    process.kill()
    process.wait()
    time.sleep(0.5)
    last = beat.stat().st_size
    time.sleep(0.3)
    assert beat.stat().st_size == last
    process.communicate()


def test_standard_input_is_the_programs(argv, tmp_path):
    done = subprocess.run(argv("cat"), cwd=tmp_path, input="in\n", capture_output=True, text=True)
    assert done.stdout == "in\n"


# ---- environment

ENVIRONMENT = "import os, json; print(json.dumps(dict(os.environ)))"


def test_only_named_variables_pass_the_wall(tiny_image: TinyImage, tmp_path):
    passing = {
        "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_JOB_ID": "12",
        "SLURM_ARRAY_TASK_ID": "",
        "NSDCAP_ODD": ODD + "\nsecond line",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "OMP_NUM_THREADS": "3",
        "OPENBLAS_NUM_THREADS": "4",
        "MKL_NUM_THREADS": "5",
    }
    staying = {"PYTHONPATH": "/elsewhere", "LD_PRELOAD_OF_SITE": "1", "OMP_PLACES": "cores"}
    given = tiny_image.argv(*python(ENVIRONMENT), options=("--env", f"GIVEN={ODD}"))
    done = run(given, tmp_path, **passing, **staying)
    inside = json.loads(done.stdout)
    for name, value in passing.items():
        assert inside[name] == value
    assert inside["GIVEN"] == ODD
    assert inside["PYTHONNOUSERSITE"] == "1"
    assert not set(staying) & set(inside)
    assert not list(tmp_path.glob("**/pwned"))


def test_env_on_the_host(tmp_path):
    done = run([str(RUN), "--env", f"GIVEN={ODD}", "--", "printenv", "GIVEN"], tmp_path)
    assert done.stdout == ODD + "\n"


# ---- odd characters


def test_arguments_pass_unharmed(argv, tmp_path):
    words = [ODD, "", " ", "--nv", "--", "-x", "two\nlines", "*"]
    done = run(argv(*python("import sys; print(sys.argv[1:])"), *words), tmp_path)
    assert done.stdout == f"{words}\n"
    assert not list(tmp_path.iterdir())


def test_paths_with_odd_characters_are_bound(tiny_image: TinyImage, tmp_path):
    folder = tmp_path / ODD
    folder.mkdir()
    (folder / "in").write_text("inside\n")
    done = run(
        tiny_image.argv(
            "sh", "-c", 'cp "$1/in" "$1/out"', "sh", str(folder), options=("--bind", str(folder))
        ),
        Path("/"),
        APPTAINER_NO_MOUNT="tmp",  # else all of /tmp, and the folder with it, were inside anyway
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "out").read_text() == "inside\n"
    assert [path.name for path in tmp_path.iterdir()] == [ODD]


def test_a_bind_elsewhere_and_read_only(tiny_image: TinyImage, tmp_path):
    (tmp_path / "in").write_text("inside\n")
    spec = f"{tmp_path}:/data of mine:ro"
    done = run(
        tiny_image.argv(
            "sh", "-c", "cat '/data of mine/in'; touch '/data of mine/x'", options=("--bind", spec)
        ),
        tmp_path,
    )
    assert done.stdout == "inside\n"
    assert "Read-only" in done.stderr
    assert done.returncode == 1


# ---- requeueing

CHECKPOINTS = """
import os, time
from pathlib import Path

class Count:
    def __call__(self, folder):
        (Path(folder) / "ready").touch()
        time.sleep(30)
    def checkpoint(self, folder):
        import signal, submitit
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        return submitit.helpers.DelayedSubmission(self, folder)
"""


def test_requeue_inside_is_done_by_the_hosts_scontrol(tiny_image: TinyImage, tmp_path):
    """submitit's own checkpoint and requeue; the host's scontrol writes down what it is asked."""
    (tmp_path / "counting.py").write_text(CHECKPOINTS)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$*" >> "{tmp_path}/asked"\n')
    (tools / "scontrol").chmod(0o755)
    submit = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
import counting, submitit.core.utils as u
job = u.DelayedSubmission(counting.Count(), {str(tmp_path)!r})
job.set_timeout(60, 2)
job.dump({str(tmp_path)!r} + "/77_3_submitted.pkl")
"""
    subprocess.run(python(submit), check=True)
    options = ("--bind", str(tmp_path), "--env", f"PYTHONPATH={tmp_path}")
    process = subprocess.Popen(
        tiny_image.argv(
            sys.executable, "-u", "-m", "submitit.core._submit", str(tmp_path), options=options
        ),
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "SUBMITIT_EXECUTOR": "slurm",
            "SLURM_JOB_ID": "80",
            "SLURM_ARRAY_JOB_ID": "77",
            "SLURM_ARRAY_TASK_ID": "3",
        },
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for _ in range(200):
        if (tmp_path / "ready").exists():
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGUSR2)
    _, err = process.communicate(timeout=20)
    assert (tmp_path / "asked").read_text() == "requeue 77_3\n"
    assert process.returncode == 255
    assert err.splitlines()[-2:] == [
        "nsdcap: the task asked to go on later: scontrol requeue 77_3",
        "nsdcap: the task ended with exit status 255",
    ]


def test_a_requeue_that_fails_is_told(tiny_image: TinyImage, tmp_path):
    (tmp_path / "scontrol").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "scontrol").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = run(tiny_image.argv("scontrol", "requeue", "5"), tmp_path, PATH=path)
    assert "nsdcap: scontrol requeue 5 failed: the task is not queued again" in done.stderr


def test_scontrol_inside_is_for_requeueing_alone(tiny_image: TinyImage, tmp_path):
    done = run(tiny_image.argv("scontrol", "show", "job", "5"), tmp_path)
    assert done.returncode == 1
    assert "only 'scontrol requeue' is there" in done.stderr


# ---- submitit's local executor


def test_submitits_local_executor_runs_its_tasks_inside(tiny_image: TinyImage, tmp_path):
    import submitit

    executor = submitit.LocalExecutor(
        tmp_path / "log",
        python=shlex.join(tiny_image.argv(sys.executable, options=("--bind", str(tmp_path)))),
    )
    job = executor.submit(os.getenv, "APPTAINER_CONTAINER")
    assert job.result() == str(tiny_image.sif)


# ---- refused


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--image", "oras://registry/nsdcap:1"], 2, "pull it first"),
        (["--image", "docker://debian"], 2, "pull it first"),
        (["--image", "/no/such.sif"], 65, "there is no such file"),
        (["--image", "/"], 65, "there is no such file"),
        (["--image", sys.executable], 65, "is not an Apptainer image"),
        (["--env", "1X=2"], 2, "found '1X=2', expected NAME=VALUE"),
        (["--env", "X"], 2, "expected NAME=VALUE"),
        (["--nvidia"], 2, "found '--nvidia'"),
    ],
)
def test_refused_before_anything_runs(tmp_path, options, code, words):
    done = run([str(RUN), *options, "--", "touch", "ran"], tmp_path)
    assert done.returncode == code
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--"], "no program"), ([], "no program"), (["--bind"], "--bind: a value")],
)
def test_half_a_command_line_is_refused(tmp_path, options, words):
    done = run([str(RUN), *options], tmp_path)
    assert done.returncode == 2
    assert words in done.stderr


def test_a_truncated_image_is_refused(tiny_image: TinyImage, tmp_path):
    part = tmp_path / "part.sif"
    part.write_bytes(tiny_image.sif.read_bytes()[:30])
    done = run([str(RUN), "--image", str(part), "--", "true"], tmp_path)
    assert done.returncode == 65


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("/no/such/folder", "'/no/such/folder' is not there"),
        ("/no/such:/data", "'/no/such' is not there"),
        ("/tmp:/data:rx", "expected PATH, SOURCE:TARGET or SOURCE:TARGET:ro"),
        ("/tmp:/data:ro:x", "expected PATH, SOURCE:TARGET or SOURCE:TARGET:ro"),
        ("/tmp:data", "expected absolute paths"),
        (".", "expected absolute paths"),
    ],
)
def test_binds_that_cannot_be_are_refused(tiny_image: TinyImage, tmp_path, spec, words):
    done = run(tiny_image.argv("touch", "ran", options=("--bind", spec)), tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert not (tmp_path / "ran").exists()


def test_nothing_is_left_behind(tiny_image: TinyImage, tmp_path):
    done = run(tiny_image.argv("true"), tmp_path, TMPDIR=str(tmp_path))
    assert done.returncode == 0
    assert not list(tmp_path.iterdir())
