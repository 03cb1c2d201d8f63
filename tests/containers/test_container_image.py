"""Apptainer.def, build.sh and publish.sh: built, tested, pushed, pulled and run, and what they refuse."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from images import BUILD, PUBLISH, ROOT, RUN, need

from nsdcap import __version__, miniature
from nsdcap.paths import Cell, artefact, failure, sidecar

WALK = """
import hashlib, json, pathlib, nsdcap
root = pathlib.Path(nsdcap.__file__).parent
files = [p for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
print(json.dumps({str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}))
"""


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def inside(image: Path, *program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program in an image, with a clean environment."""
    return subprocess.run(
        ["apptainer", "exec", "--cleanenv", str(image), *program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )


def test_the_record_tells_what_the_image_holds(built_image):
    record = json.loads(Path(f"{built_image}.json").read_text())
    assert record["sha256"] == sha256(built_image)
    assert record["nsdcap"] == __version__
    assert record["base"].endswith("/base:12")
    freeze = inside(built_image, "pip", "list", "--format", "freeze").stdout.split()
    assert dict(line.split("==") for line in freeze) == record["packages"]
    if (ROOT / ".git").exists():
        ours = ["git", "merge-base", "--is-ancestor", record["commit"], "HEAD"]
        assert subprocess.run(ours, cwd=ROOT).returncode == 0
    labels = subprocess.run(
        ["apptainer", "inspect", "--labels", "--json", str(built_image)],
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(labels.stdout)["data"]["attributes"]["labels"]
    assert told["org.opencontainers.image.version"] == __version__
    assert told["org.opencontainers.image.revision"] == record["commit"]
    assert told["org.opencontainers.image.base.name"] == record["base"]


def test_versions_are_those_of_the_constraints(built_image):
    """All of them: what the constraints do not name would be another version next month."""
    record = json.loads(Path(f"{built_image}.json").read_text())
    lines = (ROOT / "containers" / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    pinned = {re.sub("[-_.]+", "-", name).lower(): version for name, version in pinned.items()}
    for name, version in record["packages"].items():
        if name not in ("nsdcap", "pip"):
            assert version.removesuffix("+cpu") == pinned[re.sub("[-_.]+", "-", name).lower()]


def test_every_file_of_the_package_is_inside(built_image):
    found = json.loads(inside(built_image, "python", "-c", WALK).stdout)
    here = {
        str(path.relative_to(ROOT / "nsdcap")): sha256(path)
        for path in (ROOT / "nsdcap").rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        # which file wrote the weights is for readers of the checkout
        and path.suffix in (".py", ".toml", ".j2", ".json", ".safetensors")
    }
    assert len(here) > 60
    assert {name: found.get(name) for name in here} == here


def test_a_pulled_image_is_the_published_one(built_image, pulled_image):
    assert sha256(pulled_image) == sha256(built_image)


def test_run_is_the_launcher(pulled_image):
    run = ["apptainer", "run", "--cleanenv", str(pulled_image)]
    helped = subprocess.run([*run, "--help"], capture_output=True, text=True, check=True)
    assert "python -m nsdcap.launch" in helped.stdout
    wrong = subprocess.run([*run, "--stage", "decoding"], capture_output=True, text=True)
    assert wrong.returncode == 2


def test_a_cell_inside_gives_the_same_bytes(pulled_image, tiny_tree, tmp_path):
    """And the same signature: a cell done inside is done for the host, and the other way round."""
    arguments = ["--stage", "prepare", "--subjects", "1", "--nsd-root", str(tiny_tree)]
    for setting in (*miniature.places(tiny_tree), "data.sessions=2"):
        arguments += ["--set", setting]
    launch = ("python", "-m", "nsdcap.launch", *arguments)
    binds = []
    for folder in (tiny_tree, tmp_path, ROOT / "nsdcap" / "miniature" / "models"):
        binds += ["--bind", str(folder)]
    for where, options in (("host", []), ("image", ["--image", str(pulled_image), *binds])):
        program = (sys.executable, *launch[1:]) if where == "host" else launch
        out = ["--out", str(tmp_path / where)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [RUN, *options, "--", *program, *out]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    host, image = (artefact(tmp_path / where, Cell("prepare", 1)) for where in ("host", "image"))
    assert image.read_bytes() == host.read_bytes()
    first, second = (
        json.loads(sidecar(tmp_path / where, Cell("prepare", 1)).read_text())["depends"]
        for where in ("host", "image")
    )
    assert first == second


def test_a_pool_of_this_machine_runs_its_cells_in_the_image(pulled_image, tree_copy, tmp_path):
    """``--executor local --image``: two cells at a time, one of which fails for its data."""
    betas = next((tree_copy / "nsddata_betas/ppdata/subj02").rglob("betas_session01.hdf5"))
    betas.unlink()
    betas = betas.with_name("betas_session01.nii.gz")  # read in full by its cell alone
    content = bytearray(betas.read_bytes())
    content[len(content) // 2] ^= 1
    betas.unlink()
    betas.write_bytes(content)
    arguments = ["--stage", "prepare", "--subjects", "1", "2", "--nsd-root", str(tree_copy)]
    for setting in (*miniature.places(tree_copy), "data.sessions=2"):
        arguments += ["--set", setting]
    site = tmp_path / "site.toml"
    # the copy is of links to files elsewhere
    elsewhere = Path(os.path.realpath(next(tree_copy.rglob("nsd_stimuli.hdf5")))).parents[3]
    site.write_text(f"binds = [{json.dumps(str(elsewhere))}]\n")
    chosen = {
        "inline": ["inline"],
        "local": ["local", "--jobs", "2", "--image", str(pulled_image), "--site", str(site)],
    }
    told = {}
    for name, words in chosen.items():
        line = [sys.executable, "-m", "nsdcap.launch", *arguments, "--executor", *words]
        done = subprocess.run(
            [*line, "--out", str(tmp_path / name)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 65, done.stdout + done.stderr
        told[name] = next(line for line in done.stderr.splitlines() if "FAILED" in line)
    assert "betas_session01.nii.gz" in told["local"]
    assert told["local"].split("FAILED")[1].split("; see")[0] in told["inline"]
    inline, local = (artefact(tmp_path / name, Cell("prepare", 1)) for name in chosen)
    assert local.read_bytes() == inline.read_bytes()
    # the traceback of the cell that failed names the files that ran
    traces = [failure(tmp_path / name, Cell("prepare", 2)).read_text() for name in chosen]
    assert f'"{ROOT}/nsdcap/prepare.py"' in traces[0]
    assert str(ROOT) not in traces[1]
    assert "site-packages/nsdcap/prepare.py" in traces[1]


def test_offline_and_caches_unless_told_otherwise(pulled_image, tmp_path):
    def environment(**given: str) -> dict[str, str]:
        text = inside(pulled_image, "env", **given).stdout
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    usual = environment()
    assert usual["HF_HUB_OFFLINE"] == usual["TRANSFORMERS_OFFLINE"] == "1"
    assert usual["PYTHONNOUSERSITE"] == "1"
    assert usual["MPLCONFIGDIR"].startswith("/tmp/nsdcap-cache-")
    told = environment(APPTAINERENV_HF_HUB_OFFLINE="0", APPTAINERENV_HF_HOME="/models")
    assert (told["HF_HUB_OFFLINE"], told["HF_HOME"]) == ("0", "/models")
    where = "import matplotlib, pathlib; pathlib.Path(matplotlib.get_configdir(), 'x').touch()"
    inside(pulled_image, "python", "-c", where, APPTAINER_BIND=f"{tmp_path}:/nsdcap-cache")
    assert (tmp_path / "matplotlib" / "x").exists()


# ---- refused


def refused(*command: object, **environment: str) -> tuple[int, str]:
    """Exit code and the one line that a refused command says."""
    env = {**os.environ, **environment}
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=env)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{}/nsdcap.img"], "ending in .sif"),
        ([], "ending in .sif"),
        (["{}/there.sif"], "--force replaces it"),
        (["{}/no/folder/x.sif"], "the folder of"),
        (["--wheels", "{}/none", "{}/x.sif"], "containers/wheels.sh makes one"),
        (["--extras", "cuda 13", "{}/x.sif"], "--extras: found 'cuda 13'"),
        (["--bas", "x", "{}/x.sif"], "found '--bas', which is no option"),
        (["{}/x.sif", "--base"], "a value is missing"),
        (["{}/x.sif", "{}/y.sif"], "expected one image"),
    ],
)
def test_build_refuses_before_any_work(tmp_path, words, said):
    need("apptainer")
    (tmp_path / "there.sif").touch()
    code, line = refused(BUILD, *(word.format(tmp_path) for word in words))
    assert code == 2
    assert said in line
    assert [path.name for path in tmp_path.iterdir()] == ["there.sif"]


def test_without_apptainer_scripts_say_so(tmp_path):
    for tool in ("bash", "dirname", "realpath", "env", "head", "tail", "tr", "hostname"):
        found = next(
            Path(folder) / tool for folder in ("/usr/bin", "/bin") if Path(folder, tool).exists()
        )
        (tmp_path / tool).symlink_to(found)
    image = tmp_path / "x.sif"
    assert refused(BUILD, image, PATH=str(tmp_path))[0] == 2
    image.write_bytes(b"#" * 32 + b"SIF_MAGIC\0")
    for command in ([PUBLISH, image, "oras://h/n:1"], [RUN, "--image", image, "--", "true"]):
        code, line = refused(*command, PATH=str(tmp_path))
        assert code == 2
        assert "no apptainer on the PATH" in line


def test_a_build_that_fails_leaves_nothing(registry, tmp_path):
    (tmp_path / "no wheels").mkdir()
    options = ["--base", registry.base, "--no-https", "--extras", "", "--fakeroot", "--fast"]
    done = subprocess.run(
        [BUILD, *options, "--wheels", tmp_path / "no wheels", tmp_path / "x.sif"],
        env={**os.environ, "APPTAINER_CACHEDIR": str(registry.cache)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "No matching distribution found" in done.stderr + done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["no wheels"]


def test_publish_refuses_what_was_not_tested(tmp_path):
    need("apptainer")
    image, address = tmp_path / "x.sif", "oras://127.0.0.1:1/lab/nsdcap:1"
    assert refused(PUBLISH, image, address)[0] == 65
    image.write_bytes(b"image")
    code, line = refused(PUBLISH, image, address)
    assert code == 65
    assert "x.sif.json is not there" in line
    Path(f"{image}.json").write_text(json.dumps({"sha256": sha256(image)}, indent=2))
    image.write_bytes(b"another")
    code, line = refused(PUBLISH, image, address)
    assert code == 65
    assert "it is not the image that was tested" in line


@pytest.mark.parametrize(
    "address", ["docker://h/n:1", "oras://h:1", "oras://h/n", "h/n:1", "oras://h/n:"]
)
def test_publish_refuses_other_addresses(tmp_path, address):
    need("apptainer")
    code, line = refused(PUBLISH, tmp_path / "x.sif", address)
    assert code == 2
    assert "expected oras://HOST/NAME:TAG" in line


def test_the_doctor_tries_all_imports_of_the_image(built_image, tiny_tree, tmp_path):
    words = ["--image", str(built_image), "--executor", "local", "--part", "cluster", "--json"]
    places = ["--nsd-root", str(tiny_tree), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "nsdcap.doctor", *places, *words], capture_output=True, text=True
    )
    rows = {row["check"]: row for row in json.loads(done.stdout)["rows"]}
    assert done.returncode == 0, rows
    assert rows["the image"]["verdict"] == "ok"
    record = json.loads(Path(f"{built_image}.json").read_text())
    assert f"torch {record['packages']['torch']}" in rows["the image"]["found"]
    assert not (tmp_path / "out").exists()
