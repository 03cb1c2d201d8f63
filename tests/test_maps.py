"""Maps on disk: a planted function of position, from voxels to the vertices of fsaverage."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from nsdcap.config import PHASES
from nsdcap.encoded import JOINT_MAPS, MAPS, Model, Voxels, derived
from nsdcap.maps import (
    SHOWN,
    Fixed,
    at_vertices,
    maps_of,
    write_listing,
    write_surfaces,
    write_volumes,
)
from nsdcap.nsd import NSD

SHAPE, LAYERS = (7, 6, 5), (0, 2, 5)
OWN, FSAVERAGE = 60, 163842  # vertices of the subject's hemisphere and of fsaverage's
NO_DATA = 9999.0


def position(xyz: np.ndarray) -> np.ndarray:
    """A number that tells the voxel: x y z as digits after the point."""
    return (xyz @ [100, 10, 1]) / 1000


@pytest.fixture(scope="module")
def voxels() -> Voxels:
    """All but the first plane of the volume."""
    xyz = np.argwhere(np.indices(SHAPE)[0] > 0)
    stream = np.arange(len(xyz)) % 7 + 1
    ceiling = np.linspace(0.1, 0.9, len(xyz))
    return Voxels(xyz, np.diag([1.8, 1.8, 1.8, 1]), stream, ceiling, SHAPE, 600)


@pytest.fixture(scope="module")
def models(voxels) -> list[Model]:
    """r tells the voxel, minus one for each BERT layer; p grows with x, and is NaN for one voxel."""
    found = []
    names = [("z_v", None, None), ("z_v_cls", None, None)]
    names += [(f, layer, p) for layer in LAYERS for f in ("z_B", "joint") for p in PHASES]
    for feature, layer, phase in names:
        keys = JOINT_MAPS if feature == "joint" else MAPS
        maps = dict.fromkeys(keys, position(voxels.xyz).astype("f4") - (layer or 0))
        p = np.where(voxels.xyz[:, 0] < 4, 1e-4, 0.8).astype("f4")
        p[5] = np.nan
        maps |= {"p_permutation": p, "p_gaussian": p}
        if feature == "joint":  # the best layer is 2 in odd x, 5 in even
            best = np.where(voxels.xyz[:, 0] % 2, 2, 5) == layer
            maps |= {"gain_p": p, "gain": (maps["gain"] + 9 * best).astype("f4")}
        maps |= derived(maps, voxels.ceiling)
        found.append(Model(feature, layer, phase, maps, {}, 0.0))
    return found


@pytest.fixture(scope="module")
def transforms(tmp_path_factory) -> tuple[NSD, dict]:
    """An NSD root with transform files alone, and what was written: depths, and fsaverage's vertices."""
    root = tmp_path_factory.mktemp("nsd")
    folder = root / "nsddata/ppdata/subj01/transforms"
    folder.mkdir(parents=True)
    written = {}
    for hemi, seed in (("lh", 0), ("rh", 1)):
        rng = np.random.default_rng(seed)
        # 0-based; beyond the centres of the outermost voxels nothing is sampled
        at = rng.integers(0, SHAPE, (OWN, 3)) + rng.uniform(-0.4, 0.4, (3, OWN, 3))
        at = np.clip(at, 0, np.array(SHAPE) - 1)
        at[:, :5] = NO_DATA - 1
        at[1, 5:9] = NO_DATA - 1  # the middle depth alone
        for depth, one in enumerate(at, 1):
            save(folder / f"{hemi}.func1pt8-to-layerB{depth}.mgz", one + 1)
        nearest = rng.integers(0, OWN, FSAVERAGE)
        save(folder / f"{hemi}.white-to-fsaverage.mgz", nearest + 1)
        written[hemi] = at, nearest
    return NSD(root), written


def save(path, values: np.ndarray) -> None:
    nib.save(nib.MGHImage(values.astype("f4").reshape(len(values), 1, -1), np.eye(4)), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, voxels, models, transforms):
    """A subject's maps on disk."""
    target = tmp_path_factory.mktemp("maps")
    maps = maps_of(models, voxels)
    entries = write_volumes(target, 1, maps, voxels)
    entries += write_surfaces(target, 1, maps, voxels, transforms[0], Fixed(5), print)
    write_listing(target, entries)
    return target


def by_hand(volume: np.ndarray, at: np.ndarray, vertex: int) -> list[float]:
    """The values of the voxels that a subject's vertex lies in, of those depths that have one."""
    values = []
    for x, y, z in at[:, vertex]:
        if x != NO_DATA - 1:
            values.append(
                volume[int(np.floor(x + 0.5)), int(np.floor(y + 0.5)), int(np.floor(z + 0.5))]
            )
    return [value for value in values if np.isfinite(value)]


@pytest.mark.parametrize("hemi", ["lh", "rh"])
@pytest.mark.parametrize(
    ("name", "middle"),
    [
        ("z_v_r", np.mean), ("z_B_late_r", np.mean), ("joint_early_gain", np.mean),
        ("z_v_q", np.max), ("joint_mid_gain_q", np.max), ("ceiling", np.mean),
        ("best_layer", lambda values: sorted(values)[(len(values) - 1) // 2]),
    ],
)  # fmt: skip
def test_vertices_have_the_planted_values(folder, transforms, hemi, name, middle):
    at, nearest = transforms[1][hemi]
    volumes = nib.load(folder / f"subj01/{name}.nii.gz").get_fdata().reshape(*SHAPE, -1)
    image = nib.load(folder / f"subj01/fsaverage/{hemi}.{name}.mgz")
    found = np.asarray(image.dataobj)
    frames = found.reshape(FSAVERAGE, -1)
    assert frames.shape[1] == volumes.shape[3] == (3 if name.startswith(("z_B", "joint")) else 1)
    assert image.get_data_dtype() == np.dtype(">f4")
    for frame in range(frames.shape[1]):
        own = [by_hand(volumes[..., frame], at, vertex) for vertex in range(OWN)]
        own = np.array([middle(values) if values else np.nan for values in own])
        assert np.isnan(own[:5]).all()
        assert np.isfinite(own).sum() > OWN / 3
        np.testing.assert_allclose(frames[:, frame], own[nearest], rtol=1e-6)


def test_volumes_hold_the_planted_function(folder, voxels):
    image = nib.load(folder / "subj01/z_B_early_r.nii.gz")
    assert image.shape == (*SHAPE, len(LAYERS))
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(image.affine, voxels.affine)
    for k, layer in enumerate(LAYERS):
        volume = image.get_fdata()[..., k]
        assert volume[3, 2, 4] == pytest.approx(0.324 - layer, rel=1e-6)
        assert np.isnan(volume[0]).all()
    over = nib.load(folder / "subj01/z_v_r_over_ceiling.nii.gz").get_fdata()[tuple(voxels.xyz.T)]
    low = voxels.ceiling < 0.2
    assert np.isnan(over[low]).all()
    expected = position(voxels.xyz)[~low] / voxels.ceiling[~low]
    np.testing.assert_allclose(over[~low], expected, rtol=1e-6)


@pytest.mark.parametrize("name", SHOWN)
def test_figures_get_significant_vertices_of_the_fixed_layer(folder, name):
    stem, frame = {"z_B_r": ("z_B_mid_r", 2), "gain": ("joint_mid_gain", 2)}.get(name, (name, 0))
    q = {"z_v_r": "z_v_q", "z_B_r": "z_B_mid_q", "gain": "joint_mid_gain_q"}.get(name)
    for hemi in ("lh", "rh"):
        image = nib.load(folder / f"subj01/fsaverage5/{hemi}.{name}.func.gii")
        assert image.darrays[0].meta["Name"] == name
        full, below = (
            np.asarray(nib.load(folder / f"subj01/fsaverage/{hemi}.{one}.mgz").dataobj)
            .reshape(FSAVERAGE, -1)[:10242, frame]
            for one in (stem, q or stem)
        )  # fmt: skip
        with np.errstate(invalid="ignore"):
            shown = below < 0.05 if q else np.isfinite(full)
        assert 0 < shown.sum() < 10242
        np.testing.assert_array_equal(image.darrays[0].data, np.where(shown, full, np.nan))


def test_best_layers_are_the_planted_ones_where_significant(folder, voxels):
    best, by_r = (
        nib.load(folder / f"subj01/{name}.nii.gz").get_fdata()[tuple(voxels.xyz.T)]
        for name in ("best_layer", "best_layer_r")
    )
    x = voxels.xyz[:, 0]
    known = (x < 4) & (np.arange(len(x)) != 5)
    np.testing.assert_array_equal(best[known], np.where(x % 2, 2, 5)[known])
    np.testing.assert_array_equal(by_r[known], 0)  # r falls with the layer
    assert np.isnan(best[~known]).all()
    assert np.isnan(by_r[~known]).all()


def test_every_file_is_listed_as_it_is(folder, voxels):
    entries = json.loads((folder / "maps.json").read_text())
    files = {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
    assert {entry["file"] for entry in entries} == files - {"maps.json", "README.md"}
    by_file = {entry["file"]: entry for entry in entries}
    one = by_file["subj01/joint_late_gain_q.nii.gz"]
    found = {key: one[key] for key in ("subject", "feature", "phase", "statistic", "layers")}
    assert found == {"subject": 1, "feature": "joint", "phase": "late", "statistic": "gain_q",
                     "layers": list(LAYERS)}  # fmt: skip
    assert one["n_voxels"] == len(voxels.xyz) - 1
    assert by_file["subj01/fsaverage5/lh.z_B_r.func.gii"]["layers"] == [5]
    text = (folder / "README.md").read_text()
    assert all(f"`{entry['statistic']}`" in text for entry in entries)


def test_a_missing_transform_leaves_no_surface(tmp_path, voxels, models, transforms):
    root = transforms[0].root
    path = root / "nsddata/ppdata/subj01/transforms/rh.white-to-fsaverage.mgz"
    kept = path.read_bytes()
    path.unlink()
    said: list[str] = []
    maps = maps_of(models, voxels)
    try:
        found = write_surfaces(tmp_path, 1, maps, voxels, transforms[0], Fixed(5), said.append)
    finally:
        path.write_bytes(kept)
    assert found == []
    assert not list(tmp_path.rglob("*.*"))
    assert "not on the cortex" in said[0]
    assert path.name in said[0]


def test_depths_without_a_value_are_left_out():
    rows = np.array([[0, -1, 2, -1], [1, 1, -1, -1], [2, 2, 3, -1]])
    values = np.array([1.0, 2.0, 6.0, np.nan])
    for reduction, expected in (
        ("mean", [3, 4, 6, np.nan]), ("largest", [6, 6, 6, np.nan]), ("median", [2, 2, 6, np.nan]),
    ):  # fmt: skip
        np.testing.assert_array_equal(at_vertices(values, rows, reduction), expected)
    with pytest.raises(ValueError, match="expected mean, largest or median"):
        at_vertices(values, rows, "mode")
