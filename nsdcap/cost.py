"""What cells would cost: time, memory, disk and GPUs, from sizes alone.

Time is operations and bytes over the rates below: assumptions about an ordinary cluster's machines, good to
a factor of two or three. Memory is by the formulas that stages and solvers state in their docstrings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from nsdcap.cells import Ledger
from nsdcap.config import Config
from nsdcap.decode_forms import flops
from nsdcap.paths import Cell
from nsdcap.sizes import DataSizes, ModelSizes, data_sizes, model_sizes

# --- assumptions: of one machine each ---------------------------------------------------------------
GPU_FLOPS = 10e12  # float32 products a second on a GPU
CORE_FLOPS = 30e9  # likewise of a CPU core
DISK = 200e6  # bytes a second
CHUNK = 0.5e-3  # seconds to read a voxel's session, a piece of its own in NSD's HDF5
DOUBLE = 2.0  # times that float64 takes
FACTORISE = 4.0  # times that eigenvectors and inverses take, which many cores hasten little
WRITE = 20.0  # times that a captioner takes token by token
RESEMBLE = 0.06  # seconds of one core to hold the pixels of a picture against another's
NETWORKS = 27e9  # operations of all networks that score a picture
FEATURES = 0.97e6  # bytes of its features
AGGREGATE = 200.0  # seconds a subject's tables and figures take
PATIENCE = 3600.0  # seconds from which a cell on the CPU is given more cores
MOST_CORES, GPU_CORES = 16, 4  # on the CPU, and beside a GPU
PYTHON, TORCH, JAVA = 0.5e9, 3e9, 2.5e9  # bytes of the libraries, and of METEOR


@dataclass(frozen=True)
class Cost:
    """Of one cell: its sizes as ``text``, ``seconds`` with so many ``cores`` and, where ``gpu``, one GPU;
    ``flops`` float32 products that take as long as all of its computing, ``memory_bytes`` at most, of the
    host and, where the solvers run on a GPU, of the GPU too; ``disk_bytes`` written."""

    text: str
    seconds: float
    flops: float
    memory_bytes: float
    disk_bytes: float
    gpu: bool
    cores: int


class Costs:
    """Costs of a run's cells; each size is looked up once, and a subject's layers cost the same.

    Raises
    ------
    DataError
        A file of NSD or of BLIP's configuration that is needed for the sizes is missing or broken.
    """

    def __init__(self, ledger: Ledger):
        self.config = ledger.settings
        self.models = model_sizes(ledger.settings)
        self.data = cache(lambda subject: data_sizes(ledger.settings, ledger.nsd, subject))
        self._known: dict[tuple[str, int | None, bool], Cost] = {}

    def of(self, cell: Cell) -> Cost:
        """The cost of one cell."""
        key = (cell.stage, cell.subject, cell.layer is None)
        if key not in self._known:
            self._known[key] = self._estimate(cell)
        return self._known[key]

    def _estimate(self, cell: Cell) -> Cost:
        subjects = self.config.data.subjects
        if cell.stage == "aggregate":
            return aggregate([self.data(subject) for subject in subjects], self.models, self.config)
        data = self.data(subjects[0] if cell.subject is None else cell.subject)
        if cell.stage == "features":
            n = data.tests if cell.subject is None else data.pictures
            return features(n, self.models, self.config)
        if cell.stage == "encode":
            return encode(data, self.models, self.config, joint=cell.layer is not None)
        stage = {"prepare": prepare, "decode": decode, "caption": caption,
                 "reconstruct": reconstruct, "compare": compare, "kernel": kernel}[cell.stage]  # fmt: skip
        return stage(data, self.models, self.config)


# --- stages -----------------------------------------------------------------------------------------


def prepare(data: DataSizes, models: ModelSizes, config: Config) -> Cost:
    """Memory: one session as int16, float32 and float64, its rows, and the test pictures' sums."""
    voxels = data.voxels()
    memory = voxels * (750 * (2 * 2 + 2 * 4 + 8) + 3 * 8 * data.tests)
    rows = 4.0 * voxels * (data.trials + data.tests)
    chunks = CHUNK * voxels * data.sessions
    return _cost(
        f"{data.trials:,} trials x {voxels:,} voxels", 0, False, memory + PYTHON,
        read=1500.0 * voxels * data.sessions + rows, written=rows, seconds=chunks,
    )  # fmt: skip


def features(n: int, models: ModelSizes, config: Config) -> Cost:
    """``n`` pictures through all models. Memory: the models and one batch."""
    a_picture = models.z_v + models.c + models.z + 3 * (models.layers + 1) * models.width
    captions = 5  # that COCO has of a picture
    work = models.see + models.encode + captions * models.text
    work += (1 + WRITE * config.caption.beams) * config.caption.max_length * models.write
    memory = config.models.batch * (
        10.0 * 4 * a_picture + 4.0 * 64 * config.reconstruct.coarse_size**2
    )
    return _cost(
        f"{n:,} pictures -> {models.z_v:,} numbers of z_v", n * work, config.models.device != "cpu",
        memory + _held(models, "blip", "diffusion"),
        read=n * 542e3 + models.weights["blip"], written=4.0 * n * a_picture,
    )  # fmt: skip


def decode(data: DataSizes, models: ModelSizes, config: Config) -> Cost:
    """Work and memory as ``decode_bases`` and ``decode_cv`` state them; z_v, c and z one after another."""
    targets = {"z_v": models.z_v, "c": models.c, "z": models.z}
    n, m, folds, trials = data.pictures, data.tests, config.ridge.folds, data.trials
    per_target = config.decode.alpha == "target"
    work = most = 0.0
    factorised: set[tuple[str, ...]] = set()
    for name, count in targets.items():
        roi = getattr(config.roi, name)
        p = data.voxels(roi)
        primal = p <= trials - trials / folds
        k = p if primal else trials
        alphas = len(getattr(config.decode, f"{name}_alphas") or config.ridge.alphas)
        tried = alphas if per_target else 1
        costs = flops(_shapes(trials, n, folds, k), tried, count, gain=True)
        form = min(costs, key=costs.__getitem__)  # where its matrices fit, as asked for here
        products = costs[form]
        work += products + 2.0 * count * m * n + 2.0 * tried * m * n * k
        if not per_target:  # the targets' Gram matrix, in a first pass
            work += 2.0 * count * n**2 + 4.0 * folds * k * n * (k + n)
        if roi not in factorised:
            factorised.add(roi)
            grams = 4.0 * trials * p**2 if primal else 2.0 * trials**2 * p
            rotated = 2.0 * k * ((folds + 1) * n * k + (trials + m) * k)
            work += DOUBLE * (grams + rotated + FACTORISE * 10 * (folds + 1) * k**3)
        held = 4.0 * k * (folds * n + trials * (1 + n / trials)) + 8.0 * k * n
        if primal:
            making = 8 * (4.0 * p**2 + 4.0 * p * n + trials * p / folds)
        else:
            making = 8 * (5.0 * trials**2 + 2.0 * trials * p)
        block = 4.0 * min(count, config.ridge.block) * (6 * n + folds * k + m)
        solving = block + 4.0 * tried * m * n
        pooled = 4.0 * tried * n**2 + 12.0 * n**2
        solving += pooled if form == "pooled" else 4.0 * trials * k
        if not per_target:
            solving = max(solving, 8 * (3.0 * n**2 + 4.0 * k**2))
        most = max(most, held + max(making, solving))
    voxels, total = data.voxels(), sum(targets.values())
    memory = 2 * 4.0 * voxels * (trials + m) + most + PYTHON
    return _cost(
        f"{trials:,} trials x {voxels:,} voxels -> {total:,} targets", work,
        config.ridge.device == "cuda", memory,
        read=4.0 * (n * total * (1 if per_target else 2) + trials * voxels), written=4.0 * m * total,
    )  # fmt: skip


def _shapes(trials: int, n: int, folds: int, k: int) -> Any:
    """What ``decode_forms.flops`` asks of bases, without their numbers."""
    m, left = max(1, trials // folds), max(1, n // folds)

    def empty(*shape: int) -> np.ndarray:
        return np.broadcast_to(np.float32(0), shape)

    fold = SimpleNamespace(out=empty(m, k), averaged=empty(left, k), into=empty(k, n - left))
    whole = SimpleNamespace(into=empty(k, n))
    return SimpleNamespace(
        folds=[fold] * folds, whole=whole, n_pictures=n, dtype=np.dtype(np.float32)
    )


def caption(data: DataSizes, models: ModelSizes, config: Config) -> Cost:
    """Memory: the test pictures' z_v four times (predicted, about the mean, of one arm) and a block."""
    m, n, settings = data.tests, data.pictures, config.caption
    work = 2 * m * WRITE * settings.beams * settings.max_length * models.write
    memory = 4 * 4.0 * m * models.z_v + 2 * 4.0 * n * config.ridge.block + 8.0 * m * n
    on_host = 2.0 * m * n * models.z_v / (GPU_CORES * CORE_FLOPS)  # the nearest training picture
    return _cost(
        f"{2 * m:,} captions, {settings.beams} beams", work, config.models.device != "cpu",
        memory + _held(models, "blip", "clip"),
        read=4.0 * (n + 2 * m) * models.z_v, written=1000.0 * m, seconds=on_host,
    )  # fmt: skip


def reconstruct(data: DataSizes, models: ModelSizes, config: Config) -> Cost:
    """Two arms; each pass of the UNet is done twice, with and without the text. Memory: c of the test
    pictures four times, the models, a batch's pictures and what the UNet holds of them."""
    settings, m = config.reconstruct, data.tests
    pictures = 2 * m * settings.samples
    passes = 2 * pictures * int(settings.steps * settings.strength)
    work = passes * models.noise + pictures * (models.start + models.paint)
    work += m * (models.coarse + models.text)
    pixels = 3.0 * settings.size**2
    memory = 4 * 4.0 * m * models.c + settings.batch * pixels * (4 * 64 + 2 * settings.samples)
    return _cost(
        f"{pictures:,} pictures, {passes:,} passes of the UNet", work, config.models.device != "cpu",
        memory + _held(models, "diffusion", "clip"),
        read=4.0 * m * (models.c + models.z), written=pixels * m * (2 + 2 * settings.samples),
    )  # fmt: skip


def compare(data: DataSizes, models: ModelSizes, config: Config) -> Cost:
    """Memory: features of the shown pictures, a batch's activations and all pairs' similarities."""
    m, samples = data.tests, config.reconstruct.samples
    seen = bool(config.models.backbones)
    gpu = seen and config.models.device != "cpu"
    pairs = m * (2 * samples + 2)
    pixels = RESEMBLE * pairs / (GPU_CORES if gpu else 1)
    work = m * (2 * samples + 2) * NETWORKS if seen else 0.0
    memory = min(m, 1024) * FEATURES + (2 * samples + 1) * 2 * 4.0 * m**2 if seen else 0.0
    memory += config.models.batch * 50e6 if seen else 0.0
    return _cost(
        f"{pairs:,} pairs of pictures", work + (0 if gpu else pixels * CORE_FLOPS), gpu,
        memory + TORCH + PYTHON,
        read=(1 + 4 * seen) * 3.0 * config.reconstruct.size**2 * m * (2 + 2 * samples),
        written=4.0 * m * 12 * (2 * samples + 1), seconds=pixels if gpu else 0.0,
    )  # fmt: skip


def kernel(data: DataSizes, models: ModelSizes, config: Config) -> Cost:
    """Memory: twice what is written, or as ``joint_bases`` states it, and a block of z_v."""
    n, m, folds = data.pictures, data.tests, config.ridge.folds
    work = DOUBLE * 2.0 * n * (n + m) * models.z_v
    work += DOUBLE * FACTORISE * 10.0 * (folds + 1) * n**3
    size = 8.0 * (folds + 1) * n * (n + m)
    memory = max(2 * size, size + 8 * 5.0 * n**2) + 12.0 * (n + m) * config.ridge.block
    return _cost(
        f"kernel of {n:,} pictures, {folds + 1} factorisations", work,
        config.ridge.device == "cuda", memory + PYTHON,
        read=4.0 * (n + m) * models.z_v, written=size,
    )  # fmt: skip


def encode(data: DataSizes, models: ModelSizes, config: Config, joint: bool) -> Cost:
    """Work and memory as ``encode_primal``, ``encode_basis`` and ``encode_joint`` state them."""
    n, m, t, q = data.pictures, data.tests, data.voxels(), models.width
    folds, alphas = config.ridge.folds, len(config.ridge.alphas)
    ratios, block = len(config.encode.ratios), min(t, config.encode.block)
    left, spaces = n / folds, 3 if joint else 1
    size = 8.0 * (folds + 1) * n * (n + m)
    # few features: z_v's CLS token, or z_B of each phase
    work = spaces * t * (folds * alphas * q**2 + DOUBLE * 4.0 * n * q)
    work += (
        spaces
        * DOUBLE
        * (2.0 * n * q**2 + (folds + 1) * (FACTORISE * 10.0 * q**3 + 4.0 * left * q**2))
    )
    primal = 8 * (2.0 * (n + m) * q + folds * (2 * q**2 + 2 * n * q / folds))
    primal += 8.0 * block * (3 * n + 3 * folds * q)
    work += DOUBLE * 2 * 2.0 * n**2 * t + 2.0 * alphas * n**2 * t + DOUBLE * 2.0 * m * n * t
    memory = 4.0 * n * t * 3 + 4.0 * m * t * 2
    if joint:
        a_space = folds * t * (2.0 * q * n + 2.0 * q * left + ratios * q**2)
        update = 2.0 * n * q**2 + FACTORISE * 10.0 * q**3 + 4.0 * left * q**2 + 2.0 * left * n * q
        work += spaces * alphas * (a_space + folds * DOUBLE * update)
        work += DOUBLE * folds * 2.0 * n**2 * t + spaces * 6.0 * config.encode.bootstraps * m * t
        solving = 2 * 4.0 * left * t + 8 * 4.0 * n * q + 8.0 * spaces * (ratios * alphas + 2) * t
        solving += spaces * 8.0 * 2 * (n + m) * q
        memory += size + max(primal, solving + 8.0 * 3 * n * block)
        read = size
    else:
        work += DOUBLE * FACTORISE * alphas * folds * (4.0 * left**2 * n + 2.0 * left**3)
        memory += 8.0 * n * (n + m) + max(primal, 8 * 3.0 * left * n + 8.0 * alphas * t)
        read = 8.0 * n * (n + m)
    work += 2 * spaces * config.encode.nulls * 20.0 * m * t
    return _cost(
        f"{n:,} pictures x {t:,} voxels, {2 * spaces} models", work, config.ridge.device == "cuda",
        memory + PYTHON, read=read + 4.0 * t * (data.trials + m) + 4.0 * n * q * spaces,
        written=4.0 * t * 8 * 2 * spaces,
    )  # fmt: skip


def aggregate(data: list[DataSizes], models: ModelSizes, config: Config) -> Cost:
    """Memory: all maps of a subject, all pairs of its captions and references, and METEOR's Java."""
    from nsdcap.stages import encode_layers

    maps = 8 * (2 + 6 * len(encode_layers(config)))
    voxels, tests = max(d.voxels() for d in data), max(d.tests for d in data)
    memory = 2 * 8.0 * maps * voxels + 4 * 8.0 * 5 * tests**2 + 3 * PYTHON + JAVA
    pixels = 3.0 * config.reconstruct.size**2 * (2 + 2 * config.reconstruct.samples)
    drawn = AGGREGATE * len(data) + 0.01 * maps * len(data)
    return _cost(
        f"tables, figures and report of {len(data)} subjects", 0, False, memory,
        read=sum(pixels * d.tests + 4.0 * maps * d.voxels() for d in data),
        written=4.0 * maps * sum(10 * d.voxels() for d in data), seconds=drawn,
    )  # fmt: skip


def _held(models: ModelSizes, *names: str) -> float:
    """Bytes of models while they are loaded, and of their libraries."""
    return TORCH + 2 * sum(models.weights[name] for name in names)


def _cost(
    text: str, work: float, gpu: bool, memory: float, *, read: float, written: float,
    seconds: float = 0.0,
) -> Cost:  # fmt: skip
    """``work`` in float32 products; on the CPU by as few cores as end it within ``PATIENCE``."""
    hours = work / CORE_FLOPS / PATIENCE
    few = 2 ** math.ceil(math.log2(hours)) if hours > 1 else 1
    cores = GPU_CORES if gpu else min(MOST_CORES, max(2, few))
    seconds += work / (GPU_FLOPS if gpu else cores * CORE_FLOPS) + (read + written) / DISK
    return Cost(text, seconds, work, memory, written, gpu, cores)
