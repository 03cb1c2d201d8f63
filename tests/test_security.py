"""Nothing that a run reads is run: no file of data or weights, no name, nothing that others put there."""

from __future__ import annotations

import ast
import os
import pickle
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import nsdcap
from nsdcap import config, launch, miniature
from nsdcap.cells import Ledger
from nsdcap.errors import DataError, UsageError
from nsdcap.jobs import Array
from nsdcap.nsd import NSD
from nsdcap.paths import Cell, artefact
from nsdcap.private import keep_private
from nsdcap.site import Resources, load
from nsdcap.submit import Planned

ROOT = Path(nsdcap.__file__).resolve().parents[1]
# what a shell would run, split, or take for an option, a pattern or the end of a word
ODD = '- it\'s "odd" $(touch pwned) `touch pwned` $HOME & ; | > x * \\ #é'


class Code:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


# ---- pickles in data and weights


def pickled(path: Path, mark: Path, kind: str) -> None:
    """Put code in the place of a file, as numpy, torch or Python itself would write it."""
    path.unlink()
    with path.open("wb") as file:
        if kind == "npy":
            np.save(file, np.array([Code(mark)], object), allow_pickle=True)
        elif kind == "npz":
            np.savez(file, np.array([Code(mark)], object))
        elif kind == "torch":
            torch.save({"weight": Code(mark)}, file)
        else:
            pickle.dump(Code(mark), file)
            file.write(b"." * 1000)  # longer than any header


def would_run(path: Path, mark: Path, kind: str) -> bool:
    """Whether the file's own reader runs it when it is told to; puts the mark away again."""
    if kind in ("npy", "npz"):
        found = np.load(path, allow_pickle=True)
        if kind == "npz":
            found["arr_0"]
    elif kind == "torch":
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    ran = mark.exists()
    mark.rmdir()
    return ran


XYZ = np.array([[9, 9, 9], [10, 9, 9]])
READ = {
    "nsddata/experiments/nsd/nsd_expdesign.mat": lambda nsd: nsd.trials(1, [1]),
    "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR/betas_session01.hdf5":
        lambda nsd: nsd.betas(1, 1, XYZ),
    "nsddata/ppdata/subj01/func1pt8mm/roi/streams.nii.gz": lambda nsd: nsd.roi(1),
    "nsddata/ppdata/subj01/transforms/lh.white-to-fsaverage.mgz":
        lambda nsd: nsd.to_fsaverage(1, "lh", np.zeros(10)),
    "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5": lambda nsd: nsd.pictures([1]),
    "annotations/captions_train2017.json": lambda nsd: nsd.captions([1]),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["npy", "npz", "pickle"])
def test_code_in_place_of_data_is_one_error_and_not_run(tree_copy, tmp_path, kind):
    mark = tmp_path / "it-ran"
    coco = next(tree_copy.rglob("captions_train2017.json")).parent
    for name, read in READ.items():
        path = coco / Path(name).name if name.startswith("annotations") else tree_copy / name
        link = os.readlink(path)
        pickled(path, mark, kind)
        with pytest.raises(DataError, match=path.name) as error:
            read(NSD(tree_copy, coco_dir=coco))
        assert len(str(error.value).splitlines()) == 1
        assert not mark.exists(), name
        assert would_run(path, mark, kind)
        path.unlink()
        path.symlink_to(link)


def test_a_pickle_among_hdf5s_values_is_no_data(tree_copy, tmp_path):
    mark, stimuli = tmp_path / "it-ran", tree_copy / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
    stimuli.unlink()
    with h5py.File(stimuli, "w") as file:
        file["imgBrick"] = np.frombuffer(pickle.dumps(Code(mark)), np.uint8).view("V1")
    with pytest.raises(DataError, match=r"nsd_stimuli\.hdf5"):
        NSD(tree_copy).pictures([1])
    assert not mark.exists()


def load_blip(folder: Path) -> None:
    from nsdcap.blip import Blip

    Blip(config.Models(blip=str(folder), device="cpu"), config.Caption())


def load_clip(folder: Path) -> None:
    from transformers import CLIPModel

    from nsdcap.loading import load_part

    load_part(CLIPModel, "models.clip", str(folder))


def load_diffusion(folder: Path) -> None:
    from nsdcap.diffusion import Diffusion

    models = config.Models(diffusion=str(folder), device="cpu")
    Diffusion(models, config.load().reconstruct)


@pytest.mark.parametrize(
    ("model", "weights", "load"),
    [
        ("blip", "pytorch_model.bin", load_blip),
        ("clip", "pytorch_model.bin", load_clip),
        ("diffusion", "unet/diffusion_pytorch_model.bin", load_diffusion),
        ("diffusion", "text_encoder/pytorch_model.bin", load_diffusion),
    ],
)
def test_code_in_place_of_weights_is_one_error_and_not_run(tmp_path, model, weights, load):
    """Folders without safetensors are read by torch; code in them is not run."""
    folder, mark = tmp_path / model, tmp_path / "it-ran"
    shutil.copytree(miniature.MODELS / model, folder)
    path = folder / weights
    for file in path.parent.glob("*.safetensors"):
        file.unlink()
    path.touch()
    pickled(path, mark, "torch")
    with pytest.raises(DataError, match=f"models.{model}") as error:
        load(folder)
    assert len(str(error.value).splitlines()) == 1
    assert not mark.exists()
    assert would_run(path, mark, "torch")


def test_every_reader_of_pickles_is_told_not_to():
    """Bandit does not know of numpy's, nor whether torch's is told so in so many words."""
    found = []
    for path in [*(ROOT / "nsdcap").rglob("*.py"), *(ROOT / "hpc").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            told = {word.arg: ast.unparse(word.value) for word in node.keywords}
            wrong = (
                (called == "torch.load" and told.get("weights_only") != "True")
                or told.get("allow_pickle", "False") != "False"
                or told.get("trust_remote_code", "False") != "False"
                or called.split(".")[0] in ("pickle", "joblib", "dill", "marshal", "shelve")
                or called.endswith(("read_pickle", "all_gather_object", "broadcast_object_list"))
            )
            found += [f"{path.relative_to(ROOT)}:{node.lineno} {called}"] if wrong else []
    assert found == []


# ---- names


def arguments(root: Path, out: Path, *more: str) -> list[str]:
    words = [f"--nsd-root={root}", f"--out={out}", "--subjects", "1", "--stage", "prepare"]
    for setting in (*miniature.places(root), "data.sessions=2"):
        if not setting.startswith("data.nsd_root"):
            words += ["--set", setting]
    return [*words, *more]


@pytest.mark.parametrize("executor", ["inline", "local"])
def test_names_are_not_run(tiny_tree, tmp_path, executor):
    """By the command line: NSD's folder, the run's, and the folder that it is started in."""
    # a backslash cannot be in the name of a log, and is refused there
    odd = ODD.replace("\\", "") if executor == "local" else ODD
    here = tmp_path / odd
    here.mkdir()
    (here / f"{odd}nsd").symlink_to(tiny_tree)

    def run(root: str, out: str) -> subprocess.CompletedProcess[str]:
        words = arguments(Path(root), Path(out), "--executor", executor)
        return subprocess.run(
            [sys.executable, "-m", "nsdcap.launch", *words],
            cwd=here,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            umask=0,
        )

    for root, out in ((f"{odd}nsd\n$(touch pwned)", odd), (f"{odd}nsd", "x\n$(touch pwned)")):
        done = run(root, out)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in here.iterdir()] == [f"{odd}nsd"]
    done = run(f"{odd}nsd", odd)
    assert done.returncode == 0, done.stderr
    assert artefact(here / odd, Cell("prepare", 1)).exists()
    assert not list(tmp_path.rglob("pwned"))
    assert sorted(path.name for path in here.iterdir()) == sorted([odd, f"{odd}nsd"])
    if executor == "local":  # whatever the umask
        assert stat.S_IMODE((here / odd / "log").stat().st_mode) == 0o700
        assert stat.S_IMODE((here / odd / "jobs").stat().st_mode) == 0o755


def test_a_script_for_slurm_hands_every_name_on_as_it_is(tiny_tree, tmp_path):
    """sbatch's options a line each; the task's words as bash gives them to srun."""
    odd = ODD.replace("\\", "")
    out, tools = tmp_path / odd / "out", tmp_path / "bin"
    (tmp_path / odd).mkdir()
    tools.mkdir()
    named = {name: f"{name} {odd}" for name in ("partition", "account", "qos", "constraint")}
    image = tmp_path / odd / "an image.sif"
    site = tmp_path / odd / "site.toml"
    bind, cache = f"/tmp/{odd}", f"/var/{odd}"
    site.write_text(
        f"image = {toml(image.name)}\nbinds = [{toml(bind)}]\ncache = {toml(cache)}\n[defaults]\n"
        + "".join(f"{name} = {toml(value)}\n" for name, value in named.items())
        + f"extra = {{comment = {toml(odd)}}}\n"
    )
    settings = config.load(settings=(*miniature.places(tiny_tree), "data.subjects=[1]"))
    cells = (Cell("prepare", 1),)
    array = Array("nsdcap-prepare-12345678-x", "prepare", cells, tries=(1,), signatures=("",))
    ledger, given = Ledger(settings, out), load(site)
    needed = Resources(time_minutes=60, memory_gb=4, cpus=1, **given.defaults)
    text = launch.script(ledger, given, Planned(array, needed, []), False)[1]
    file = tmp_path / "script"
    file.write_text(text)
    subprocess.run(["bash", "-n", str(file)], check=True)
    options = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("#SBATCH")]
    assert all(len(words) == 1 for words in options)
    for name, value in {**named, "comment": odd}.items():
        assert [f"--{name}={value}"] in options
    body = next(k for k, line in enumerate(text.splitlines()) if line.startswith("srun"))
    assert not any(line.startswith("#SBATCH") for line in text.splitlines()[body:])

    (tools / "srun").write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    (tools / "srun").chmod(0o755)
    env = {"PATH": f"{tools}:/usr/bin:/bin", "SLURMD_NODENAME": "n1"}
    done = subprocess.run(
        ["bash", str(file)], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.split("\0")
    assert [words[k + 1] for k, word in enumerate(words) if word == "--image"] == [str(image)]
    bound = [words[k + 1] for k, word in enumerate(words) if word == "--bind"]
    assert {str(out), bind, cache} <= set(bound)
    assert f"HF_HOME={cache}" in words
    assert str(out / "jobs" / "run.sh") in words
    assert words[-3:] == ["submitit.core._submit", str(out / "log" / "slurm"), ""]
    assert not list(tmp_path.rglob("pwned"))


def toml(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@pytest.mark.parametrize("key", ["partition", "account", "extra.comment"])
def test_a_second_line_never_reaches_a_script(tmp_path, key):
    site = tmp_path / "site.toml"
    table, _, last = f"defaults.{key}".rpartition(".")
    site.write_text(f'[{table}]\n{last} = "a\\n#SBATCH --uid=0\\ntouch pwned"\n')
    with pytest.raises(UsageError, match=r"site\.toml: .*expected one line of text"):
        load(site)


# ---- what others could have put where tasks are read


@pytest.mark.parametrize(("name", "mode"), [("log", 0o755), ("log", 0o711), ("jobs", 0o775)])
def test_a_folder_that_others_can_read_is_closed_and_told(tmp_path, capsys, name, mode):
    folder = tmp_path / name
    folder.mkdir()
    folder.chmod(mode)
    keep_private(tmp_path)
    wanted = {"log": 0o700, "jobs": 0o755}
    assert {n: stat.S_IMODE((tmp_path / n).stat().st_mode) for n in wanted} == wanted
    assert f"{folder} had mode {mode:04o} and has {wanted[name]:04o} now" in capsys.readouterr().out
    keep_private(tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o1777, 0o722])
def test_a_launch_where_others_can_put_tasks_is_refused(tiny_tree, tmp_path, capsys, mode):
    out = tmp_path / "out"
    (out / "log").mkdir(parents=True)
    (out / "log").chmod(mode)
    assert launch.main(arguments(tiny_tree, out, "--executor", "local")) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert f"log has mode {mode:04o}" in told
    assert f"chmod 700 {out}/log" in told
    assert [path.name for path in out.iterdir()] == ["log"]
    assert not list((out / "log").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", ["log", "log/slurm", "log/slurm/7_0_submitted.pkl", "jobs/run.sh"])
def test_a_launch_into_anothers_folder_is_refused(tiny_tree, tmp_path, capsys, name):
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).mkdir() if name.endswith(("log", "slurm")) else (out / name).touch()
    os.chown(out / name, 65534, -1)
    assert launch.main(arguments(tiny_tree, out, "--executor", "local")) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert f"{out / name} belongs to user 65534, this is user 0" in told
    assert not artefact(out, Cell("prepare", 1)).exists()


def test_a_link_in_place_of_the_folder_is_followed_and_something_else_refused(tmp_path):
    aside, out = tmp_path / "aside", tmp_path / "out"
    aside.mkdir(mode=0o700)
    out.mkdir()
    (out / "log").symlink_to(aside)
    keep_private(out)
    aside.chmod(0o707)
    with pytest.raises(UsageError, match="log has mode 0707"):
        keep_private(out)
    (out / "log").unlink()
    (out / "log").touch()
    with pytest.raises(UsageError, match="log is no folder"):
        keep_private(out)
