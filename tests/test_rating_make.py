"""A study drawn from a run: balance, seeds, what is held against what, and what a rater gets to know."""

from __future__ import annotations

import json
from collections import Counter

import h5py
import numpy as np
import pytest
from PIL import Image
from rating_runs import SAMPLES, caption_of, write_run

from nsdcap.paths import Cell, artefact, sidecar
from nsdcap.rating.__main__ import main
from nsdcap.rating.make import make
from nsdcap.rating.study import page_of, read_study


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "out")


@pytest.fixture(scope="module")
def captions(out, tmp_path_factory):
    """A study of 10 pictures, 5 of each subject, 4 catch trials, 4 raters."""
    folder = tmp_path_factory.mktemp("made") / "captions"
    make(out, folder, "captions", raters=4, trials=10, seed=1, catch=4, log=lambda line: None)
    return folder


@pytest.fixture(scope="module")
def pictures(out, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "pictures"
    make(out, folder, "pictures", raters=2, trials=20, seed=1, catch=4, log=lambda line: None)
    return folder


def key(folder) -> dict:
    return json.loads((folder / "study.json").read_text())


def test_subjects_take_turns_and_no_picture_comes_twice_while_there_are_others(captions):
    trials = key(captions)["trials"]
    test = [trial for trial in trials if not trial["catch"]]
    assert Counter(trial["subject"] for trial in test) == {1: 5, 2: 5}
    assert max(Counter(trial["nsd_id"] for trial in test).values()) == 1
    # 12 pictures there are: two of the catch trials' have not been seen, two have
    assert sorted(Counter(trial["nsd_id"] for trial in trials).values()) == [1] * 10 + [2] * 2


def test_own_caption_is_held_against_another_pictures_of_the_same_subject(captions):
    for trial in key(captions)["trials"]:
        if not trial["catch"]:
            assert trial["target"] == caption_of(trial["subject"], trial["nsd_id"])
            assert trial["foil"] == caption_of(trial["subject"], trial["other"])
            assert trial["other"] != trial["nsd_id"]
        else:
            assert trial["target"].endswith(f" {trial['nsd_id']}.")
            assert trial["foil"].endswith(f" {trial['other']}.")


def test_every_rater_judges_every_trial_with_sides_balanced_and_orders_of_their_own(captions):
    study = key(captions)
    ids = [asked["id"] for order in study["raters"].values() for asked in order]
    assert len(set(ids)) == len(ids) == 4 * 14
    sides = {}
    for name, order in study["raters"].items():
        assert sorted(asked["trial"] for asked in order) == list(range(14))
        side = {asked["trial"]: asked["side"] for asked in order}
        sides[name] = [side[k] for k in range(14)]
        assert sides[name].count("left") == 7
        assert sides[name][10:].count("left") == 2  # the catch trials by themselves
        for subject in (1, 2):
            own = [side[k] for k, t in enumerate(study["trials"][:10]) if t["subject"] == subject]
            assert own.count("left") in (2, 3)
    assert all(a != b for a, b in zip(sides["rater01"], sides["rater02"], strict=True))
    assert sides["rater01"] != sides["rater03"]
    orders = {tuple(asked["trial"] for asked in order) for order in study["raters"].values()}
    assert len(orders) == 4


def test_a_seed_gives_the_same_study_and_another_seed_another(out, captions, tmp_path):
    again = {"raters": 4, "trials": 10, "catch": 4, "log": lambda line: None}
    make(out, tmp_path / "same", "captions", seed=1, **again)
    other = make(out, tmp_path / "other", "captions", seed=2, **again)
    for path in sorted(captions.rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "same" / path.relative_to(captions)).read_bytes()
    assert other.id != key(captions)["id"]
    assert [t.nsd_id for t in other.trials] != [t["nsd_id"] for t in key(captions)["trials"]]


def test_both_arms_are_of_the_same_noise_and_catch_trials_show_the_picture_itself(pictures):
    seen = set()
    for trial in key(pictures)["trials"]:
        shown, target, foil = (
            np.asarray(Image.open(pictures / trial[name]))[0, 0].tolist()
            for name in ("shown", "target", "foil")
        )
        assert shown == [trial["nsd_id"], 0, 0]
        if trial["catch"]:
            assert (target, foil) == (shown, [trial["other"], 0, 0])
            assert trial["other"] != trial["nsd_id"]
        else:
            sample = trial["sample"]
            assert target == [trial["nsd_id"], 100 + sample, 0]
            assert foil == [trial["nsd_id"], 0, 100 + sample]
            seen.add(sample)
    assert seen == set(range(SAMPLES))


def test_a_page_knows_ids_and_captions_and_nothing_of_which_is_which(captions, pictures):
    for folder in (captions, pictures):
        study = read_study(folder)
        for name, order in study.raters.items():
            page = page_of(study, name)
            assert list(page) == ["study", "kind", "rater", "trials"]
            assert [trial["id"] for trial in page["trials"]] == [asked.id for asked in order]
            for trial, asked in zip(page["trials"], order, strict=True):
                found = study.trials[asked.trial]
                if study.kind == "pictures":
                    assert list(trial) == ["id"]
                else:
                    assert list(trial) == ["id", "left", "right"]
                    other = {"left": "right", "right": "left"}[asked.side]
                    for side, text in ((asked.side, found.target), (other, found.foil)):
                        # of people and of captioners in one form
                        assert trial[side] == text[0].upper() + text[1:].removesuffix(".")


def test_a_captioner_that_repeats_itself_is_not_spared_pairs_that_read_the_same(tmp_path):
    """The other picture is drawn as if captions did not exist; how many pairs read the same is told."""
    out = write_run(tmp_path / "out", subjects=(1,), n=60)
    path = artefact(out, Cell("caption", 1))
    content = json.loads(path.read_text())
    for k, entry in enumerate(content["captions"].values()):
        entry["brain"] = ("a dog", "A dog.")[k % 2] if k < 30 else f"A cat, number {k}."
        entry["picture"] = ("A dog.", "a  dog")[k % 2]
    path.write_text(json.dumps(content))
    said: list[str] = []
    study = make(out, tmp_path / "study", "captions", catch=0, log=said.append)
    same = sum(t.target[2:5] == t.foil[2:5] == "dog" for t in study.trials)
    assert 7 <= same <= 22  # of 60 pairs 60 x 30/60 x 29/59 = 14.7 on average, sd 2.7
    assert f"{same} of 60 pairs of captions read the same; they stay" in said[1]
    of_one = make(out, tmp_path / "one", "captions", arm="picture", catch=0, log=said.append)
    assert len(of_one.trials) == 60
    assert "60 of 60 pairs of captions read the same" in said[-2]


def test_a_catch_trials_foil_shares_the_fewest_words(tmp_path):
    out = write_run(tmp_path / "out", subjects=(1,), n=3)
    path = artefact(out, Cell("caption", 1))
    content = json.loads(path.read_text())
    texts = {
        "3": ["Two dogs run."],
        "4": ["Dogs that swim.", "two brown dogs"],
        "5": ["A blue train."],
    }
    for i, references in texts.items():
        content["captions"][i]["references"] = references
    path.write_text(json.dumps(content))
    study = make(out, tmp_path / "study", "captions", trials=3, catch=3, log=lambda line: None)
    foils = {trial.nsd_id: trial.other for trial in study.trials if trial.catch}
    assert (foils[3], foils[4]) == (5, 5)


def test_catch_trials_are_plain_also_where_captions_are_of_short_words(tmp_path):
    out = write_run(tmp_path / "out", subjects=(1,), n=10)
    path = artefact(out, Cell("caption", 1))
    content = json.loads(path.read_text())
    for k, entry in enumerate(content["captions"].values()):
        entry["references"] = ["A red bus." if k == 9 else "A cat on a bed."]
    path.write_text(json.dumps(content))
    study = make(out, tmp_path / "study", "captions", trials=10, catch=10, log=lambda line: None)
    assert all(t.target != t.foil for t in study.trials if t.catch)


def test_fewer_pictures_than_asked_for_are_all_used_and_it_says_so(out, tmp_path, capsys):
    code = main(["make", str(out), str(tmp_path / "study"), "--study", "pictures", "--raters", "1"])
    assert code == 0
    assert "400 pictures were asked for and 24 are there: all are used" in capsys.readouterr().out
    study = key(tmp_path / "study")
    assert Counter(t["catch"] for t in study["trials"]) == {False: 24, True: 2}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--raters", "0"], "--raters 0: expected at least 1"),
        (["--trials", "0"], "--trials 0: expected at least 1"),
        (["--catch", "-1"], "--catch -1: expected at least 0"),
        (["--seed", "-1"], "--seed -1: expected 0 or above"),
        (["--arm", "brian"], "--arm brian: expected one of brain, picture"),
        (["--study", "pictures", "--arm", "brain"], "--arm brain: is for --study captions"),
    ],
)
def test_wrong_options_are_refused(out, tmp_path, capsys, options, says):
    assert main(["make", str(out), str(tmp_path / "new"), "--study", "captions", *options]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_what_is_missing_is_named(out, tmp_path, capsys):
    broken = write_run(tmp_path / "out")
    sidecar(broken, Cell("reconstruct", 2)).unlink()
    made = ["--study", "captions"]
    assert main(["make", str(broken), str(tmp_path / "new"), *made]) == 65
    assert "subj02.h5: not done; run the reconstruct stage first" in capsys.readouterr().err
    sidecar(broken, Cell("reconstruct", 2)).write_text("{}")
    with h5py.File(artefact(broken, Cell("reconstruct", 2)), "a") as file:
        file["nsd_id"][0] = 999
    assert main(["make", str(broken), str(tmp_path / "new"), *made]) == 65
    assert "2 of its pictures are not those of the caption stage" in capsys.readouterr().err
    artefact(broken, Cell("reconstruct", 1)).write_bytes(b"HDF")
    assert main(["make", str(broken), str(tmp_path / "new"), *made]) == 65
    assert "reconstruct/subj01.h5: cannot be read" in capsys.readouterr().err
    h5py.File(artefact(broken, Cell("reconstruct", 1)), "w").close()
    assert main(["make", str(broken), str(tmp_path / "new"), *made]) == 65
    assert "lacks nsd_id, shown, caption, direct;" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["make", str(out), str(tmp_path / "file" / "new"), *made]) == 2
    said = f"nsdcap.rating: {tmp_path / 'file'}: cannot be read or written (File exists); "
    assert capsys.readouterr().err.startswith(said)
    assert main(["make", str(tmp_path), str(tmp_path / "new"), *made]) == 2
    assert "found no config.toml there" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "answers").write_text("of people")
    assert main(["make", str(out), str(tmp_path / "full"), *made]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "full" / "answers").read_text() == "of people"
