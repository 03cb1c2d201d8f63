"""The picture metrics that peers report: which networks, which of their layers, and each one's words.

The networks are torchvision's (and SwAV's ResNet-50), read as the evaluation code of MindEye reads them:
the whole picture, resized to the size that torchvision's transform of these weights resizes to, is not
cropped. MindEye's code shrinks all pictures to 256 pixels before anything, which is left out here;
Brain-Diffuser's takes the same layers at 224 pixels for all networks. So peers' own figures are not
quite of one measure.
"""

from __future__ import annotations

from dataclasses import dataclass

PIXELS = 425  # NSD's own size, at which peers hold pixels against each other
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's channels
_TORCHVISION = "https://download.pytorch.org/models/"


@dataclass(frozen=True)
class Backbone:
    """A network: its ``title``, the ``file`` of its weights and the ``url`` of that, the side ``size``
    in pixels that pictures are resized to, its ``layers`` by our keys, and whether these tell pictures
    apart (``two_way``) or tell how far two are from each other."""

    title: str
    file: str
    url: str
    size: int
    layers: dict[str, str]
    two_way: bool


@dataclass(frozen=True)
class Metric:
    """One column of peers' tables: ``key`` in the compare stage's file, ``name``, ``definition``."""

    key: str
    name: str
    definition: str


def _torchvision(
    title: str, file: str, size: int, layers: dict[str, str], *, two_way: bool
) -> Backbone:
    return Backbone(title, file, _TORCHVISION + file, size, layers, two_way)


BACKBONES: dict[str, Backbone] = {
    "alexnet": _torchvision("AlexNet", "alexnet-owt-7be5be79.pth", 256,
                            {"alexnet_2": "features.4", "alexnet_5": "features.11"}, two_way=True),
    "inception": _torchvision("Inception-v3", "inception_v3_google-0cc3c7bd.pth", 342,
                              {"inception": "avgpool"}, two_way=True),
    "efficientnet": _torchvision("EfficientNet-B1", "efficientnet_b1-c27df63c.pth", 255,
                                 {"efficientnet": "avgpool"}, two_way=False),
    "swav": Backbone("SwAV ResNet-50", "swav_800ep_pretrain.pth.tar",
                     "https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar", 224,
                     {"swav": "avgpool"}, two_way=False),
}  # fmt: skip
DIRECTIONS = {
    "among_shown": "share of other shown pictures that resemble the prediction less",
    "among_predicted": "share of other predictions that resemble the shown picture less",
}
_WORDS = {
    "alexnet_2": "AlexNet features.4 (the ReLU after its second convolution)",
    "alexnet_5": "AlexNet features.11 (the ReLU after its fifth)",
    "inception": "Inception-v3 avgpool",
    "efficientnet": "EfficientNet-B1 (weights V2) avgpool",
    "swav": "SwAV ResNet-50 avgpool",
}
_SHORT = {"alexnet_2": "AlexNet(2)", "alexnet_5": "AlexNet(5)", "inception": "Inception"}


def _of(backbone: Backbone) -> list[Metric]:
    found = []
    for layer in backbone.layers:
        seen = f"{_WORDS[layer]}, pictures at {backbone.size} px"
        if not backbone.two_way:
            words = (
                f"mean correlation distance (1 - Pearson r) of {seen}; lower is nearer; chance: "
            )
            found.append(Metric(layer, f"{backbone.title} distance", words + "other pictures"))
            continue
        for direction, words in DIRECTIONS.items():
            name = f"two-way {_SHORT[layer]} {direction.replace('_', ' ')}"
            found.append(Metric(f"{layer}_{direction}", name, f"{words}, by Pearson r of {seen}"))
    return found


_AT = f"at {PIXELS} px, resized by antialiased bilinear filtering"
PIXEL_METRICS = (
    Metric("pixcorr", "PixCorr", f"Pearson r of pixels {_AT}; chance: the next picture, of every third"),
    Metric("ssim", "SSIM", f"structural similarity of grey pictures {_AT}; Gaussian weights, sigma 1.5, "
           "data range 1 (scikit-image); chance: the next picture, of every third"),
)  # fmt: skip
BACKBONE_METRICS = {key: tuple(_of(backbone)) for key, backbone in BACKBONES.items()}
METRICS = (*PIXEL_METRICS, *(metric for some in BACKBONE_METRICS.values() for metric in some))
