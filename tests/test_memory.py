"""The solvers' peak memory beside what they are given, against the formulas of their docstrings."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from nsdcap import decode_forms
from nsdcap.decode_bases import DecodeBases, decode_bases
from nsdcap.folds import Collapsed, collapse
from nsdcap.memory import free_host_memory
from nsdcap.ridge_decode import DecodedBlock, decode_cv
from nsdcap.ridge_encode import encode_basis, encode_primal, kernel_basis
from nsdcap.ridge_joint import encode_joint, joint_bases

ALPHAS, A = list(np.logspace(-3, 3, 6)), 6
F, D = 5, 4  # folds, bytes of a number of the responses and targets
ROWS = 128


def peak(step: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        step()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def near(measured: float, formula: float) -> None:
    print(f"measured {measured / 1e6:.2f} MB, formula {formula / 1e6:.2f}")
    assert 0.5 * formula < measured < 1.1 * formula


def encoding(n: int, t: int) -> tuple[Collapsed, np.ndarray]:
    y = np.random.default_rng(0).standard_normal((2 * n, t), "f4")
    return collapse(y, np.repeat(np.arange(n), 2)), np.arange(n) % F


def kernels(n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(1).standard_normal((n + m, n + 10))
    return x[:n] @ x[:n].T, x[n:] @ x[:n].T


@pytest.mark.parametrize(("n", "m"), [(400, 50), (800, 800)])
def test_memory_of_kernel_bases(n: int, m: int) -> None:
    kernel, test = kernels(n, m)
    counts, folds, nf = np.full(n, 2), np.arange(n) % F, n / F
    one = 8 * 3 * (n * n + m * n)
    near(peak(lambda: kernel_basis(kernel, counts, test)), one)
    kept = 8 * F * (n - nf) * n
    near(peak(lambda: joint_bases(kernel, counts, folds, test)), kept + one)


@pytest.mark.parametrize(
    ("n", "t", "p", "m", "block"),
    [(800, 512, 100, 60, 128), (400, 2000, 200, 60, 256), (600, 300, 500, 300, 2048)],
)
def test_memory_of_encode_primal(n: int, t: int, p: int, m: int, block: int) -> None:
    data, folds = encoding(n, t)
    rng = np.random.default_rng(2)
    x, test = rng.standard_normal((n, p)), rng.standard_normal((m, p))
    b, k = min(block, t), min(n / F, p)
    wide = 2 * (n + m) * p + (2 * F + 3) * p**2 + b * (2.5 * n + (F + 3) * p) + (A + 1) * t
    formula = 8 * wide + D * (k * (n + F * p) + m * t)
    near(peak(lambda: encode_primal(x, data, folds, ALPHAS, test, block)), formula)


@pytest.mark.parametrize(
    ("n", "t", "m", "block"), [(800, 512, 60, 2048), (400, 3000, 200, 512), (1000, 200, 60, 128)]
)
def test_memory_of_encode_basis(n: int, t: int, m: int, block: int) -> None:
    data, folds = encoding(n, t)
    kernel, test = kernels(n, m)
    basis = kernel_basis(kernel, data.counts, test)
    formula = D * t * (n + m) + 8 * (max(5 * n * n / F, 3 * n * min(block, t)) + 5 * A * t)
    near(peak(lambda: encode_basis(basis, data, folds, ALPHAS, block)), formula)


@pytest.mark.parametrize(
    ("n", "t", "q", "m", "block", "ratios", "n_spaces"),
    [
        (600, 512, 50, 60, 2048, [1.0], 2),
        (600, 512, 50, 60, 128, [0.1, 1.0, 10.0], 3),
        (400, 3000, 30, 200, 512, [0.1, 1.0, 10.0], 1),
        (800, 300, 200, 60, 128, [1.0], 3),
    ],
)
def test_memory_of_encode_joint(n, t, q, m, block, ratios, n_spaces) -> None:
    data, folds = encoding(n, t)
    kernel, test = kernels(n, m)
    bases = joint_bases(kernel, data.counts, folds, test)
    rng = np.random.default_rng(3)
    spaces = [(rng.standard_normal((n, q)), rng.standard_normal((m, q))) for _ in range(n_spaces)]
    s, r, nf = n_spaces, len(ratios), n / F
    wide = 2 * nf * n + (s + 6) * n * q + 3 * q**2 + 3 * n * min(block, t)
    formula = D * t * (n + nf + (s + 1) * m) + 8 * (wide + A * t * (s * r + 3 * r + 1))
    near(peak(lambda: encode_joint(bases, spaces, data, folds, ALPHAS, ratios, block)), formula)


# --- decoding

DECODINGS = pytest.mark.parametrize(
    ("n", "repeats", "p", "m"), [(300, 3, 200, 50), (300, 3, 1200, 50), (500, 2, 400, 200)]
)


def decoding(n: int, repeats: int, p: int, m: int) -> tuple:
    rng = np.random.default_rng(4)
    picture = np.repeat(np.arange(n), repeats)
    x, test = rng.standard_normal((n * repeats, p), "f4"), rng.standard_normal((m, p), "f4")
    return x, picture, test, picture % F, n


def stream(bases: DecodeBases, y: np.ndarray, **options) -> Iterator[DecodedBlock]:
    for found in decode_cv(bases, lambda a, b: y[:, a:b], y.shape[1], ALPHAS, **options):
        last = found
        del found
    return last


@DECODINGS
def test_memory_of_decode_bases(n: int, repeats: int, p: int, m: int) -> None:
    given, trials = decoding(n, repeats, p, m), n * repeats
    if p <= trials * (F - 1) / F:
        kept = D * p * (F * n + trials) + 8 * p * (n + m)
        formula = kept + 8 * (4 * p**2 + 5 * n * p + 3 * trials * p / F)
    else:
        formula = 8 * (4.5 * trials**2 + trials * (p + n + m))
    near(peak(lambda: decode_bases(*given)), formula)


@DECODINGS
@pytest.mark.parametrize("form", ["basis", "pooled"])
@pytest.mark.parametrize("gain", [True, False], ids=["gain", "none"])
@pytest.mark.parametrize("per_target", [True, False], ids=["per_target", "common"])
def test_memory_of_decode_cv(n, repeats, p, m, form, gain, per_target) -> None:
    bases, b = decode_bases(*decoding(n, repeats, p, m)), 256
    y = np.random.default_rng(5).standard_normal((n, 4 * b), "f4")
    k, mf, nf = len(bases.whole.values), n * repeats / F, n / F
    a = A if per_target else 1
    if form == "pooled":
        matrices = (1 + gain) * a * n * (n + ROWS) / 2
        numbers = matrices + a * m * n + max(3 * n**2 + 2 * mf * (n - nf), 6 * n * b)
    else:
        least = min(mf, k)
        held = (F + 4 if gain else 4) * k * b
        numbers = 6 * n * b + held + F * least * (k + nf) + a * m * n
    formula = D * numbers
    if not per_target:
        formula = max(formula, D * 6 * n * b + 16 * n**2, 8 * (1.5 * n**2 + 4 * k**2))
    options = {"block": b, "form": form, "gain": gain, "per_target": per_target}
    near(peak(lambda: stream(bases, y, **options)), formula)


@pytest.mark.parametrize("form", ["basis", "pooled"])
@pytest.mark.parametrize("per_target", [True, False], ids=["per_target", "common"])
def test_memory_of_decoding_does_not_depend_on_the_number_of_targets(form, per_target) -> None:
    bases = decode_bases(*decoding(300, 3, 200, 50))
    found = []
    for n_targets in (1024, 32768):
        y = np.random.default_rng(5).standard_normal((300, n_targets), "f4")
        options = {"block": 256, "form": form, "per_target": per_target}
        found.append(peak(lambda y=y, options=options: stream(bases, y, **options)))
    ahead = 4 * 300 * 256 * D  # blocks that the reading thread may have in hand at the peak, or not
    assert found[1] < found[0] + ahead


@pytest.mark.parametrize("gain", [True, False], ids=["gain", "none"])
def test_penalties_in_groups_give_the_same_and_take_less(monkeypatch, gain: bool) -> None:
    bases = decode_bases(*decoding(300, 3, 200, 50))
    y = np.random.default_rng(5).standard_normal((300, 500), "f4")
    matrix = 300 * (300 + ROWS) * D / 2
    found, taken, told = [], [], []
    for held in (100, 2):
        free = 2 * (held + gain * A) * matrix + 1
        monkeypatch.setattr(decode_forms, "free_memory", lambda xp, free=free: free)
        solve = lambda: list(  # noqa: E731
            decode_cv(bases, lambda a, b: y[:, a:b], 500, ALPHAS, block=128, form="pooled",
                      gain=gain, log=told.append)
        )  # fmt: skip
        taken.append(peak(solve))
        found.append(solve())
    assert told[0].endswith("one pass over the targets")
    assert told[-1].endswith("3 passes over the targets")
    assert taken[1] < taken[0] - 3 * matrix
    for one, other in zip(*found, strict=True):
        for name in ("cv_scores", "alpha_index", "predictions", "truth", "predicted"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_without_room_for_one_matrix_the_basis_form_is_taken(monkeypatch) -> None:
    bases = decode_bases(*decoding(300, 3, 200, 50))
    forms = []
    for free in (1e12, 1e3):
        monkeypatch.setattr(decode_forms, "free_memory", lambda xp, free=free: free)
        forms.append(decode_forms.make_plan(bases, A, 10**6, True).form)
    assert forms == ["pooled", "basis"]


def test_free_memory_heeds_the_share_that_a_job_was_given(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 99 kB\nMemAvailable:   4000 kB\n")
    assert free_host_memory(tmp_path) == 4000 * 1024
    (tmp_path / "proc/self/cgroup").write_text("0::/job_7/step_0\n")
    job = tmp_path / "sys/fs/cgroup/job_7"
    (job / "step_0").mkdir(parents=True)
    for folder, most in ((job, "3000000"), (job / "step_0", "max")):
        (folder / "memory.max").write_text(most + "\n")
        (folder / "memory.stat").write_text("anon 1000000\nfile 5\n")
    assert free_host_memory(tmp_path) == 2000000
    (tmp_path / "proc/self/cgroup").write_text("4:cpu:/\n3:memory:/job_7\n")
    old = tmp_path / "sys/fs/cgroup/memory/job_7"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("1500000")
    (old / "memory.stat").write_text("rss 1\ntotal_rss 500000\n")
    assert free_host_memory(tmp_path) == 1000000
