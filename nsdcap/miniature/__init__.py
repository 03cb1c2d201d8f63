"""The built-in miniature: a small world, a small brain and small models, all in the real formats."""

from __future__ import annotations

from pathlib import Path

from nsdcap.config import MODEL_NAMES
from nsdcap.typed_toml import to_toml

HERE = Path(__file__).resolve().parent
SETTINGS = HERE / "miniature.toml"
MODELS = HERE / "models"


def is_made(tree: Path) -> bool:
    """Whether the miniature's NSD stands in ``tree``."""
    return (tree / "nsddata").is_dir()


def make(tree: Path) -> None:
    """Write the miniature's NSD to ``tree``, whole or not at all."""
    from nsdcap.miniature.tree import write_tree
    from nsdcap.paths import atomic

    with atomic(tree) as partial:
        write_tree(partial)


def places(tree: Path) -> list[str]:
    """Settings that say where the miniature's NSD and models lie, as ``config.load`` takes them."""
    names = {f"models.{name}": MODELS / name for name in MODEL_NAMES}
    names["data.nsd_root"] = tree
    return [f"{key}={to_toml(str(path))}" for key, path in names.items()]
