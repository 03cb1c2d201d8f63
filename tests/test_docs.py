"""What the documents say is so: links, commands and their options, settings, costs, datasets, versions."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path

import h5py
import pytest
import yaml
from PIL import Image

import nsdcap
from nsdcap import config, miniature, plots_run
from nsdcap.stages import STAGES

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "hpc"))
import cost_table  # noqa: E402
import readme_pictures  # noqa: E402

PLACEHOLDER = re.compile(
    r"[A-Z]{2,}|NN|XX|\*|\{|<|\.\.\."
)  # of a path that no file has as it stands


@cache
def documents() -> tuple[Path, ...]:
    found = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    paths = [ROOT / name for name in found] or [
        p for p in ROOT.rglob("*.md") if not {".venv", "build"} & set(p.parts)
    ]
    return tuple(sorted(p for p in paths if p.is_file()))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(text: str) -> str:
    """Without fenced blocks."""
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Of the headings, as GitHub and Forgejo make them."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", prose(path.read_text(encoding="utf-8")), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        found.add(slug if slug not in found else f"{slug}-1")
    return found


# --- links and files ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", documents(), ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            assert re.fullmatch(r"https?://[\w.-]+\.\w+(/\S*)?", target), target
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{name_of(path)}: {target}"
        assert there.is_relative_to(ROOT)
        if anchor:
            assert anchor in anchors(there), f"{name_of(path)}: {target}"


def test_every_document_is_linked_from_the_readme_or_a_page_of_it() -> None:
    linked, left = {ROOT / "README.md"}, [ROOT / "README.md"]
    while left:
        page = left.pop()
        for target in re.findall(r"\]\(([^)#\s]+\.md)", prose(page.read_text(encoding="utf-8"))):
            there = (page.parent / target).resolve()
            if there.exists() and there not in linked:
                linked.add(there)
                left.append(there)
    assert set(documents()) == linked


@pytest.mark.parametrize("path", documents(), ids=name_of)
def test_files_that_are_named_exist(path: Path) -> None:
    """Paths below the repository's folders, in code or between backticks."""
    text = path.read_text(encoding="utf-8")
    if path.name == "CHANGELOG.md":
        return  # of what was then
    for file in re.findall(
        r"(?<![\w./-])(?:\./)?((?:hpc|slurm|containers|nsdcap|tests)/[\w./-]*\w)", text
    ):
        if not PLACEHOLDER.search(file.removesuffix("README.md")):
            assert (ROOT / file).exists() or (path.parent / file).exists(), file


def test_pictures_are_small_and_none_is_missing() -> None:
    shown = set(re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (ROOT / "README.md").read_text()))
    folder = readme_pictures.FOLDER
    assert {ROOT / name for name in shown} == set(folder.glob("*.png"))
    for path in folder.glob("*.png"):
        assert path.stat().st_size < 150_000
        with Image.open(path) as picture:
            assert picture.width <= readme_pictures.WIDTH
            assert picture.mode == "P"


def test_pictures_of_a_run_on_nsd_are_refused(tmp_path, capsys) -> None:
    (tmp_path / "aggregate").mkdir()
    about = {key: {} for key in plots_run.ABOUT} | {"subjects": [1]}
    (tmp_path / "aggregate/run.json").write_text(json.dumps(about))
    (tmp_path / "config.toml").write_text(f"[data]\nnsd_root = '{tmp_path}/nsd'\n")
    assert readme_pictures.main([str(tmp_path), "--into", str(tmp_path / "pictures")]) == 2
    assert "may not be shown" in capsys.readouterr().err
    assert not (tmp_path / "pictures").exists()
    assert readme_pictures.main([str(tmp_path / "nothing")]) == 65


# --- commands --------------------------------------------------------------------------------------


PROGRAM = re.compile(
    r"(?:python (-m [\w.]+|[\w./-]+\.py)|(?:bash )?(?:\./)?((?:hpc|slurm|containers)/[\w./-]+))(?= |$)"
)


def commands() -> list[tuple[str, str, tuple[str, ...]]]:
    """(document, program, options) of each command line in a fenced block or between backticks."""
    found = set()
    for path in documents():
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
        lines = [line for block in blocks for line in block.splitlines()]
        lines += [
            " ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text), re.DOTALL)
        ]
        for line in lines:
            line = line.split("  #")[0].strip()
            match = PROGRAM.match(line)
            if match and path.name != "CHANGELOG.md":
                words = shlex.split(line[match.end() :], comments=True)
                words = words[: words.index("--")] if "--" in words else words
                options = tuple(sorted({w.split("=")[0] for w in words if w.startswith("--")}))
                found.add((name_of(path), match[1] or match[2], options))
    return sorted(found)


@cache
def help_of(program: str) -> str:
    """What ``--help`` prints, asked in this process: loading libraries once is what takes time."""
    module = program.removeprefix("-m ")
    said = io.StringIO()
    argv, path, variables = sys.argv, list(sys.path), dict(os.environ)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            sys.argv = [module, "--help"]
            if program.startswith("-m "):
                runpy.run_module(module, run_name="__main__", alter_sys=False)
            else:
                sys.path.insert(0, str((ROOT / module).parent))
                runpy.run_path(str(ROOT / module), run_name="__main__")
    except SystemExit as error:
        if error.code not in (0, None):
            raise AssertionError(f"{program} --help: {said.getvalue()}") from error
    finally:
        sys.argv, sys.path[:] = argv, path
        os.environ.clear()
        os.environ.update(variables)  # benchmarks set their threads as they are loaded
    return said.getvalue()


def test_there_are_commands() -> None:
    programs = {program for _, program, _ in commands()}
    assert {
        "-m nsdcap.launch",
        "-m nsdcap.status",
        "-m nsdcap.report",
        "hpc/prefetch.py",
    } <= programs
    assert len(programs) > 20


@pytest.mark.parametrize(
    ("program", "options"),
    sorted({(program, options) for _, program, options in commands()}),
    ids=lambda value: value if isinstance(value, str) else "".join(value) or "alone",
)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_commands_exist_and_have_these_options(program: str, options: tuple[str, ...]) -> None:
    if program.startswith("-m "):
        if program == "-m pytest":
            return
        assert importlib.util.find_spec(program.removeprefix("-m ")), program
        if program in ("-m nsdcap.metrics", "-m nsdcap.rating"):
            return  # commands of their own: see below
    else:
        assert (ROOT / program).is_file()
        if not program.endswith(".py"):
            text = (ROOT / program).read_text(encoding="utf-8")
            passed_on = "nsdcap.launch" in text or "pytest" in text
            assert passed_on or all(option in text for option in options), (program, options)
            return
    if options:
        shown = help_of(program)
        for option in options:
            assert re.search(rf"{option}(?![\w-])", shown), f"{program} has no {option}"


def test_commands_within_commands_have_these_options() -> None:
    from nsdcap.metrics.__main__ import main as metrics
    from nsdcap.rating.__main__ import main as rating

    for path in documents():
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for name, command, rest in re.findall(
            r"python -m nsdcap\.(metrics|rating) (\w+)([^`\n]*)", text
        ):
            if path.name == "CHANGELOG.md":
                continue
            said = io.StringIO()
            with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as ended:
                {"metrics": metrics, "rating": rating}[name]([command, "--help"])
            assert ended.value.code == 0
            for option in re.findall(r"--[a-z-]+", rest):
                assert option in said.getvalue(), (name, command, option)


@pytest.mark.parametrize("path", documents(), ids=name_of)
def test_settings_exist(path: Path) -> None:
    """section.key between backticks or after --set; and every value there is taken."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"^```(python|datasets).*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    if path.name == "CHANGELOG.md":
        return
    sections = {f.name: f.type for f in fields(config.Config)}
    names = [n for n in sections if hasattr(getattr(config.Config(), n), "__dataclass_fields__")]
    for section, key in re.findall(rf"[`\s(]({'|'.join(names)})\.([a-z_A-Z]+)", text):
        if key not in ("py", "h5", "json", "py)"):
            assert hasattr(getattr(config.Config(), section), key), f"{section}.{key}"
    given = re.findall(r"--set ([\w.]+=[^\s`]+)", text)
    values = [g for g in given if "KEY" not in g and "..." not in g]
    config.load(settings=tuple(v.rstrip(",.") for v in values if not v.startswith("section")))


def test_exit_codes_are_told() -> None:
    """All that an error of this package ends a launch with."""
    told = re.findall(r"^\| (\d+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    codes = {
        code
        for path in (ROOT / "nsdcap").glob("*.py")
        for code in re.findall(r"^    exit_code = (\d+)", path.read_text(), re.MULTILINE)
    }
    assert codes | {"0", "130"} <= set(told)


# --- stages ----------------------------------------------------------------------------------------


def section(stage: str) -> str:
    text = (ROOT / "nsdcap/README.md").read_text(encoding="utf-8")
    return re.split(r"^##", text.split(f"\n### {stage}\n")[1], flags=re.MULTILINE)[0]


@pytest.mark.parametrize("stage", STAGES)
def test_settings_and_inputs_of_stages_are_those_of_the_table(stage: str) -> None:
    lines = re.split(r"^- ", section(stage), flags=re.MULTILINE)
    (settings,) = (line for line in lines if line.startswith("Settings:"))
    settings = settings.split("\n\n")[0]
    assert set(re.findall(r"`([^`]+)`", settings)) == set(STAGES[stage].settings)
    (reads,) = (line for line in lines if line.startswith("Reads:"))
    settled = config.Config(models=config.Models(blip=str(miniature.MODELS / "blip")))
    cell = STAGES[stage].cells(settled)[-1]
    inputs = {given.stage for given in STAGES[stage].inputs(cell, settled)}
    if stage == "aggregate":
        assert set(STAGES) - inputs - {stage} == set(re.findall(r"`(\w+)`", reads))
    else:
        assert inputs == set(re.findall(r"`(\w+)`", reads)) & set(STAGES)
    for kind, word in (("stimuli", "nsd_stimuli"), ("captions", "COCO"), ("design", "design")):
        assert (kind in STAGES[stage].nsd) == (word in reads), (stage, kind)
    assert bool(STAGES[stage].weights) == ("weights" in reads)


def documented(stage: str) -> tuple[str, list[tuple[str, tuple[str, ...], str]]]:
    """The file, and (name, shape, type) of its datasets, as nsdcap/README.md lists them."""
    file, block = re.search(r"```datasets (\S+)\n(.*?)```", section(stage), re.DOTALL).groups()
    listed = [
        re.fullmatch(r"(\S+)\s+\(([^)]*)\)\s+(\w+)(?:\s{2}.*)?", line).groups()
        for line in block.strip().splitlines()
    ]
    return file, [
        (name, tuple(p.strip() for p in shape.split(",") if p.strip()), kind)
        for name, shape, kind in listed
    ]


def check_datasets(run: Path, stage: str) -> None:
    """Every dataset of the file is listed, with its shape and type, and none is listed that is not there."""
    name, listed = documented(stage)
    patterns = [(re.compile(re.sub("<[^>]+>", "[^/]+", n)), shape, t) for n, shape, t in listed]
    seen, sizes = set(), {}
    with h5py.File(run / name) as file:
        datasets = {}
        file.visititems(
            lambda n, o: datasets.update({n: o}) if isinstance(o, h5py.Dataset) else None
        )
        for dataset, values in datasets.items():
            fitting = [k for k, (pattern, *_) in enumerate(patterns) if pattern.fullmatch(dataset)]
            assert len(fitting) == 1, f"{name}: {dataset}"
            seen.update(fitting)
            _, shape, kind = patterns[fitting[0]]
            assert kind == ("text" if values.dtype == object else str(values.dtype)), dataset
            assert len(shape) == values.ndim, dataset
            for letter, size in zip(shape, values.shape, strict=True):
                group = dataset.rpartition("/")[0]
                assert sizes.setdefault((group, letter), size) == size, (dataset, letter)
                assert not letter.isdigit() or int(letter) == size, (dataset, letter)
    assert seen == set(range(len(patterns)))


STAGES_OF_HDF5 = [stage for stage in STAGES if stage not in ("caption", "aggregate")]


@pytest.mark.parametrize("stage", STAGES_OF_HDF5)
def test_datasets_are_listed_in_a_form_that_can_be_checked(stage: str) -> None:
    """Against a real run they are held in test_miniature_run.py."""
    file, listed = documented(stage)
    assert file.startswith(f"{stage}/")
    assert len({name for name, *_ in listed}) == len(listed)


def test_costs_are_those_of_the_code() -> None:
    text = cost_table.README.read_text(encoding="utf-8")
    assert cost_table.written(text) == cost_table.table(), "run python hpc/cost_table.py --write"


def test_costs_grow_with_voxels_and_bad_ones_are_refused(capsys) -> None:
    few, many = list(cost_table.rows(6000)), list(cost_table.rows(24000))
    decode = {row.name: row for row in many}["decode"]
    assert decode.gpu.memory_bytes > 2 * {r.name: r for r in few}["decode"].gpu.memory_bytes
    assert all(b.cpu.seconds >= a.cpu.seconds for a, b in zip(few, many, strict=True))
    assert sum(cost_table.paper_data(10_001).streams) == 10_001
    assert cost_table.main(["--voxels", "3"]) == 2
    assert "expected at least 28" in capsys.readouterr().err


def test_costs_told_elsewhere_are_those_of_the_table() -> None:
    """The README's and FAQ's hours, disk and memory."""
    table = cost_table.table()
    hours, on_gpu = re.search(r"another: (\S+) hours, of them (\S+) with", table).groups()
    memory = float(re.search(r"at most (\S+) GB of memory", table)[1])
    painted = re.search(r"^\| `reconstruct`.*?\| (\S+) h \(16 cores\)", table, re.MULTILINE)[1]
    written = float(re.search(r"(\S+) GB written", table)[1])
    readme = " ".join((ROOT / "README.md").read_text().split())
    answers = " ".join((ROOT / "nsdcap/FAQ.md").read_text().split())
    assert f"about [{hours} hours of one GPU and {round(written, -1):.0f} GB of disk]" in readme
    assert f"about {hours} hours for four subjects, {on_gpu} of them with the GPU" in answers
    assert f"{memory:.0f} GB for a subject of 12,000 voxels" in answers
    assert f"about {float(painted):.0f} hours of 16 cores a subject" in answers


# --- citation and licence --------------------------------------------------------------------------


def test_citation_names_this_version_and_licence() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == nsdcap.__version__
    assert cited["cff-version"] == "1.2.0"
    assert cited["license"] == "BSD-3-Clause"
    assert (ROOT / "LICENSE").read_text().startswith("BSD 3-Clause License\n")
    assert {"message", "title", "authors", "type"} <= set(cited)
    assert all({"type", "title", "authors", "year"} <= set(one) for one in cited["references"])


def test_citation_has_the_references_of_the_report() -> None:
    """The same DOIs as in the methods text."""
    from nsdcap.report_references import REFERENCES

    known = " ".join(listed for _, listed in REFERENCES.values())
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["references"]
    dois = [one["doi"] for one in cited if "doi" in one]
    assert len(dois) >= 3
    assert all(f"doi:{doi}" in known for doi in dois)
