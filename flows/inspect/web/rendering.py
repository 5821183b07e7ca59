"""The templates of the pages and of the report: whatever is put into them is escaped."""

from __future__ import annotations

from importlib.resources import files
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from flows.inspect.web.formats import FORMATS


def templates() -> Environment:
    """Return the templates with their filters; a name that nothing fills is an error."""
    made = Environment(loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    made.filters.update(FORMATS)
    made.filters["part"] = _url_part
    made.filters["asset"] = _asset
    return made


def _url_part(text: object) -> str:
    return quote(str(text), safe="")


def _asset(name: str) -> Markup:
    """Return a shipped style sheet or script to stand inside a page: our own files alone are put in as they are."""
    text = (files(__package__) / "static" / name).read_text(encoding="utf-8")
    assert "</s" not in text.replace("</search", "").replace("</span", ""), f"{name} would end its own element"
    return Markup(text)
