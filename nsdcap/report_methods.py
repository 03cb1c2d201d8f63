"""The methods of a run as a text to paste into a paper: words from its settings, numbers from its results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from nsdcap.config import Config
from nsdcap.paths import Cell, artefact
from nsdcap.plots_cortex import Run
from nsdcap.prepare import DROPPED
from nsdcap.report_references import Citations
from nsdcap.tables import open_hdf5


@dataclass(frozen=True)
class Facts:
    """What a subject's results hold, as numbers."""

    sessions: int
    trials: int  # training trials, single ones
    pictures: int  # those shown in them
    tests: int  # test pictures
    repeats: float  # of a test picture, mean
    voxels: int
    targets: dict[str, int]  # of z_v, c and z
    alphas: dict[str, tuple[float, float, int]]  # likewise: lowest, highest, how many
    roi_voxels: dict[str, int]  # likewise
    dropped: dict[str, int]  # voxels left out, by why
    saturated: int  # betas at the ends of what NSD stores


def read_facts(out: Path, run: Run, settings: Config | None) -> dict[int, Facts]:
    """Facts of each subject, from its prepare and decode files.

    Raises
    ------
    DataError
        A file is missing or broken, or lacks a dataset.
    """
    from nsdcap.config import STREAMS, Roi

    roi, found = settings.roi if settings else Roi(), {}
    for subject in run.subjects:
        keys = ("nsd_id_train", "nsd_id_test", "repeats_test", "stream")
        with open_hdf5(artefact(out, Cell("prepare", subject)), keys) as file:
            ids, repeats, stream = (file[key][:] for key in (keys[0], *keys[2:]))
            sessions = len(file.attrs["sessions"])
            dropped = {why: int(file.attrs.get(name, 0)) for name, why in DROPPED.items()}
            saturated = int(file.attrs.get("saturated_betas", 0))
        latents = ("z_v", "c", "z")
        with open_hdf5(artefact(out, Cell("decode", subject)), latents) as file:
            targets = {name: int(file[name].attrs["n_targets"]) for name in latents}
            grids = {name: file[name].attrs["alphas"] for name in latents}
        inside = {
            name: int(
                np.isin(stream, [STREAMS.index(part) + 1 for part in getattr(roi, name)]).sum()
            )
            for name in latents
        }
        alphas = {k: (float(min(grid)), float(max(grid)), len(grid)) for k, grid in grids.items()}
        found[subject] = Facts(
            sessions, len(ids), len(np.unique(ids)), len(repeats), float(repeats.mean()), len(stream),
            targets, alphas, inside, dropped, saturated,
        )  # fmt: skip
    return found


def methods(
    run: Run, settings: Config, facts: dict[int, Facts], metrics: list[str], miniature: bool
) -> tuple[list[tuple[str, str]], list[str]]:
    """Paragraphs (heading, text) in the order of the work, and the references that they cite.

    ``metrics`` are those with a value in the tables, which alone are described.
    """
    cite = Citations()
    paragraphs = [
        ("Data", _data(settings, facts, cite, miniature)),
        ("Features", _features(settings, facts, cite)),
        ("Decoding", _decoding(settings, facts, cite)),
        ("Captions and pictures", _generation(settings, cite)),
        ("Encoding", _encoding(run, settings, cite)),
        ("Scores", _scores(run, settings, metrics, cite)),
        ("Software", _software(cite)),
    ]
    return paragraphs, cite.listed()


def _data(settings: Config, facts: dict[int, Facts], cite: Citations, miniature: bool) -> str:
    data = settings.data
    text = ""
    if miniature:
        text = (
            "The data are a synthetic miniature in the formats of the Natural Scenes Dataset: drawn "
            "pictures, an artificial cortex and small models; what follows describes its processing. "
        )
    units = "in percent signal change" if data.scale else "in the integers in which they are stored"
    of = ("artificial " if miniature else "") + ("subjects" if len(facts) > 1 else "subject")
    where = "in the format of" if miniature else "of"
    text += (
        f"We used the responses {where} the Natural Scenes Dataset ({cite('allen')}; pictures and captions of "
        f"COCO, {cite('coco')}, {cite('coco captions')}) of {of} {_and(list(facts))}: single-trial "
        f"{data.betas.replace('betas_', 'betas ')} ({cite('glmsingle')}) in the volume {data.space}, {units}, "
        f"of {_each(facts, lambda f: f.sessions, 'sessions')}. The test set is the pictures that all subjects "
        f"saw ({_each(facts, lambda f: f.tests, 'pictures')}), whose trials were averaged "
        f"({_each(facts, lambda f: f'{f.repeats:.2f}', 'trials a picture')} on average); training used "
        f"{_each(facts, lambda f: f'{f.trials:,}', 'single trials')} of "
        f"{_each(facts, lambda f: f'{f.pictures:,}', 'pictures')}. Voxels were those of the streams atlas "
        f"({_each(facts, lambda f: f'{f.voxels:,}', 'voxels')}), standardised by the mean and standard "
        "deviation of the training trials"
    )
    if data.zscore_sessions:
        text += ", after standardising each session by its own training trials"
    whys = [why for why in DROPPED.values() if any(f.dropped[why] for f in facts.values())]
    if whys:
        left_out = [_each(facts, partial(_dropped, why), f"that were {why}") for why in whys]
        text += f". Voxels were left out: {_and(left_out)}"
    if any(f.saturated for f in facts.values()):
        text += f". {_each(facts, lambda f: f'{f.saturated:,}', 'betas')} had the largest size that is stored"
    return text + "."


def _features(settings: Config, facts: dict[int, Facts], cite: Citations) -> str:
    models, painted = settings.models, settings.reconstruct
    first = next(iter(facts.values()))
    size = f" at {models.picture_size} pixels" if models.picture_size else ""
    unscaled = "" if models.normalise else ", without its normalisation of pixels"
    posterior = "mean" if painted.posterior == "mean" else "a sample"
    return (
        f"Each picture was described by four latents: z_v, the output sequence of the vision transformer of "
        f"BLIP ({cite('blip')}; weights {_name(models.blip)}{size}{unscaled}; {first.targets['z_v']:,} "
        f"numbers); z_B, the hidden states of its text decoder ({cite('bert')}) as it writes the caption of "
        "the picture, by layer, averaged over the early, middle and late third of the written tokens; z, "
        f"the autoencoder latent of Stable Diffusion ({cite('rombach')}; weights {_name(models.diffusion)}) "
        f"of the picture at {painted.coarse_size} pixels ({posterior} of the posterior; "
        f"{first.targets['z']:,} numbers); and c, the hidden states of its CLIP text encoder "
        f"({cite('clip')}), averaged over the picture’s COCO captions ({first.targets['c']:,} numbers)."
    )


def _decoding(settings: Config, facts: dict[int, Facts], cite: Citations) -> str:
    ridge, decode = settings.ridge, settings.decode
    grouping = (
        "with all trials of a picture in one fold" if ridge.group_folds
        else "of consecutive trials, so that repeats of a picture may lie in different folds"
    )  # fmt: skip
    unit = (
        "" if ridge.absolute else ", as multiples of the mean eigenvalue of the trials’ Gram matrix"
    )
    first = next(iter(facts.values()))
    groups: dict[tuple[float, float, int], list[str]] = {}
    for name, grid in first.alphas.items():
        groups.setdefault(grid, []).append(name)
    grids = "; ".join(
        f"{count} penalties from {low:g} to {high:g}" + (f" for {_and(names)}" if len(groups) > 1 else "")
        for (low, high, count), names in groups.items()
    )  # fmt: skip
    parts = []
    for name in ("z_v", "c", "z"):
        streams = getattr(settings.roi, name)
        area = "all streams" if len(streams) == 7 else f"the {_and(streams)} stream"
        area += "s" if 1 < len(streams) < 7 else ""
        voxels = _each(facts, partial(_voxels, name), "voxels")
        parts.append(f"{name} from {area} ({voxels})")
    text = (
        f"z_v, c and z of the test pictures were predicted from voxels by ridge regression ({cite('ridge')}), "
        f"one model a subject: {'; '.join(parts)}. The penalty was chosen "
        f"{'for each target' if decode.alpha == 'target' else 'once for all targets of a latent'} by "
        f"{ridge.folds}-fold cross-validation within the training trials, {grouping}, among {grids}{unit}."
    )
    if not decode.intercept:
        text += " Predictions were left without the training mean."
    if decode.gain == "cv":
        text += (
            " Predictions were multiplied about the training mean by one factor a latent, which gives "
            "cross-validated predictions of the training pictures the length of the true latents."
        )
    return text


def _generation(settings: Config, cite: Citations) -> str:
    words, painted = settings.caption, settings.reconstruct
    noise = (
        "noise of its own for each picture and sample" if painted.noise == "picture"
        else "the same noise for every picture"
    )  # fmt: skip
    samples = f"{painted.samples} sample" + ("s" if painted.samples > 1 else "")
    return (
        f"From the predicted z_v BLIP’s text decoder wrote a caption ({cite('takagi caption')}): "
        f"{words.beams} beam{'s' if words.beams > 1 else ''}, {words.min_length} to {words.max_length} "
        f"tokens, repetition penalty {words.repetition_penalty:g}, prompt “{words.prompt.strip()}”. Both "
        "arms of reconstruction start from the predicted z, decoded to a picture of "
        f"{painted.coarse_size} pixels, resized to {painted.size} and encoded again, and denoise it "
        f"({cite('sdedit')}) by DDIM ({cite('ddim')}), {painted.steps} steps at strength "
        f"{painted.strength:g}, with classifier-free guidance of {painted.guidance:g} ({cite('guidance')}), "
        f"{samples} a picture and arm, with {noise}"
        + (", noised one step beyond where denoising begins" if painted.start == "released" else "")
        + f". The caption arm was conditioned on the written caption, the direct arm ({cite('takagi')}) on "
        "the predicted c."
    )


def _encoding(run: Run, settings: Config, cite: Citations) -> str:
    encode, ridge = settings.encode, settings.ridge
    layers = run.about["layers"]
    chosen = f"layers {_and(layers)}" if len(layers) < 4 else f"layers {layers[0]} to {layers[-1]}"
    if layers != list(range(layers[0], layers[-1] + 1)):
        chosen = f"layers {_and(layers)}"
    return (
        f"Every voxel was predicted by ridge regression from z_v, from z_v’s CLS token, from z_B ({chosen}; "
        "0 is the embeddings; early, mid and late in the caption), and from z_v with each z_B, two "
        "kernels of unit mean eigenvalue whose weights (z_B’s relative to z_v’s: "
        f"{_and([f'{ratio:g}' for ratio in encode.ratios])}) and penalty were chosen for each voxel by "
        f"{ridge.folds}-fold cross-validation within the training pictures. The score is Pearson’s r with "
        f"the mean response to the test pictures. It was held against {encode.nulls:,} permutations of the "
        f"pictures or more ({cite('hemerik')}) and, beside it, against two independent random vectors; "
        f"false discoveries were controlled at 0.05 over all voxels of a map ({cite('fdr')}). What z_B "
        f"adds is R²(joint) − R²(z_v), with an interval from {encode.bootstraps:,} bootstraps over "
        f"pictures ({cite('bootstrap')}) and a one-sided p by Student’s t of the squared errors saved, "
        f"picture by picture ({cite('signs')}); a voxel’s best layer is that of the "
        "highest joint r, or of the largest gain, mapped where any of its joint models predicts, or adds, by "
        f"Simes’ p ({cite('simes')}) of all of them and control of false "
        f"discoveries over voxels. The highest r there can be follows from the noise ceiling ({cite('allen')})."
    )


_METRICS = (
    ("BLEU", "BLEU", "bleu"), ("BLEU-4 sacrebleu", "sacrebleu’s BLEU-4", "sacrebleu"),
    ("BLEU-4 coco", "COCO’s scores", "coco captions"),
    ("METEOR", "METEOR", "meteor"), ("ROUGE", "ROUGE-L", "rouge"), ("CIDEr", "CIDEr", "cider"),
    ("SPICE", "SPICE", "spice"), ("CLIP-S", "CLIP-S", "clipscore"), ("RefCLIP-S", "RefCLIP-S", "clipscore"),
    ("SSIM", "SSIM", "ssim"), ("AlexNet", "AlexNet", "alexnet"), ("Inception", "Inception-v3", "inception"),
    ("EfficientNet", "EfficientNet-B1", "efficientnet"), ("SwAV", "SwAV", "swav"),
)  # fmt: skip


def _scores(run: Run, settings: Config, metrics: list[str], cite: Citations) -> str:
    named = [
        f"{label} ({cite(key)})"
        for word, label, key in _METRICS
        if any(metric.startswith(word) or f" {word}" in metric for metric in metrics)
    ]
    return (
        f"Captions and pictures were scored by the cosine of CLIP embeddings ({cite('clip')}; weights "
        f"{_name(settings.models.clip)}); further scores: {_and(named) or 'none'}. References were all COCO "
        "captions of a picture. Chance is shuffled pictures; captions stand beside the human caption of the "
        "training picture whose z_v is nearest to the predicted one, pictures beside the coarse picture "
        f"decoded from z alone. Intervals are 95 %, from {run.about['bootstraps']:,} bootstraps over "
        f"pictures ({cite('bootstrap')}), exact binomial for shares of pictures ({cite('binomial')}), and "
        f"Student's t over subjects for means. The seed of all random numbers was {settings.seed}."
    )


def _software(cite: Citations) -> str:
    from nsdcap import __version__

    return (
        f"Everything was computed with nsdcap {__version__}, on NumPy ({cite('numpy')}), SciPy "
        f"({cite('scipy')}), scikit-learn ({cite('sklearn')}), PyTorch ({cite('torch')}), Transformers "
        f"({cite('transformers')}), Diffusers ({cite('diffusers')}), MNE ({cite('mne')}; false discoveries), "
        f"nilearn ({cite('nilearn')}; cortex) and fsaverage ({cite('freesurfer')})."
    )


def _each(facts: dict[int, Facts], get: Callable[[Facts], object], unit: str) -> str:
    """One number where all subjects agree, else theirs in order."""
    values = [str(get(fact)) for fact in facts.values()]
    if len(set(values)) == 1:
        return f"{values[0]} {unit}"
    return f"{_and(values)} {unit}"


def _dropped(why: str, fact: Facts) -> str:
    return f"{fact.dropped[why]:,}"


def _voxels(name: str, fact: Facts) -> str:
    return f"{fact.roi_voxels[name]:,}"


def _and(items: object) -> str:
    texts = [str(item) for item in items]  # type: ignore[attr-defined]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def _name(where: str) -> str:
    """A model's hub id, or the last name of its folder."""
    return where.rstrip("/").rsplit("/", 1)[-1] if where.startswith(("/", ".", "~")) else where
