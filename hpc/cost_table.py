"""What every stage would cost on NSD, as the table in nsdcap/README.md, from the estimates of nsdcap/cost.py.

    python hpc/cost_table.py                    # print it
    python hpc/cost_table.py --voxels 20000     # of subjects with so many voxels in the streams
    python hpc/cost_table.py --write            # put it into nsdcap/README.md

The setting is the paper's: four subjects, 37 sessions, BLIP base at 224 pixels, Stable Diffusion 1.4, single
precision. Neither data nor weights are needed. --dry-run tells the same of your own data.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from nsdcap import config, cost
from nsdcap.dry_run import duration, on, size
from nsdcap.sizes import HUB_WEIGHTS, DataSizes, ModelSizes, model_sizes
from nsdcap.stages import encode_layers

README = Path(__file__).resolve().parents[1] / "nsdcap" / "README.md"
BEGIN = "<!-- costs: made by hpc/cost_table.py --write -->"
END = "<!-- costs end -->"
VOXELS = 12_000  # an assumption: the streams of one subject
SUBJECTS = 4


@dataclass(frozen=True)
class Row:
    """Of one kind of cell: how many there are, what one costs with GPUs and with CPU cores alone; ``held``
    bytes of weights that it puts on the GPU, or None where the whole of its memory is the solver's."""

    name: str
    cells: int
    gpu: cost.Cost
    cpu: cost.Cost
    held: float | None


def paper_data(voxels: int = VOXELS) -> DataSizes:
    """A subject of 37 sessions; a quarter of its voxels is early visual cortex."""
    rest = (voxels - voxels // 4) // 6
    return DataSizes(24980, 8859, 982, 37, (voxels - 6 * rest, *[rest] * 6))


def paper_models(*more: str) -> tuple[config.Config, ModelSizes]:
    """The paper's settings with ``more`` over them, and the sizes of its models."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text('{"text_config": {}, "vision_config": {"image_size": 224}}')
        settings = config.load(settings=(f"models.blip={folder!r}", *more))
        assert len(encode_layers(settings)) == 13
        return settings, replace(model_sizes(settings), weights=dict(HUB_WEIGHTS))


def rows(voxels: int = VOXELS) -> Iterator[Row]:
    """Every kind of cell, in the order of the stages."""
    data = paper_data(voxels)
    (with_gpu, models), (alone, _) = (
        paper_models(f"models.device={device}", f"ridge.device={device}")
        for device in ("cuda", "cpu")
    )

    def row(name: str, cells: int, stage: str, held: float | None = None, **how: bool) -> Row:
        estimate = getattr(cost, stage)
        return Row(
            name, cells, estimate(data, models, with_gpu, **how), estimate(data, models, alone, **how), held
        )  # fmt: skip

    def weights(*names: str) -> float:
        return sum(HUB_WEIGHTS[name] for name in names)

    yield row("prepare", SUBJECTS, "prepare")
    for name, cells, n in (
        ("features, shared", 1, data.tests),
        ("features, own", SUBJECTS, data.pictures),
    ):
        there, here = (cost.features(n, models, settings) for settings in (with_gpu, alone))
        yield Row(name, cells, there, here, weights("blip", "diffusion"))
    yield row("decode", SUBJECTS, "decode")
    yield row("caption", SUBJECTS, "caption", weights("blip", "clip"))
    yield row("reconstruct", SUBJECTS, "reconstruct", weights("diffusion", "clip"))
    yield row("compare", SUBJECTS, "compare")
    yield row("kernel", SUBJECTS, "kernel")
    yield row("encode, z_v", SUBJECTS, "encode", joint=False)
    yield row("encode, a layer", 13 * SUBJECTS, "encode", joint=True)
    several = [data] * SUBJECTS
    there, here = (cost.aggregate(several, models, settings) for settings in (with_gpu, alone))
    yield Row("aggregate", 1, there, here, None)


def table(voxels: int = VOXELS) -> str:
    """Markdown: a line for each kind of cell, and what a whole run sums to."""
    found = list(rows(voxels))
    lines = [
        "| stage | cells | time each, GPU | time each, CPU alone | memory | on the GPU | written each |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for one in found:
        with_gpu = f"{duration(one.gpu.seconds)} ({on(one.gpu.cores, 1)})" if one.gpu.gpu else "-"
        alone = f"{duration(one.cpu.seconds)} ({on(one.cpu.cores, 0)})"
        memory = size(max(one.gpu.memory_bytes, one.cpu.memory_bytes))
        if not one.gpu.gpu:
            there = "-"
        elif one.held is None:
            there = f"at most {memory}"
        else:
            there = f"{size(one.held)} of weights, and a batch"
        stage, *rest = one.name.partition(",")
        lines.append(
            f"| `{stage}`{''.join(rest)} | {one.cells} | {with_gpu} | {alone} | {memory} | {there} "
            f"| {size(one.gpu.disk_bytes)} |"
        )
    hours = sum(one.cells * one.gpu.seconds for one in found) / 3600
    on_gpus = sum(one.cells * one.gpu.seconds for one in found if one.gpu.gpu) / 3600
    alone_hours = sum(one.cells * one.cpu.seconds for one in found) / 3600
    written = sum(one.cells * one.gpu.disk_bytes for one in found)
    most = max(max(one.gpu.memory_bytes, one.cpu.memory_bytes) for one in found)
    lines += [
        "",
        f"All {sum(one.cells for one in found)} cells of {SUBJECTS} subjects with {voxels:,} voxels each, one "
        f"after another: {hours:,.0f} hours, of them {on_gpus:,.0f} with a GPU; without any GPU "
        f"{alone_hours:,.0f} hours. {size(written)} written, at most {size(most)} of memory.",
    ]
    return "\n".join(lines) + "\n"


def written(text: str) -> str:
    """What ``text`` has between the two marks."""
    return text.split(BEGIN + "\n")[1].split(END)[0]


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--voxels", type=int, default=VOXELS, help=f"of a subject ({VOXELS:,})")
    parser.add_argument("--write", action="store_true", help="into nsdcap/README.md")
    options = parser.parse_args(arguments)
    if options.voxels < 28:
        print(f"--voxels: found {options.voxels}, expected at least 28", file=sys.stderr)
        return 2
    made = table(options.voxels)
    if options.write:
        before, after = README.read_text(encoding="utf-8").split(BEGIN + "\n")
        after = after.split(END)[1]
        README.write_text(f"{before}{BEGIN}\n{made}{END}{after}", encoding="utf-8")
    else:
        print(made, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
