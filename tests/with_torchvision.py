"""Networks of torchvision, random weights on disk, against torchvision called directly.

Run by test_backbones.py in a process of its own: the torchvision beside the environment is made for torch's
CUDA build, and importing it needs operators defined that its own library would bring.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.append(os.environ["TORCHVISION_FOLDER"])

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import correlation

from nsdcap import backbones, config
from nsdcap import compare as stage
from nsdcap.backbones import Extractor, NotComputed, compare
from nsdcap.errors import DataError
from nsdcap.metrics.__main__ import main
from nsdcap.metrics.peers import BACKBONES, MEAN, METRICS, SPREAD
from nsdcap.metrics.pictures import two_way_identification
from nsdcap.paths import Cell, artefact

try:
    backbones._torchvision()
    BROKEN = ""
except NotComputed as error:  # as it stands: made for another torch
    BROKEN = str(error)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        LIBRARY.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms import functional

NAMES = {"alexnet": "alexnet", "inception": "inception_v3", "efficientnet": "efficientnet_b1",
         "swav": "resnet50"}  # fmt: skip
PUBLISHED = {"alexnet": "AlexNet_Weights.IMAGENET1K_V1", "inception": "Inception_V3_Weights.IMAGENET1K_V1",
             "efficientnet": "EfficientNet_B1_Weights.DEFAULT"}  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def networks(pictures):
    """Random weights; batch norms as they are after a look at some pictures, else deep features vanish."""
    torch.manual_seed(0)
    seen = torch.cat([prepared(picture, 96) for picture in pictures])
    made = {}
    for key, name in NAMES.items():
        more = {"init_weights": False, "transform_input": True} if key == "inception" else {}
        made[key] = getattr(models, name)(weights=None, **more).eval().requires_grad_(False)
        norms = [m for m in made[key].modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
            norm.train()
        with torch.no_grad():
            made[key](seen)
        made[key].eval()
    return made


@pytest.fixture(scope="module")
def folder(networks, tmp_path_factory):
    place = tmp_path_factory.mktemp("weights")
    for key, network in networks.items():
        tensors = dict(network.state_dict())
        if key == "alexnet":  # layers that are not looked at, as one number each on disk
            tensors |= {
                k: torch.zeros(()).expand(x.shape) for k, x in tensors.items() if "classifier" in k
            }
        if key == "swav":
            tensors = {f"module.{k}": x for k, x in tensors.items() if not k.startswith("fc.")}
            tensors["module.projection_head.0.weight"] = torch.zeros(4, 4)
            tensors["module.prototypes.weight"] = torch.zeros(4, 4)
        torch.save(tensors, place / BACKBONES[key].file)
    return place


@pytest.fixture(scope="module")
def pictures():
    """Six smooth pictures, of two sizes."""
    rng = np.random.default_rng(1)
    coarse = [rng.integers(0, 256, (6, 6, 3), dtype=np.uint8) for _ in range(6)]
    sides = (96, 120)
    return [
        np.asarray(Image.fromarray(x).resize((sides[i % 2],) * 2, Image.Resampling.BICUBIC))
        for i, x in enumerate(coarse)
    ]


def prepared(picture: np.ndarray, size: int) -> torch.Tensor:
    x = torch.tensor(picture).permute(2, 0, 1).float()[None] / 255
    x = functional.resize(x, [size, size], antialias=True)
    return functional.normalize(x, MEAN, SPREAD)


def direct(
    networks: dict, key: str, pictures: list[np.ndarray], size: int
) -> dict[str, np.ndarray]:
    """Features (n, d) by forward hooks on the whole network."""
    found: dict[str, list[np.ndarray]] = {layer: [] for layer in BACKBONES[key].layers}
    named = dict(networks[key].named_modules())
    hooks = [
        named[node].register_forward_hook(
            lambda module, given, out, layer=layer: found[layer].append(
                out.flatten(1).clone().numpy()
            )
        )
        for layer, node in BACKBONES[key].layers.items()
    ]
    with torch.no_grad():
        for picture in pictures:
            networks[key](prepared(picture, size))
    for hook in hooks:
        hook.remove()
    return {layer: np.concatenate(values).astype(np.float64) for layer, values in found.items()}


def test_a_torchvision_that_cannot_be_imported_is_a_reason():
    if not BROKEN:
        pytest.skip("this torchvision fits this torch")
    assert BROKEN.startswith("torchvision cannot be imported (")
    assert "torchvision::nms" in BROKEN


@pytest.mark.parametrize("key", PUBLISHED)
def test_files_and_sizes_are_those_of_torchvisions_weights(key):
    weights = models.get_weight(PUBLISHED[key])
    resized = weights.transforms()
    assert BACKBONES[key].url == weights.url
    assert weights.url.endswith("/" + BACKBONES[key].file)
    assert [BACKBONES[key].size] == resized.resize_size
    assert (tuple(resized.mean), tuple(resized.std)) == (MEAN, SPREAD)
    assert (resized.interpolation.value, resized.antialias) == ("bilinear", True)


@pytest.mark.parametrize("key", NAMES)
def test_features_are_torchvisions_own(networks, folder, pictures, key):
    """Centred and of unit length, whatever the batch and whatever the pictures' sizes."""
    extractor = Extractor(key, str(folder), CPU, 4)
    found = extractor(pictures[:2])
    expected = direct(networks, key, pictures[:2], BACKBONES[key].size)
    assert set(found) == set(expected) == set(BACKBONES[key].layers)
    for layer, values in expected.items():
        centred = values - values.mean(1, keepdims=True)
        centred /= np.linalg.norm(centred, axis=1, keepdims=True)
        assert centred.std(0).max() > 1e-4
        np.testing.assert_allclose(found[layer].numpy(), centred, atol=2e-5)


def test_alexnets_layers_are_the_nodes_of_peers_code(networks, pictures):
    """MindEye's code cuts the network off by its nodes."""
    peers = create_feature_extractor(
        networks["alexnet"], return_nodes=["features.4", "features.11"]
    )
    with torch.no_grad():
        theirs = peers(prepared(pictures[0], 256))
    ours = direct(networks, "alexnet", pictures[:1], 256)
    assert theirs["features.4"].shape[1:] == (192, 31, 31)
    for ours_layer, node in (("alexnet_2", "features.4"), ("alexnet_5", "features.11")):
        np.testing.assert_array_equal(ours[ours_layer][0], theirs[node].flatten().numpy())


@pytest.fixture
def small(monkeypatch):
    """The networks on smaller pictures, which take less time."""
    from dataclasses import replace

    for key, backbone in BACKBONES.items():
        monkeypatch.setitem(BACKBONES, key, replace(backbone, size=96))


@pytest.mark.parametrize("key", ["alexnet", "swav"])
def test_blocks_equal_the_whole(networks, folder, pictures, key, small):
    """To 2e-5: random weights magnify the last digits, in which batches differ."""
    rng = np.random.default_rng(0)
    n = len(pictures)
    other = [np.clip(p + rng.normal(0, 60, p.shape), 0, 255).astype(np.uint8) for p in pictures]
    made = {"close": other, "far": pictures[1:] + pictures[:1]}
    readers = {name: (lambda rows, some=some: some[rows]) for name, some in made.items()}
    extractor = Extractor(key, str(folder), CPU, 3)
    whole = compare(extractor, lambda rows: pictures[rows], readers, n)
    extractor.batch = 2
    parts = compare(extractor, lambda rows: pictures[rows], readers, n, held=4)
    shown = direct(networks, key, pictures, 96)
    for name, some in made.items():
        features = direct(networks, key, some, 96)
        for layer in BACKBONES[key].layers:
            if BACKBONES[key].two_way:
                expected = two_way_identification(features[layer], shown[layer])._asdict()
                expected = {f"{layer}_{k}": x for k, x in expected.items()}
            else:
                far = np.array([[correlation(a, b) for b in shown[layer]] for a in features[layer]])
                others = far[~np.eye(n, dtype=bool)].mean()
                expected = {layer: np.diag(far), f"{layer}:chance": others}
            for metric, values in expected.items():
                np.testing.assert_allclose(whole[name][metric], values, atol=2e-5)
                np.testing.assert_allclose(parts[name][metric], values, atol=2e-5)


def test_the_stage_writes_every_sample_and_names_what_is_missing(
    folder, small, tmp_path, monkeypatch
):
    weights, run = tmp_path / "weights", tmp_path / "run"
    weights.mkdir()
    (weights / BACKBONES["alexnet"].file).symlink_to(folder / BACKBONES["alexnet"].file)
    made = artefact(run, Cell("reconstruct", 1))
    made.parent.mkdir(parents=True)
    rng = np.random.default_rng(3)
    with h5py.File(made, "w") as file:
        file["nsd_id"] = [4, 2, 9]
        for name, shape in (("shown", ()), ("coarse", ()), ("caption", (2,)), ("direct", (2,))):
            file[name] = rng.integers(0, 256, (3, *shape, 32, 32, 3), dtype=np.uint8)
    settings = config.load(settings=(f"models.backbones={str(weights)!r}", "models.device=cpu"))
    cell, target = Cell("compare", 1), tmp_path / "out.h5"
    stage.run(cell, settings, None, run, target)
    with h5py.File(made) as file:
        shown, caption = file["shown"][:], file["caption"][:]
    readers = {str(s): (lambda rows, s=s: caption[rows, s]) for s in range(2)}
    expected = compare(
        Extractor("alexnet", str(weights), CPU, 32), lambda rows: shown[rows], readers, 3
    )
    with h5py.File(target) as file:
        for key in ("alexnet_2_among_shown", "alexnet_5_among_predicted"):
            one = np.stack([expected[str(s)][key] for s in range(2)], 1)
            np.testing.assert_allclose(file[f"caption/{key}"], one, atol=1e-6)
            assert file[f"coarse/{key}"].shape == (3, 1)
        why = json.loads(file.attrs["not_computed"])
    assert why["swav"].startswith("no swav_800ep_pretrain.pth.tar in the folder of weights")
    assert set(why) == {
        "inception_among_shown",
        "inception_among_predicted",
        "efficientnet",
        "swav",
    }
    monkeypatch.setattr(
        stage, "compare", None
    )  # its parts are still there: nothing is computed again
    stage.run(cell, settings, None, run, target)


def test_a_batch_that_does_not_fit_is_halved(folder, pictures, small, monkeypatch, capsys):
    extractor = Extractor("alexnet", str(folder), CPU, 4)
    readers = {"a": lambda rows: pictures[::-1][rows]}
    expected = compare(extractor, lambda rows: pictures[rows], readers, 6)
    network = extractor.network

    def narrow(x: torch.Tensor):
        if len(x) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return network(x)

    extractor.network = narrow
    found = compare(extractor, lambda rows: pictures[rows], readers, 6)
    assert "AlexNet: 4 at a time do not fit into memory, going on with 2" in capsys.readouterr().out
    assert extractor.batch == 2
    for key, values in expected["a"].items():
        np.testing.assert_allclose(found["a"][key], values, atol=1e-6)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: t.pop("conv1.weight"), "Missing key.*conv1.weight"),
        (lambda t: t.update({"more.weight": torch.zeros(1)}), "Unexpected key.*more.weight"),
        (lambda t: t.update({"conv1.weight": torch.zeros(3)}), "size mismatch for conv1.weight"),
    ],
    ids=["missing", "surplus", "shape"],
)
def test_other_weights_are_refused(networks, tmp_path, spoil, words):
    tensors = {k: torch.zeros(()).expand(x.shape) for k, x in networks["swav"].state_dict().items()}
    tensors = {k: x for k, x in tensors.items() if not k.startswith("fc.")}
    spoil(tensors)
    file = tmp_path / BACKBONES["swav"].file
    torch.save({f"module.{k}": x for k, x in tensors.items()}, file)
    with pytest.raises(DataError, match=words) as error:
        Extractor("swav", str(tmp_path), CPU, 1)
    assert str(error.value).startswith(f"{file}: not the weights of SwAV ResNet-50")


class Code:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"PK\x03\x04 cut", "cannot be read"), (Code(), "would run print"), ([1, 2], "found list")],
    ids=["broken", "code", "list"],
)
def test_what_is_not_tensors_is_refused(tmp_path, content, words, capsys):
    file = tmp_path / BACKBONES["alexnet"].file
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(DataError, match=words) as error:
        Extractor("alexnet", str(tmp_path), CPU, 1)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    assert "run" not in capsys.readouterr().out


def test_less_noise_scores_higher_on_every_metric(folder, pictures, small, tmp_path, capsys):
    """The command, end to end: two methods' pictures, one nearer to what was shown than the other."""
    rng = np.random.default_rng(2)
    places = {level: tmp_path / f"noise{level}" for level in (0, 4, 160)}
    for level, place in places.items():
        place.mkdir()
        for i, picture in enumerate(pictures):
            mixed = np.clip(picture + level * rng.normal(size=picture.shape), 0, 255)
            Image.fromarray(mixed.astype(np.uint8)).save(place / f"{i}.png")
    found = {}
    for level in (4, 160):
        words = ["pictures", str(places[level]), str(places[0]), "--json", "--device", "cpu"]
        assert main([*words, "--backbones", str(folder)]) == 0
        found[level] = {row["metric"]: row for row in json.loads(capsys.readouterr().out)}
    for metric in METRICS:
        near, far = found[4][metric.name], found[160][metric.name]
        assert (near["n"], near["note"], near["definition"]) == (6, "", metric.definition)
        assert near["ci_low"] <= near["value"] <= near["ci_high"]
        if metric.name.startswith("two-way"):
            assert near["value"] >= far["value"]
            assert near["chance_mean"] == 0.5 < near["value"]
        elif metric.name.endswith("distance"):
            assert near["value"] < far["value"] < 2
            assert near["value"] < near["chance_mean"]
        else:
            assert near["value"] > far["value"]
            assert near["value"] > near["chance_mean"]
    print(
        {
            k: (found[4][k]["value"], found[160][k]["value"], found[4][k]["chance_mean"])
            for k in found[4]
        }
    )


if __name__ == "__main__":
    sys.exit(pytest.main([str(Path(__file__)), *sys.argv[1:]]))
