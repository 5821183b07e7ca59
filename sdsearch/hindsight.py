"""The hindsight block h(G): every sibling's queries, each marked by its outcome (paper, section 3.2).

Text first (attempts, lines), then tokens. The block goes inside the user turn before the task prompt; the
teacher's tokens after it are the student's own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from schemas.hindsight import HindsightAttempt, Label
from sdsearch.tokens import encode_foreign, neutralise_tags

HEADER = "Earlier attempts at this question. They inform the next search, not the answer.\n"
_LABEL = re.compile(r"\((in)?correct\)", re.IGNORECASE)


def label_outcome(metric: float, rho: float) -> Label:
    """CORRECT when the answer's F1 (or EM) exceeds rho; never read off the shaped reward (paper, section 3.2)."""
    return "CORRECT" if metric > rho else "INCORRECT"


def neutralise(text: str) -> str:
    """Make foreign text safe inside a block: one line, no tags, no separator, no label."""
    flat = " ".join(neutralise_tags(text).split()).replace("|", "/")
    return _LABEL.sub(lambda match: match.group(0).lower().strip("()"), flat)


def render_attempt(number: int, attempt: HindsightAttempt) -> str:
    """Return one line: `Attempt 2 (CORRECT): first query | second query`."""
    label = "" if attempt.label is None else f" ({attempt.label})"
    contents = " | ".join(attempt.contents) if attempt.contents else "no search"
    return f"Attempt {number}{label}: {contents}\n"


def render_block(attempts: Sequence[HindsightAttempt]) -> str:
    """Return the block's text: the header, then a line an attempt in the given order."""
    return HEADER + "".join(render_attempt(number, attempt) for number, attempt in enumerate(attempts, 1)) + "\n"


def encode_block(
    tokenizer: PreTrainedTokenizerBase, attempts: Sequence[HindsightAttempt], max_tokens: int
) -> tuple[str, list[int], int]:
    """Return (text, token ids, attempts dropped): whole attempts leave from the end until the block fits."""
    for kept in range(len(attempts), -1, -1):
        text = render_block(attempts[:kept])
        token_ids = encode_foreign(tokenizer, text)
        if len(token_ids) <= max_tokens:
            return text, token_ids, len(attempts) - kept
    return "", [], len(attempts)
