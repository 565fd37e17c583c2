"""Templates of the pages: everything that is not markup is escaped, and a page is one file without scripts."""

import base64
import functools
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from distmil import __version__
from distmil.reporting import charts


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("distmil.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["jpeg"] = lambda data: "data:image/jpeg;base64," + base64.b64encode(data).decode()
    frame = {"width": charts.WIDTH, "height": charts.HEIGHT, "left": charts.LEFT, "right": charts.RIGHT,
             "top": charts.TOP, "bottom": charts.BOTTOM}  # fmt: skip
    environment.globals |= {"version": __version__, "frame": frame}
    return environment


def render(template: str, **values: Any) -> bytes:
    """Render a page. Values are escaped, except those marked as safe.

    Args:
        template: Name of a file of this package.
        values: What it shows.
    """
    page = _environment().get_template(template).render(values)
    return page.encode("utf-8", "replace")  # not every name is Unicode
