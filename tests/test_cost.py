"""Estimates: sane at full size, above what solvers hold, growing with sizes; and the dry run's table."""

import json
from dataclasses import replace

import pytest
import torch

from nsdcap import config, cost, dry_run, launch, miniature, paths
from nsdcap.cells import Ledger
from nsdcap.config import STREAMS
from nsdcap.paths import Cell, failure
from nsdcap.sizes import DataSizes, model_sizes
from nsdcap.stages import STAGES, blip_config

FULL = DataSizes(24980, 8859, 982, 37, (3000, 1500, 1500, 1500, 1500, 1500, 1500))
HOUR, GB = 3600.0, 1e9


@pytest.fixture
def base(tmp_path):
    """Settings with BLIP base at 384 pixels, of which only the configuration is there."""
    folder = tmp_path / "blip"
    folder.mkdir()
    (folder / "config.json").write_text('{"text_config": {}, "vision_config": {"image_size": 384}}')

    def settings(*more: str):
        return config.load(settings=(f"models.blip={str(folder)!r}", *more))

    return settings


def of_stages(data: DataSizes, settings: config.Config) -> dict[str, cost.Cost]:
    """The cost of every kind of cell."""
    models = model_sizes(settings)
    found = {
        name: getattr(cost, name)(data, models, settings)
        for name in ("prepare", "decode", "caption", "reconstruct", "compare", "kernel")
    }
    found["features"] = cost.features(data.pictures, models, settings)
    found["encode z_v"] = cost.encode(data, models, settings, joint=False)
    found["encode layer"] = cost.encode(data, models, settings, joint=True)
    found["aggregate"] = cost.aggregate([data] * 4, models, settings)
    return found


def test_sizes_of_the_usual_models(base):
    """Known of them: 577 x 768 of z_v, 77 x 768 of c, 4 x 40 x 40 of z, operations within a third."""
    models = model_sizes(base())
    assert (models.z_v, models.c, models.z) == (577 * 768, 77 * 768, 4 * 40 * 40)
    assert models.see == pytest.approx(111e9, rel=0.33)  # ViT-B/16 at 384 pixels: 55.5 GMAC
    assert models.noise == pytest.approx(0.8e12, rel=0.33)
    assert models.paint == pytest.approx(2.5e12, rel=0.33)


def test_full_size_is_sane(base):
    """One subject of NSD: within the bounds that those who ran the like would name."""
    found = of_stages(FULL, base("ridge.device=cuda"))
    hours = {name: one.seconds / HOUR for name, one in found.items()}
    assert 8 < hours["reconstruct"] < 40
    assert 0.1 < hours["features"] < 2
    assert 0.05 < hours["decode"] < 1
    assert max(hours["kernel"], hours["encode layer"], hours["caption"]) < 1
    slow = of_stages(FULL, base("ridge.device=cpu"))
    assert 1 < slow["decode"].seconds / HOUR < 12
    assert slow["decode"].cores == cost.MOST_CORES
    assert not slow["decode"].gpu
    assert found["decode"].gpu
    assert not of_stages(FULL, base("models.device=cpu"))["reconstruct"].gpu
    assert 0.1 < hours["compare"] < 1
    assert not found["compare"].gpu  # no network without weights
    seen = of_stages(FULL, base("models.backbones=/weights"))["compare"]
    assert seen.gpu
    assert 0.02 < seen.seconds / HOUR < 0.5
    disk = {name: one.disk_bytes / GB for name, one in found.items()}
    assert disk["prepare"] == pytest.approx(4 * (24980 + 982) * 12000 / GB)
    assert 15.7 < disk["features"] < 20  # z_v alone is 8,859 x 443,136 float32
    assert 4 < disk["kernel"] < 4.5
    assert disk["reconstruct"] == pytest.approx(982 * 12 * 512**2 * 3 / GB)


def test_memory_is_above_what_is_held_and_fits_ordinary_nodes(base):
    memory = {name: one.memory_bytes / GB for name, one in of_stages(FULL, base()).items()}
    n, m, p, trials, folds = 8859, 982, 12000, 24980, 5
    voxels = 2 * 4 * trials * p
    bases = 4 * p * (folds * n + trials * (1 + n / trials)) + 8 * p * n
    making = 8 * (4 * p**2 + 4 * p * n + trials * p / folds)
    assert memory["decode"] > (voxels + bases + making) / GB
    assert memory["kernel"] > 2 * 8 * (folds + 1) * n**2 / GB
    assert memory["encode layer"] > (8 * (folds + 1) * n**2 + 3 * 4 * n * p) / GB
    assert memory["encode z_v"] > (8 * n**2 + 3 * 4 * n * p) / GB
    assert memory["caption"] > 3 * 4 * m * 443136 / GB
    assert memory["prepare"] > 0.6
    seen = of_stages(FULL, base("models.backbones=/weights"))["compare"]
    layers = 192 * 31 * 31 + 256 * 15 * 15
    assert seen.memory_bytes > 4 * m * layers + 11 * 2 * 4 * m**2
    assert max(memory.values()) < 32


@pytest.mark.parametrize(
    "more",
    [
        {"trials": 30000},
        {"pictures": 10000},
        {"tests": 1000},
        {"streams": tuple(2 * n for n in FULL.streams)},
        {"trials": 9000, "pictures": 8900},
    ],
)
def test_nothing_gets_cheaper_with_more_data(base, more):
    settings = base("ridge.device=cuda")
    less = replace(FULL, **{k: v for k, v in {"trials": 8900}.items() if more.get(k) == 9000})
    few, many = of_stages(less, settings), of_stages(replace(FULL, **more), settings)
    for name, one in many.items():
        for what in ("seconds", "flops", "memory_bytes", "disk_bytes"):
            assert getattr(one, what) >= 0.999 * getattr(few[name], what), (name, what)
    assert any(many[name].seconds > few[name].seconds for name in many)


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("ridge.folds=10", ("decode", "kernel", "encode layer")),
        ("ridge.alphas=[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20]", ("decode", "encode z_v")),
        ("encode.ratios=[0.1,0.5,1,2,10]", ("encode layer",)),
        ("caption.beams=6", ("features", "caption")),
        ("reconstruct.steps=100", ("reconstruct",)),
        ("reconstruct.samples=10", ("reconstruct", "compare")),
        ("models.backbones=/weights", ("compare",)),
        ("models.picture_size=480", ("features", "decode", "kernel", "caption")),
    ],
)  # fmt: skip
def test_settings_that_ask_for_more_cost_more(base, setting, names):
    few, many = of_stages(FULL, base()), of_stages(FULL, base(setting))
    for name in names:
        assert many[name].flops > few[name].flops
        assert many[name].memory_bytes >= few[name].memory_bytes


def test_one_penalty_for_all_targets_is_cheaper(base):
    each, one = (
        of_stages(FULL, base(f"decode.alpha={how}"))["decode"] for how in ("target", "feature")
    )
    assert one.flops < each.flops


def test_rois_decide_which_voxels_count():
    assert FULL.voxels() == 12000
    assert FULL.voxels(("early", "lateral")) == 4500
    assert FULL.voxels(STREAMS[1:]) == 9000


# --- the table --------------------------------------------------------------------------------------


@pytest.fixture
def many_layers(tiny_tree, tmp_path):
    """Arguments of a dry run of two subjects with 5,000 layers each, their settings and folder."""
    blip = tmp_path / "blip"
    blip.mkdir()
    kept = json.loads((miniature.MODELS / "blip/config.json").read_text())
    kept["text_config"]["num_hidden_layers"] = 4999
    (blip / "config.json").write_text(json.dumps(kept))
    torch.save({}, blip / "pytorch_model.bin")  # of which no one but a cell reads the tensors
    given = [*miniature.places(tiny_tree), "data.sessions=2", f"models.blip={str(blip)!r}"]
    out = tmp_path / "out"
    arguments = ["--nsd-root", str(tiny_tree), "--out", str(out), "--subjects", "1", "2"]
    arguments += [part for setting in given[:-1] for part in ("--set", setting)]
    arguments += ["--set", given[-1], "--dry-run"]
    return arguments, config.load(settings=(*given, "data.subjects=[1, 2]")), out


def test_ten_thousand_cells_are_few_lines_and_few_estimates(many_layers, capsys, monkeypatch):
    arguments, _, out = many_layers
    estimates, looked = [], []
    plain, plain_sizes = cost.Costs._estimate, cost.data_sizes

    def estimate(self, cell):
        estimates.append(cell)
        return plain(self, cell)

    def sizes(config, nsd, subject):
        looked.append(subject)
        return plain_sizes(config, nsd, subject)

    monkeypatch.setattr(cost.Costs, "_estimate", estimate)
    monkeypatch.setattr(cost, "data_sizes", sizes)
    assert launch.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 30
    assert any("encode subj02 layers 00-4999 (5000)" in line for line in lines)
    assert "10018 of 10018 cells would run, 0 would not" in lines[-2]
    assert sorted(looked) == [1, 2]
    assert len(estimates) == len(set(estimates)) == 20
    assert not out.exists()


def test_the_table_is_cut_where_every_cell_has_its_own_reason(many_layers, capsys):
    arguments, settings, out = many_layers
    ledger = Ledger(settings, out)
    for layer in range(500):
        note = failure(out, cell := Cell("encode", 1, layer))
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(f"{ledger.depends(cell)['signature']}\nValueError: number {layer}\n")
    assert launch.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= dry_run.ROWS + 5
    assert any("ValueError: number 3" in line for line in lines)
    assert any(line.startswith("... and ") for line in lines)


def test_sums_are_of_what_would_run(many_layers, capsys):
    _, settings, out = many_layers
    ledger = Ledger(settings, out)
    cells = STAGES["encode"].cells(settings)
    dry_run.tell_plan(ledger, cells[:101], force=False)
    one = cost.Costs(ledger).of(cells[1])
    first = cost.Costs(ledger).of(cells[0])
    total = (100 * one.seconds + first.seconds) / 3600
    assert f"about {total:,.1f} hours" in capsys.readouterr().out


def test_the_table_tells_what_the_site_gives(many_layers, tmp_path, capsys):
    arguments, settings, out = many_layers
    (tmp_path / "site.toml").write_text(
        "[defaults]\ncpus = 3\nmemory_gb = 70\n[stages.features]\ngpus = 2\nmemory_gb = 90\n"
    )
    cluster = ["--executor", "slurm", "--site", str(tmp_path / "site.toml")]
    assert launch.main([*arguments, *cluster]) == 0
    said = capsys.readouterr().out
    rows = {stage: f"{stage} subj01" for stage in ("decode", "features", "encode")}
    rows = {
        s: next(line for line in said.splitlines() if line.startswith(r)) for s, r in rows.items()
    }
    features = cost.Costs(Ledger(settings, out)).of(Cell("features", 1))
    assert rows["features"].split()[-4:] == ["2", "GPUs,", "3", "cores"]
    assert f" {dry_run.duration(features.seconds / 2)} " in rows["features"]
    assert " 90 GB " in rows["features"]
    for stage in ("decode", "encode"):
        assert " 70 GB " in rows[stage]
        assert rows[stage].endswith("  3 cores")
    assert "at most 90 GB of memory" in said
    assert not out.exists()


def test_names_of_groups():
    cells = [Cell("encode", 3, layer) for layer in (0, 1, 2, 5, 7, 8)]
    assert paths.name_of(cells) == "encode subj03 layers 00-02, 05, 07-08 (6)"
    assert paths.name_of(cells[3:4]) == "encode subj03 layer05"
    assert paths.name_of([Cell("encode", 3)]) == "encode subj03"
    odd = [Cell("encode", 1, layer) for layer in range(0, 40, 2)]
    assert paths.name_of(odd) == "encode subj01 layers 00, 02, 04, 06, 08, 10, ... (20)"


def test_units():
    assert [dry_run.duration(s) for s in (0.1, 60, 600, 36000)] == [
        "1 s",
        "60 s",
        "10 min",
        "10.0 h",
    ]
    assert [dry_run.size(b) for b in (1e3, 2.5e6, 1.23e9, 4e12)] == [
        "1 kB",
        "2.5 MB",
        "1.23 GB",
        "4 TB",
    ]


def test_blip_of_a_folder_is_read(base):
    blip_config.cache_clear()
    assert blip_config(base().models.blip)["vision_config"]["image_size"] == 384
