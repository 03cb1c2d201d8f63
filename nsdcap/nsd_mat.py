"""Numeric arrays of MATLAB files, version 5 to 7, by name.

Why not SciPy's reader: a damaged file ends its process (a segmentation fault), or has it ask for all memory.
Here no length is believed that the file cannot hold. Source: MathWorks, MAT-File Format, "Level 5".
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from nsdcap.errors import DataError
from nsdcap.nsd_read import must_exist

MATRIX, PACKED = 14, 15
NUMBERS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
CLASSES = range(6, 16)  # of arrays: double, single, and whole numbers of 8 to 64 bits
COMPLEX = 0x0800
MOST = 1 << 26  # bytes of an unpacked array: NSD's design has 0.7 MB


def read_mat(path: Path, wanted: Collection[str]) -> dict[str, np.ndarray]:
    """Arrays named in ``wanted``, as many as there are, with the axes that MATLAB shows.

    Raises DataError where the file is missing, of another kind, or broken.
    """
    must_exist(path)
    content = path.read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None or content[125 if order == "<" else 124 : 126][:1] != b"\x01":
        raise DataError(
            f"{path} cannot be read: no MATLAB file of version 5 to 7, as NSD's is; fetch it again."
        )
    found: dict[str, np.ndarray] = {}
    try:
        for kind, body in _elements(content[128:], order):
            if kind == PACKED:
                body = _unpack(body)
                kind, body = next(_elements(body, order))
            if kind == MATRIX:
                name, values = _matrix(body, order, wanted)
                if values is not None:
                    found[name] = values
    except (ValueError, StopIteration, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read ({error or 'cut short'}); fetch it again."
        ) from error
    return found


def _unpack(body: bytes) -> bytes:
    """What zlib packed, with its check sum compared."""
    unpacker = zlib.decompressobj()
    content = unpacker.decompress(body, MOST)
    if not unpacker.eof:
        raise ValueError("a packed array is cut short, or too large")
    return content


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and bytes of each element."""
    at = 0
    while at < len(content):
        tag = content[at : at + 8]
        if len(tag) < 8:
            raise ValueError("cut short")
        first, length = (int(n) for n in np.frombuffer(tag, f"{order}u4"))
        if first >> 16:  # a small one, which lies in its own tag
            kind, length, start, end = first & 0xFFFF, first >> 16, at + 4, at + 8
            if length > 4:
                raise ValueError("a small element is too long")
        else:
            kind, start = first, at + 8
            # those that are packed follow each other at once, others at multiples of eight
            end = start + (length if kind == PACKED else -(-length // 8) * 8)
            if start + length > len(content):
                raise ValueError("an element is longer than the file")
        yield kind, content[start : start + length]
        at = end


def _matrix(body: bytes, order: str, wanted: Collection[str]) -> tuple[str, np.ndarray | None]:
    """Name and numbers of an array; None of one that is not wanted."""
    parts = _elements(body, order)
    (_, flags), (sides, shape), (_, name) = next(parts), next(parts), next(parts)
    called = name.decode("ascii", "replace")
    if called not in wanted:
        return called, None
    if len(flags) != 8 or sides != 5 or len(shape) < 8 or len(shape) % 4:
        raise ValueError(f"{called} has no shape")
    flag = int(np.frombuffer(flags[:4], f"{order}u4")[0])
    axes = [int(side) for side in np.frombuffer(shape, f"{order}i4")]
    kind, numbers = next(parts)
    if flag & 0xFF not in CLASSES or flag & COMPLEX or kind not in NUMBERS:
        raise ValueError(f"{called} holds no plain numbers")
    dtype = np.dtype(order + NUMBERS[kind])
    if min(axes) < 0 or math.prod(axes) * dtype.itemsize != len(numbers):
        raise ValueError(f"{called} says {axes}, which its {len(numbers)} bytes are not")
    return called, np.frombuffer(numbers, dtype).reshape(axes, order="F")
