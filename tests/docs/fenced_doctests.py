"""An extension of the site's build: examples in docstrings (`>>> …`) become blocks of code."""

from __future__ import annotations

import re
from typing import Any, Final

from griffe import Extension, Object

_EXAMPLE: Final = re.compile(r"(?:^|(?<=\n\n))(>>> .+?)(?=\n\n|\Z)", re.DOTALL)


class FencedDoctests(Extension):
    """Puts fences around each paragraph of a docstring that begins with `>>>`."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite an object's docstring when it has been read."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """Return a docstring with its examples as blocks of code."""
    return _EXAMPLE.sub(lambda found: f"```pycon\n{found[1].rstrip()}\n```", text)
