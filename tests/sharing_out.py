"""How pytest-xdist's workers share the suite out (-n 3): file by file, files that need what is dear to make
by one worker, and these first."""

from __future__ import annotations

import ast
import os
from functools import cache
from pathlib import Path

import pytest

# fixtures of the session that take from half a minute to seven, the longest first
DEAR = ("cluster", "run", "registry", "small_run", "drawn_run")
MADE_FROM = {"built_image": "registry", "pulled_image": "registry"}


@cache
def group(path: Path) -> str:
    """Which files go together: the name of the dear fixture that this one asks for, or else its own."""
    if path.parent.name == "slurm":
        return "cluster"
    asked = asks_for(ast.parse(path.read_text()))
    asked |= {MADE_FROM[name] for name in asked & MADE_FROM.keys()}
    return next((name for name in DEAR if name in asked), str(path))


def asks_for(file: ast.Module) -> set[str]:
    """Names of fixtures that a file's tests and fixtures take, but for those that it defines itself."""
    functions = [node for node in ast.walk(file) if isinstance(node, ast.FunctionDef)]
    asked = set()
    for function in functions:
        if function.name.startswith("test_") or function.decorator_list:
            asked |= {argument.arg for argument in function.args.args}
    for node in ast.walk(file):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "getfixturevalue":
            words = [one for given in node.args for one in ast.walk(given)]
            asked |= {word.value for word in words if isinstance(word, ast.Constant)}
    return asked - {function.name for function in functions}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""
    place = {name: k for k, name in enumerate(DEAR)}
    items.sort(key=lambda item: place.get(group(item.path), len(DEAR)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Workers and what they start compute with one thread each: they would take cores from one another."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Groups as above, in the order of collection. (xdist's own loadgroup does nothing under pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(config.rootpath / nodeid.partition("::")[0])

    config.option.loadscopereorder = False
    return Groups(config, log)
