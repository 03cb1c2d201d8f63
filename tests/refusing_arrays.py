"""Arrays that behave as a GPU's do: NumPy's functions on them, and no conversion that is not asked for.

The module stands where ``cupy`` would. A NumPy array beside one of these in an operation, a function or
an index is a TypeError, as is NumPy's own conversion; ``asarray`` brings host arrays here, ``get`` takes
them back.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import scipy.fft

float64, float32, bool = np.float64, np.float32, np.bool_
inf, nan = np.inf, np.nan


class Array:
    __array_ufunc__ = None  # NumPy's operators leave it to ours

    def __init__(self, held: np.ndarray) -> None:
        self._held = held

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("implicit conversion to a NumPy array is not allowed; use get()")

    def get(self) -> np.ndarray:
        return self._held.copy()

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "ndim", "dtype", "size"):
            return getattr(self._held, name)
        if name == "T":
            return Array(self._held.T)
        if name in ("sum", "mean", "all", "any", "astype", "copy", "max", "min", "argmin", "ravel"):
            method = getattr(self._held, name)
            return lambda *args, **kwargs: _wrap(method(*_bare(args), **_bare(kwargs)))
        raise AttributeError(name)

    def __getitem__(self, key: Any) -> Array:
        return Array(np.asarray(self._held[_bare(key)]))

    def __setitem__(self, key: Any, value: Any) -> None:
        self._held[_bare(key)] = _bare(value)

    def __len__(self) -> int:
        return len(self._held)

    def __float__(self) -> float:
        return float(self._held)

    def __int__(self) -> int:
        return int(self._held)

    def __bool__(self) -> Any:
        return self._held.__bool__()


def _bare(value: Any) -> Any:
    """NumPy's array within, wherever it is in a structure; a host array is refused."""
    if isinstance(value, Array):
        return value._held
    if isinstance(value, np.ndarray):
        raise TypeError(
            f"Unsupported type {np.ndarray}: a host array {value.shape} beside a device's"
        )
    if isinstance(value, tuple | list):
        return type(value)(_bare(part) for part in value)
    if isinstance(value, dict):
        return {name: _bare(part) for name, part in value.items()}
    return value


def _wrap(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return Array(np.asarray(value))
    if isinstance(value, tuple):
        return tuple(_wrap(part) for part in value)
    return value


def _operators() -> None:
    for name in ("add", "sub", "mul", "truediv", "pow", "matmul", "mod"):
        function = getattr(operator, name)
        setattr(Array, f"__{name}__", lambda a, b, f=function: _wrap(f(a._held, _bare(b))))
        setattr(Array, f"__r{name}__", lambda a, b, f=function: _wrap(f(_bare(b), a._held)))
        inplace = getattr(operator, f"i{name}")
        setattr(Array, f"__i{name}__", lambda a, b, f=inplace: Array(f(a._held, _bare(b))))
    for name in ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_"):
        function = getattr(operator, name)
        setattr(
            Array, f"__{name.rstrip('_')}__", lambda a, b, f=function: _wrap(f(a._held, _bare(b)))
        )
    for name in ("neg", "invert", "abs"):
        function = getattr(operator, name)
        setattr(Array, f"__{name}__", lambda a, f=function: _wrap(f(a._held)))


_operators()


def asarray(value: Any, dtype: Any = None) -> Array:
    """The one way here from the host."""
    return Array(np.array(value._held if isinstance(value, Array) else value, dtype=dtype))


class _Functions:
    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return _Function(getattr(self._module, name))


class _Function:
    """A function of NumPy's on arrays of this module; ``at`` where it is a ufunc."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _wrap(self._function(*_bare(args), **_bare(kwargs)))

    @property
    def at(self) -> Any:
        return _Function(self._function.at)


class lib:
    stride_tricks = _Functions(np.lib.stride_tricks)


linalg = _Functions(np.linalg)
fft = _Functions(scipy.fft)


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    return getattr(_Functions(np), name)
