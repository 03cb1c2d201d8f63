"""Pages from templates: what data and settings hold is shown on them and never becomes part of them."""

from __future__ import annotations

from typing import Any


def fill(package: str, template: str, trim: bool = True, **values: Any) -> str:
    """A template that lies in a package, filled in; values are escaped unless it says ``safe``.

    ``trim`` leaves no lines where only instructions stood. A value that is not given is an error.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package, "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=trim, lstrip_blocks=trim,
    )  # fmt: skip
    return environment.get_template(template).render(values)
