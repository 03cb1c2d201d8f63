"""hpc/fetch_nsd.py against a bucket on loopback that serves NSD's layout: the files, the terms, the record."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import subprocess
import sys
import threading

import nibabel as nib
import numpy as np
import pytest
from bucket_server import serving
from fetched_nsd import (
    BETAS,
    CAPTIONS,
    DESIGN,
    FIRST,
    KEPT,
    MB,
    ROOT,
    SECOND,
    WANTED,
    ZIP,
    arguments,
    check_whole,
    fetch_nsd,
    files,
    write_zip,
)

from nsdcap import fetching, nsd_terms
from nsdcap.nsd import NSD, voxels_of
from nsdcap.nsd_files import KINDS, wanted
from nsdcap.nsd_files import files as files_read

# --- what is fetched ----------------------------------------------------------------------------


def test_what_was_fetched_is_all_that_the_reader_opens(tiny_tree, tmp_path, capsys):
    """The miniature's tree, by the real list: the reader finds the same in the copy, and needs no more."""
    served = tmp_path / "served"
    served.mkdir()
    for name in ("nsddata", "nsddata_betas", "nsddata_stimuli"):
        (served / name).symlink_to(tiny_tree / name)
    write_zip(served / ZIP, {key: (tiny_tree / key).read_bytes() for key in CAPTIONS})
    folder = tmp_path / "nsd"
    with serving(served) as bucket:
        words = arguments(bucket, folder, "--subjects", "1", "2")
        assert fetch_nsd.main(words) == 0
        asked = len(bucket.asked)
        assert fetch_nsd.main([*words, "--nifti", "--sessions", "1", "--skip", "stimuli"]) == 0
        again = bucket.got(asked)
    assert sorted(again) == sorted(
        FIRST.replace("hdf5", "nii.gz").replace("subj01", f"subj0{s}") for s in (1, 2)
    )
    mine, theirs = NSD(folder), NSD(tiny_tree)
    assert mine.sessions_available(2) == [1, 2]
    for subject in (1, 2):
        labels, affine = mine.roi(subject)
        np.testing.assert_array_equal(labels, theirs.roi(subject)[0])
        np.testing.assert_array_equal(affine, theirs.roi(subject)[1])
        xyz = voxels_of(labels, range(1, 8))[::50]
        for session in (1, 2):
            np.testing.assert_array_equal(
                mine.betas(subject, session, xyz), theirs.betas(subject, session, xyz)
            )
        np.testing.assert_array_equal(mine.ncsnr(subject, xyz), theirs.ncsnr(subject, xyz))
        assert mine.stream_labels(subject) == theirs.stream_labels(subject)
        volume = np.where(labels > 0, labels, np.nan).astype(float)
        for hemi in ("lh", "rh"):
            there = theirs.to_surface(subject, hemi, volume)
            np.testing.assert_array_equal(mine.to_surface(subject, hemi, volume), there)
            np.testing.assert_array_equal(
                mine.to_fsaverage(subject, hemi, there), theirs.to_fsaverage(subject, hemi, there)
            )
    ids = theirs.trials(1, [1]).nsd_id[:5]
    np.testing.assert_array_equal(mine.trials(1, [1]).nsd_id[:5], ids)
    np.testing.assert_array_equal(mine.pictures(ids), theirs.pictures(ids))
    assert mine.captions(ids) == theirs.captions(ids)
    capsys.readouterr()
    assert fetch_nsd.main([str(folder), "--check"]) == 0
    assert "none wrong" in capsys.readouterr().out
    image = nib.load(folder / FIRST.replace("hdf5", "nii.gz"))
    assert image.shape[3] == 750


def test_the_list_is_that_of_the_signatures(tree_copy):
    nsd = NSD(tree_copy)
    for kind in KINDS:
        paths = wanted(nsd, kind, [1, 2], [1, 2])
        assert files_read(nsd, kind, [1, 2], [1, 2]) == paths
        assert all(path.is_file() for path in paths)
    gone = wanted(nsd, "surfaces", [2], [])[3]
    gone.unlink()
    assert gone not in files_read(nsd, "surfaces", [1, 2], [])
    with pytest.raises(ValueError):
        wanted(nsd, "other", [1], [1])


def test_fetched_once_with_a_record_of_each(bucket, fetch, tmp_path):
    code, said = fetch()
    assert code == 0, said
    folder = tmp_path / "nsd"
    check_whole(bucket, folder)
    assert "lacks 7 files, nsddata/ppdata/subj01/transforms/lh.func1pt8-to-layerB1.mgz for" in said
    assert f"--nsd-root {folder}" in said
    manifest = json.loads((folder / "nsd-files.json").read_text())["files"]
    assert {*manifest} == WANTED
    assert {key: row["size"] for key, row in manifest.items()} == {
        key: (folder / key).stat().st_size for key in WANTED
    }
    assert manifest[FIRST]["etag"].endswith("-2")
    assert manifest[SECOND]["etag"] == bucket.etag(bucket.root / SECOND)
    assert manifest[FIRST]["from"] == f"{bucket.url}/{FIRST}"
    assert all(row["fetched"].endswith("+00:00") for row in manifest.values())
    assert bucket.got().count(FIRST) == 1

    asked = len(bucket.asked)
    code, said = fetch(accept=False)  # the terms are on record
    assert code == 0, said
    assert bucket.got(asked) == []
    assert "to be fetched: 0" in said
    (folder / FIRST).write_bytes(b"as a copy that was cut off")
    assert "found 26 bytes, expected 7340032" in fetch("--dry-run")[1]
    code, said = fetch("--check")
    assert code == 65
    assert f"WRONG {FIRST}: found 26 bytes, expected 7340032" in said
    (folder / SECOND).write_bytes(os.urandom(3 * MB + 5))
    assert f"WRONG {SECOND}: found MD5" in fetch("--check")[1]
    (folder / SECOND).unlink()
    assert f"WRONG {SECOND}: it is not there" in fetch("--check")[1]
    assert fetch()[0] == 0
    assert sorted(bucket.got(asked)) == [FIRST, SECOND]
    check_whole(bucket, folder)


def test_a_new_version_of_the_same_size_is_fetched_and_a_mirror_is_not_one(bucket, fetch, tmp_path):
    assert fetch()[0] == 0
    (bucket.root / DESIGN).write_bytes(os.urandom(300_000))
    asked = len(bucket.asked)
    code, said = fetch("--from", bucket.url.replace("127.0.0.1", "localhost"))
    assert (code, bucket.got(asked)) == (0, []), said
    assert "the server has another version" in fetch("--dry-run")[1]
    assert fetch()[0] == 0
    check_whole(bucket, tmp_path / "nsd")


def test_all_sessions_and_a_server_without_a_listing(bucket, fetch, tmp_path):
    code, said = fetch("--sessions", "0")
    assert code == 0, said
    check_whole(bucket, tmp_path / "nsd")
    bucket.listed = False
    (tmp_path / "nsd" / SECOND).unlink()
    code, said = fetch("--sessions", "0")
    assert code == 65
    assert "name how many --sessions" in said
    code, said = fetch()
    assert code == 0, said
    check_whole(bucket, tmp_path / "nsd")
    code, said = fetch("--sessions", "3")
    assert code == 65
    assert f"lacks 1 of 17 files, the first {BETAS}/betas_session03.hdf5" in said


def test_a_runs_settings(bucket, fetch, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(
        f'[data]\nsubjects = [1]\nsessions = 1\nannotations = "{tmp_path}/coco"\nnsd_root = "x"\n'
    )
    words = [
        str(tmp_path / "other"),
        "--config",
        str(config),
        "--from",
        bucket.url,
        "--accept-terms",
    ]
    assert fetch_nsd.main(words) == 0
    assert files(tmp_path / "other") == (WANTED - {SECOND, *CAPTIONS}) | KEPT
    config.write_text("[data]\nsesions = 1\n")
    assert fetch("--config", str(config))[0] == 2


# --- the terms ----------------------------------------------------------------------------------


def test_nothing_before_the_terms_are_accepted(bucket, fetch, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n"))  # which nobody typed
    code, said = fetch(accept=False)
    assert code == 2
    assert "https://cvnlab.slite.page/p/IB6BSeW_7o/Terms-and-Conditions" in said
    assert "--accept-terms" in said
    assert bucket.asked == []
    assert not (tmp_path / "nsd").exists()
    assert fetch()[0] == 0
    record = json.loads((tmp_path / "nsd/nsd-terms-accepted.json").read_text())
    assert record["terms"] == nsd_terms.TERMS
    assert record["accepted_by"]
    assert record["when"].endswith("+00:00")
    assert fetch(accept=False)[0] == 0
    monkeypatch.setattr(nsd_terms, "TERMS", "others")
    assert fetch(accept=False)[0] == 2
    (tmp_path / "nsd/nsd-terms-accepted.json").write_text("{")
    assert fetch(accept=False)[0] == 2


@pytest.mark.parametrize("typed", ["no", "yes"])
def test_asked_on_a_terminal(bucket, tmp_path, typed):
    ours, theirs = pty.openpty()
    os.write(ours, f"{typed}\n".encode())
    shown: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):
            while text := os.read(ours, 4096):
                shown.append(text)

    reader = threading.Thread(target=read)
    reader.start()
    done = subprocess.run(
        [sys.executable, str(ROOT / "hpc/fetch_nsd.py"),
         *arguments(bucket, tmp_path / "nsd", "--skip", "betas", accept=False)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}, stdin=theirs, stdout=subprocess.PIPE,
        stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    reader.join(10)
    os.close(ours)
    said = b"".join(shown).decode()
    assert done.returncode == (0 if typed == "yes" else 2), said
    if typed == "yes":
        assert files(tmp_path / "nsd") == (WANTED - {FIRST, SECOND}) | KEPT
        assert "8 of 8 files" in said  # the bar
    else:
        assert "NSD's terms are not accepted" in said
        assert not (tmp_path / "nsd").exists()
        assert bucket.asked == []


def test_progress_in_lines(bucket, fetch, monkeypatch):
    monkeypatch.setattr(fetching, "EVERY", 0.0)
    assert fetch("--skip", "betas")[0] == 0
    bucket.faults = {FIRST: [("cut", 2 * MB)]}
    bucket.always = {FIRST: ("status", 503)}
    assert fetch("--sessions", "1")[0] == 69
    bucket.always = {}
    last = [line for line in fetch("--sessions", "1")[1].splitlines() if "to go" in line][-1]
    assert last.startswith("5.24 MB of 5.24 MB (100 %), 1 of 1 files, ")  # of what was missing


def test_a_dry_run_writes_nothing(bucket, fetch, tmp_path):
    code, said = fetch("--dry-run")
    assert code == 0, said
    assert not (tmp_path / "nsd").exists()
    assert bucket.got() == []
    lines = {line.split()[2]: line for line in said.splitlines() if "to be fetched" in line[:200]}
    assert {*lines} >= WANTED - {*CAPTIONS} | {ZIP}
    assert lines[FIRST].split()[:2] == ["7.34", "MB"]
    total = sum((bucket.root / key).stat().st_size for key in WANTED - {*CAPTIONS} | {ZIP})
    assert f"10 files, {total / 1e6:.3g} MB; to be fetched: 10" in said


# --- captions -------------------------------------------------------------------------------------


def test_captions_that_are_none(bucket, fetch, tmp_path):
    other = json.dumps({"annotations": [{"id": 1}]}).encode()
    for content in ({CAPTIONS[0]: other}, dict.fromkeys(CAPTIONS, b"{"), {"x": b""}):
        write_zip(bucket.root / ZIP, content)
        code, said = fetch("--skip", "betas", "stimuli")
        assert code == 65
        assert "annotations/captions_train2017.json" in said
        assert not any((tmp_path / "nsd" / key).exists() for key in CAPTIONS)
    (bucket.root / ZIP).write_bytes(b"no zip")
    assert fetch("--skip", "betas")[0] == 65
    (bucket.root / ZIP).unlink()
    code, said = fetch("--skip", "betas")
    assert code == 65
    assert "or put captions_train2017.json and captions_val2017.json into" in said
    # as it says
    for key in CAPTIONS:
        good = {"annotations": [{"id": 1, "image_id": 2, "caption": "a cat"}]}
        (tmp_path / "nsd" / key).parent.mkdir(exist_ok=True)
        (tmp_path / "nsd" / key).write_text(json.dumps(good))
    code, said = fetch()
    assert code == 0, said
    manifest = json.loads((tmp_path / "nsd/nsd-files.json").read_text())["files"]
    assert manifest[CAPTIONS[0]]["fetched"] == ""


def test_cocos_own_file_is_told_by_its_sum(bucket, tmp_path):
    path = tmp_path / "out/zip"
    task = fetching.Task("zip", f"{bucket.url}/{ZIP}", (bucket.root / ZIP).stat().st_size, "", path,
                         tuple(CAPTIONS), fetch_nsd.COCO_SHA1)  # fmt: skip
    with pytest.raises(fetching.DataError, match=r"its SHA1 is .*, expected 8551ee4b"):
        fetching.bring(task, lambda gained: None)
    assert files(tmp_path / "out") == set()


# --- what is given --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--betas", "../../../../../../etc"], "data.betas: found '../../../../../../etc'"),
        (["--betas", ".."], "data.betas"),
        (["--subjects", "9"], "data.subjects"),
        (["--sessions", "41"], "data.sessions: found 41, expected"),
        (["--jobs", "0"], "--jobs: found 0"),
        (["--from", "file:///etc"], "--from: found 'file:///etc', expected http://"),
        (["--from", "http://me:secret@host"], "--from: a name or password"),
        (["--coco", "captions.zip"], "--coco: found"),
    ],
)  # fmt: skip
def test_wrong_options(bucket, fetch, tmp_path, words, told):
    code, said = fetch(*words)
    assert code == 2
    assert told in said
    assert not (tmp_path / "nsd").exists()
    assert bucket.asked == []


def test_no_key_leaves_the_folder(bucket, fetch, tmp_path):
    for key in ("../x", "/etc/passwd", "a/../../x", "a//b", "", ".", "a\\..\\b"):
        with pytest.raises(fetching.DataError, match="would leave"):
            fetch_nsd.bucket.place(tmp_path, key)
    assert fetch("--check")[0] == 65  # nothing was fetched
    assert fetch()[0] == 0
    path = tmp_path / "nsd/nsd-files.json"
    for text in (
        '{"files": {"../x": {"size": 1, "etag": "", "from": ""}}}',
        "{",
        '{"files": {"a": 1}}',
    ):
        path.write_text(text)
        for words in (["--check"], []):
            assert fetch(*words)[0] == 65
    packed = dict.fromkeys([*CAPTIONS, "../../../evil"], b'{"annotations": []}')
    write_zip(bucket.root / ZIP, packed)
    path.unlink()
    for key in CAPTIONS:
        (tmp_path / "nsd" / key).unlink()
    fetch()
    assert not list(tmp_path.parent.rglob("evil"))
