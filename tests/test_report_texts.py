"""Numbers, folders and times as a report words them; no run is needed."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

from nsdcap import config
from nsdcap.config import Config, Data, Models
from nsdcap.report_costs import bytes_text, duration
from nsdcap.report_provenance import commit, settings_text
from nsdcap.report_results import layers_by_stream
from nsdcap.report_scores import Scores, columns, without_folders


def row(metric: str, value: str, subject: int = 1, arm: str = "brain", **more: str) -> dict:
    return {
        "subject": str(subject), "arm": arm, "metric": metric, "definition": f"{metric} defined",
        "value": value, "ci_low": "", "ci_high": "", "chance_mean": "", "chance_sd": "", "n": "12",
    } | more  # fmt: skip


def test_a_row_without_a_value_says_why():
    score = Scores([row("SPICE", "", note="needs Java in /opt/x/bin/java")], [1], "brain", "SPICE")
    assert (score.mean, score.why) == ("none", "needs Java in .../java")
    assert Scores([row("SPICE", "", note="a")], [1], "brain", "SPICE").interval == ""
    notes = ["not computed: no weights", "2 pictures left out"]
    table = [row("SSIM", value, k, note=notes[k - 1]) for k, value in ((1, ""), (2, "0.5"))]
    score = Scores(table, [1, 2], "brain", "SSIM")
    assert (score.mean, score.why, score.remarks) == ("0.500", "no weights", notes[1])


def test_interval_is_students_t_over_subjects():
    values = [0.2, 0.35, 0.4]
    table = [row("CLIP cosine", str(v), k + 1) for k, v in enumerate(values)]
    score = Scores(table, [1, 2, 3], "brain", "CLIP cosine")
    half = 4.302653 * np.std(values, ddof=1) / np.sqrt(3)  # t of 2 degrees at 97.5 %
    mean = np.mean(values)
    assert score.interval == f"{mean - half:.3f} to {mean + half:.3f}"
    table = [row("CLIP wins", str(v), k + 1) for k, v in enumerate([0.99, 0.6])]
    assert Scores(table, [1, 2], "brain", "CLIP wins").interval == "0.0 % to 100.0 %"


def test_numbers_of_a_column_have_the_same_digits():
    rows = [
        {"a": "1", "b": "0.5", "c": "x", "d": "1e-05"},
        {"a": "20", "b": "2", "c": "y", "d": "46.42"},
    ]
    found = {column.name: (column.numeric, column.cells) for column in columns(rows)}
    assert found == {
        "a": (True, ["1", "20"]), "b": (True, ["0.500", "2.000"]), "c": (False, ["x", "y"]),
        "d": (True, ["1.0e−05", "4.6e+01"]),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no file /home/anna/cache/w.pth", "no file .../w.pth"),
        ("~/x/y.bin; 1/2 and/or b", ".../y.bin; 1/2 and/or b"),
        ("betas / 300", "betas / 300"),
    ],
)
def test_folders_are_cut(text, expected):
    assert without_folders(text) == expected


def test_durations_and_sizes():
    assert [duration(s) for s in (0.24, 59.94, 60, 3599.9, 3600, 90061)] == [
        "0.2 s", "59.9 s", "1 min 00 s", "59 min 59 s", "1 h 00 min", "25 h 01 min",
    ]  # fmt: skip
    assert [bytes_text(b) for b in (12, 1500, 2.5e6, 3e12)] == [
        "12 B",
        "1.5 kB",
        "2.5 MB",
        "3.0 TB",
    ]


def test_commit_and_changes_are_those_of_the_checkout(tmp_path):
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    package = tmp_path / "nsdcap"
    package.mkdir()
    (package / "a.py").write_text("1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    head = git("rev-parse", "HEAD")
    assert commit(package) == head
    (tmp_path / "results").write_text("beside the code")
    assert commit(package) == head
    (package / "a.py").write_text("2\n")
    assert commit(package) == f"{head}, with changes that are not committed"
    inside = tmp_path / "venv/nsdcap"  # an installed copy within someone's checkout is not of it
    inside.mkdir(parents=True)
    assert not commit(inside).startswith(head)


def test_settings_tell_nobodys_folders():
    text = config.dump(
        Config(data=Data(nsd_root="/home/anna/nsd"), models=Models(blip="~/anna/b.pth"))
    )
    shown = settings_text(text)
    assert "anna" not in shown
    assert 'nsd_root = ".../nsd"' in shown
    assert 'diffusion = "CompVis/stable-diffusion-v1-4"' in shown


def test_means_of_best_layers_are_over_voxels_and_not_of_a_few():
    """Subject 1 has 6 voxels of mean 2 and subject 2 has 2 of mean 6; 4 early ones are too few."""

    def layer(subject: int, by: str, roi: str, n: int, mean: str) -> dict[str, str]:
        counts = {"n_voxels": "50", "n_significant": str(n)}
        return {"subject": str(subject), "by": by, "roi": roi, "mean_layer": mean, **counts}

    rows = [
        layer(1, "r", "ventral", 6, "2"), layer(2, "r", "ventral", 2, "6"), layer(1, "r", "early", 4, "5"),
        layer(2, "r", "early", 0, ""), layer(1, "r", "all", 10, "3"), layer(2, "r", "all", 2, "6"),
        layer(1, "gain", "all", 0, ""),
    ]  # fmt: skip
    assert layers_by_stream(rows, "r") == ("ventral 3.0", 12, 100)
    assert layers_by_stream(rows, "gain") == ("no stream with 5 such voxels", 0, 50)
