"""Plain words for each figure, from the numbers alone, whether they flatter or not."""

from __future__ import annotations

from nsdcap.plots_cortex import Run
from nsdcap.report_results import best_layer, gradient, layers_by_stream, mean_r
from nsdcap.report_scores import Scores


def readings(run: Run, scores: dict[str, list[dict]]) -> dict[int, str]:
    """What the paper's figures 3 to 7 say of this run, by their numbers."""
    encoding = scores["encoding"]
    r = mean_r(run, encoding)
    numbers, way = gradient(r)
    layer, phase, _, alike = best_layer(run, encoding)
    by_r, _, total = layers_by_stream(scores["layers"], "r")
    by_gain, some, _ = layers_by_stream(scores["layers"], "gain")
    return {
        3: _captions(run, scores["captions"]),
        4: _pictures(run, scores["pictures"]),
        5: f"Mean r, {numbers}. So {way}; the paper has z_v losing and z_B gaining. The CLS token of "
           f"z_v, as narrow as z_B, reaches {r['z_v_cls'][0]:.3f} and {r['z_v_cls'][1]:.3f}: part of "
           "z_v against z_B is their width.",
        6: f"The highest mean r is at layer {layer}, {phase} in the caption: "
           f"{'as' if alike else 'not as'} in the paper, where higher layers predict better and midway "
           "is best.",
        7: f"Mean best layer by r of z_v and z_B: {by_r}. z_B adds significantly to z_v in {some} of {total} "
           f"voxels, all subjects together; mean best layer by gain there: {by_gain}. The paper's layers "
           "rise along the visual hierarchy; a single voxel's "
           "best layer is unreliable, so compare streams, not voxels.",
    }  # fmt: skip


def _captions(run: Run, captions: list[dict]) -> str:
    bleu = {arm: Scores(captions, run.subjects, arm, "BLEU-4 sacrebleu", 1)
            for arm in ("brain", "picture", "nearest", "brain_gain")}  # fmt: skip
    brain, nearest = bleu["brain"], bleu["nearest"]
    text = (
        f"Corpus BLEU-4 by sacrebleu of the captions from the brain is {brain.mean}; shuffled pictures "
        f"give {brain.chance}. "
    )
    if nearest.values and brain.values:
        above = "above" if sum(brain.values) > sum(nearest.values) else "not above"
        text += (
            f"That is {above} what copying a human caption of the nearest training picture gives "
            f"({nearest.mean}). "
        )
    return text + (
        f"From the picture itself the captioner reaches {bleu['picture'].mean}; with one gain against "
        f"ridge's shrinkage the brain reaches {bleu['brain_gain'].mean}."
    )


def _pictures(run: Run, pictures: list[dict]) -> str:
    won = {pair: Scores(pictures, run.subjects, pair, "CLIP wins", 1, 100)
           for pair in ("caption over direct", "caption over coarse", "direct over coarse")}  # fmt: skip
    pair = won["caption over direct"]
    above = sum(float(r["ci_low"]) > 0.5 for r in pair.rows)
    return (
        f"The caption arm is closer to the shown picture than the direct arm in {pair.mean} of pictures "
        f"(the paper: 75.6 %; chance: 50 %); the interval lies above 50 % in {above} of {len(pair.rows)} "
        f"subjects. Both arms start from the coarse picture: the caption arm improves on it in "
        f"{won['caption over coarse'].mean}, the direct arm in {won['direct over coarse'].mean}."
    )
