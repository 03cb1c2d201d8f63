"""Whether the models that stages load are at hand, what their lock says, and such that the settings suit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from nsdcap import headers, limits, weights
from nsdcap.checks import Row, broken, look
from nsdcap.config import MODEL_NAMES, Config
from nsdcap.errors import NsdcapError, UsageError, absent, bound
from nsdcap.hub import at_hand
from nsdcap.site import Site
from nsdcap.stages import STAGES, encode_layers

WHOLE = "all files of the model, as in weights.lock.json where there is one"


def rows(
    settings: Config,
    stages: Iterable[str],
    site: Site | None = None,
    *,
    fetch: bool,
    contents: bool,
) -> Iterator[Row]:
    """A row for each model that the stages load, one for the settings that follow from them.

    ``site`` where tasks run elsewhere. ``fetch``: a hub id that is not in the cache is fetched to it.
    ``contents``: SHA-256 too, where it is not known from before.
    """
    stages = list(stages)
    loaded = {model for stage in stages for model in STAGES[stage].weights}
    names = [name for name in MODEL_NAMES if name in loaded]
    there = set()
    for model, where in weights.used(settings, names).items():
        try:
            row = _model(model, where, site, fetch, contents)
        except NsdcapError as error:
            row = broken(f"models.{model}", error, WHOLE)
        there |= {model} if row.verdict == "ok" else set()
        yield row
    if there:
        yield look("architectures", lambda: _limits(settings, there), "tensors and sizes that suit")
    if "encode" in stages and "blip" not in loaded - there:
        yield look(
            "encode.layers", lambda: f"layers {', '.join(map(str, encode_layers(settings)))}"
        )
    if "backbones" in loaded:
        yield _backbones(settings, contents)


def _model(model: str, where: str, site: Site | None, fetch: bool, contents: bool) -> Row:
    """A model's row; a note where it is not on this disk and no error either."""
    check = f"models.{model}"
    if not where:
        raise UsageError(f"models.{model} is empty: give a Hugging Face folder or a hub id")
    hub = not weights.is_path(where)
    if hub and site is not None and site.image:
        if os.environ.get("APPTAINERENV_HF_HUB_OFFLINE") == "0":
            return Row(
                check, "note", f"{where} is fetched by the tasks, which have a network", WHOLE
            )
        if not (site.cache or os.environ.get("HF_HOME")):
            raise UsageError(
                f"models.{model} = {where!r} is no folder, and tasks in an image are off-line: give a folder "
                "(python hpc/prefetch.py fetches it), or that of downloaded weights (cache in the site file, "
                "or the variable HF_HOME)"
            )
    if hub and not fetch and not weights.offline() and weights.missing(model, where):
        found = f"models.{model} = {where!r} would be fetched to {weights.hub_cache()} first"
        return Row(check, "note", found, WHOLE, "python hpc/prefetch.py FOLDER pins it in a lock")
    at_hand(model, where)
    weights.verify(f"models.{model}", where, contents=contents)
    return Row(check, "ok", _told(where, contents), WHOLE)


def _told(where: str, contents: bool) -> str:
    root = weights.root_of(where)
    if root is None or not weights.read_lock(root):
        return f"{where}, no lock"
    return f"{where}, {'SHA-256' if contents else 'sizes'} as in the lock"


def _limits(settings: Config, there: set[str]) -> str:
    limits.check(settings, there)
    return f"of {', '.join(sorted(there))}, by their headers"


def _backbones(settings: Config, contents: bool) -> Row:
    """The folder of the networks that score pictures; without one they are not computed."""
    place = settings.models.backbones

    def there() -> str:
        if not Path(place).expanduser().is_dir():
            raise absent(
                f"models.backbones = {place!r}: there is no such folder{bound()}; mend the setting, or leave "
                "it empty: then what needs it is not computed"
            )
        weights.verify("models.backbones", place, contents=contents)
        headers.check("backbones", place)
        return _told(place, contents)

    return (
        look("models.backbones", there)
        if place
        else Row(
            "models.backbones", "ok", "empty: no network scores pictures", "a folder, or empty"
        )
    )
