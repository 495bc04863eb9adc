"""One HTML file from a template that extends page.html.j2: it needs no network, and text from outside is never markup."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from recipe.base.pages.palette import style_sheet


def write_page(template: Path, filters: dict[str, Callable[..., Any]], /, **values: Any) -> str:
    """The page of a template with these values."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({"thousands": lambda number: f"{number:,.0f}", **filters})
    page = environment.get_template(template.name).render(style_sheet=Markup(style_sheet()), **values)
    return page.encode("utf-8", "replace").decode("utf-8")  # names of files need not be UTF-8
