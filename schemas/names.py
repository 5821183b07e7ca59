"""Names that become part of paths and keys."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")
NAME_RULE: Final = "a name has 1 to 80 ASCII letters, digits, '.', '_' or '-' and no leading dot or dash"


def is_name(text: str) -> bool:
    """True when the text may become part of a path: no separators, no blanks, nothing that only looks like a letter."""
    return _NAME.fullmatch(text) is not None


def _check(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"{text[:100]!r} cannot be used: {NAME_RULE}")
    return text


Name = Annotated[str, AfterValidator(_check)]
