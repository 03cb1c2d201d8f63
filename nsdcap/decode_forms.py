"""Two forms of decoding's squared errors under every penalty, what each costs, and the choice.

"basis": in the eigenbasis of each fold. "pooled": y' M y with one matrix (n_pictures, n_pictures) a
penalty, half of which is multiplied; the errors of all folds at once. The form is chosen by operations
alone, so that results do not depend on the machine; memory decides how many of the pooled form's matrices
are held at a time, and each such group of penalties reads the targets once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nsdcap.decode_bases import DecodeBases, add_rows
from nsdcap.ridge import ROWS, Triangle, array_module, blocks, triangle_flops
from nsdcap.streams import free_memory


@dataclass(frozen=True)
class Plan:
    """``form`` basis or pooled, its operations ``flop``, the ``groups`` of penalties held at a time."""

    form: str
    flop: float
    groups: list[slice]

    def __str__(self) -> str:
        passes = "one pass" if len(self.groups) == 1 else f"{len(self.groups)} passes"
        return f"errors in the {self.form} form, {self.flop / 1e9:.3g} GFLOP, {passes} over the targets"


def flops(bases: DecodeBases, n_alphas: int, n_targets: int, gain: bool) -> dict[str, float]:
    """Operations of ``n_targets`` targets under ``n_alphas`` penalties, in either form."""
    n = bases.n_pictures
    basis = pooled = 0.0
    for fold in bases.folds:
        m, k = fold.out.shape
        n_left, n_train = fold.averaged.shape[0], fold.into.shape[1]
        a_target = 2 * k * n_train + 2 * min(m, k) * n_left + n_alphas * triangle_flops(m, k)
        basis += n_targets * (a_target + gain * 2 * n_left * k)
        pooled += n_alphas * n_train * (m * (2.0 * k + n_train) + gain * n_left * n_train)
    pooled += n_targets * (n_alphas + gain) * n * (n + ROWS)
    return {"basis": basis, "pooled": pooled}


def make_plan(
    bases: DecodeBases, n_alphas: int, n_targets: int, gain: bool, form: str | None = None
) -> Plan:
    """The form of fewer operations (or ``form``), and penalties in groups whose matrices fit in half of
    the free memory. The gain's matrices stay beside them; where not even those fit, the basis form."""
    costs = flops(bases, n_alphas, n_targets, gain)
    everything = [slice(0, n_alphas)]
    size = bases.n_pictures * (bases.n_pictures + ROWS) * bases.dtype.itemsize / 2
    held = int(free_memory(array_module(bases.whole.into)) / 2 // size) - gain * n_alphas
    if form is None:
        form = "pooled" if held >= 1 and costs["pooled"] < costs["basis"] else "basis"
    if form == "basis":
        return Plan(form, costs[form], everything)
    passes = -(-n_alphas // max(1, held))
    return Plan(form, costs[form], list(blocks(n_alphas, -(-n_alphas // passes))))


def pooled(bases: DecodeBases, penalties: list[float], gain: bool) -> tuple[Triangle, Triangle]:
    """Under one penalty, given as each fold's own: matrices, as ``_half``, of the squared errors over all
    trials left out and, for the gain, of squared lengths of predictions over pictures about the mean."""
    xp, n, dtype = array_module(bases.whole.into), bases.n_pictures, bases.dtype
    errors = xp.zeros((n, n), dtype=dtype)
    lengths = xp.zeros((n, n) if gain else (0, 0), dtype=dtype)
    for fold, penalty in zip(bases.folds, penalties, strict=True):
        shrink = (1 / (fold.values + penalty)).astype(dtype)
        spans = list(zip(fold.columns, fold.pictures, strict=True))
        hat = (fold.out * shrink) @ fold.into  # (m_f, n_train), about the training mean
        counts = fold.left_counts.astype(dtype)[:, None]
        cross = add_rows(hat, fold.shown, len(counts))  # (n_left, n_train)
        if gain:
            _add_square(lengths, cross / xp.maximum(counts, 1), spans)
        for own, pictures in spans:
            hat[:, own] += fold.share[pictures]
            cross[:, own] += counts * fold.share[pictures]
        _add_square(errors, hat, spans)
        # the pictures left out: their own squares, and against what is predicted for them
        for own, pictures in spans:
            errors[fold.left, pictures] -= cross[:, own]
            errors[pictures, fold.left] -= cross[:, own].T
        diagonal = xp.arange(fold.left.start, fold.left.stop)
        errors[diagonal, diagonal] += fold.left_counts.astype(dtype)
    return _half(errors), _half(lengths)


def _add_square(into: Any, rows: Any, spans: list[tuple[slice, slice]]) -> None:
    """Add rows' rows, columns ``own`` of which are ``pictures`` of ``into``."""
    square = rows.T @ rows
    for own, pictures in spans:
        for other, others in spans:
            into[pictures, others] += square[own, other]


def _half(matrix: Any) -> Triangle:
    """Blocks of rows of a symmetric matrix from its diagonal on, doubled right of the block's square."""
    found: Triangle = []
    for rows in blocks(len(matrix), ROWS):
        block = matrix[rows, rows.start :].copy()
        block[:, rows.stop - rows.start :] *= 2
        found.append((rows, rows.start, block))
    return found


def quadratic(parts: Triangle, y: Any) -> Any:
    """y' M y (b,) float64 of the columns of y (n, b), M as ``_half`` gives it."""
    xp = array_module(y)
    total = xp.zeros(y.shape[1])
    for rows, start, block in parts:
        total += xp.einsum("ij,ij->j", y[rows], block @ y[start:])
    return total
