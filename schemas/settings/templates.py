"""`rollout.template`: one of the wordings that come with the program, or a text of a person's own."""

from __future__ import annotations

import hashlib
from typing import Final

from schemas.base import nearest_name

TEMPLATES: Final = ("compact", "instruct", "few_shot")
QUESTION, INSTRUCTIONS, EXAMPLES = "{question}", "{instructions}", "{examples}"
"""What a text of one's own has once, and may have: the question, the protocol's instructions, the worked examples."""

_LONGEST: Final = 64_000


def check_template(value: str) -> str:
    """Return a template's name or its text; ValueError for what is neither."""
    if value in TEMPLATES:
        return value
    found = value.count(QUESTION)
    if found == 1 and len(value) <= _LONGEST:
        return value
    if found:
        wrong = f"the text has {QUESTION} {found} times" if found > 1 else f"the text has {len(value)} characters"
        raise ValueError(f"{wrong}; expected it once, in at most {_LONGEST} characters")
    near = nearest_name(value, list(TEMPLATES)) if len(value) < 40 else None
    raise ValueError(
        f"expected {', '.join(TEMPLATES)}, the path of a text file, or a text, with {QUESTION} once in it, got "
        f"{value[:60]!r}" + (f"; did you mean '{near}'?" if near else "")
    )


def template_title(value: str) -> str:
    """Return a template's name, and of a text what identifies it: the start of its sha256."""
    return value if value in TEMPLATES else f"text {hashlib.sha256(value.encode()).hexdigest()[:12]}"
