"""Text to tokens and back, without ever re-tokenising what the policy sampled."""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

TAGS = ("think", "search", "documents", "answer", "refine")
_TAG = re.compile(rf"<(/?(?:{'|'.join(TAGS)}))>", re.IGNORECASE)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode the environment's own words; protocol tags and chat-template tokens count as such."""
    return tokenizer.encode(text, add_special_tokens=False)


def encode_foreign(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode text that others wrote (questions, passages, queries).

    Protocol tags lose their angle brackets and special tokens are encoded as plain text, so that foreign
    text cannot open or close a span or a turn.
    """
    return tokenizer.encode(neutralise_tags(text), add_special_tokens=False, split_special_tokens=True)


def neutralise_tags(text: str) -> str:
    """Replace the angle brackets of protocol tags by round ones: `<search>` becomes `(search)`."""
    return _TAG.sub(r"(\1)", text)


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Decode tokens, special tokens kept and blanks left alone."""
    return tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def token_char_spans(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[tuple[int, int]]:
    """Return each token's [start, end) in the decoded text.

    Tokens that hold part of a multi-byte character share that character's span. Text is decoded in a moving
    window, since a tokenizer may render a token differently at the start of a string.
    """
    spans: list[tuple[int, int]] = []
    window_start, num_chars, pending_from = 0, 0, 0
    prefix = ""
    for end in range(1, len(token_ids) + 1):
        window = decode(tokenizer, token_ids[window_start:end])
        incomplete = window.endswith("\ufffd") and end < len(token_ids)
        new_chars = 0 if incomplete else len(window) - len(prefix)
        if incomplete:
            continue
        spans.extend([(num_chars, num_chars + new_chars)] * (end - pending_from))
        num_chars += new_chars
        window_start, pending_from = pending_from, end
        prefix = decode(tokenizer, token_ids[window_start:end])
    return spans


def positions_inside(spans: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, ...]:
    """Return the offsets of the tokens that lie wholly in the characters [start, end) and are not empty."""
    return tuple(i for i, (first, last) in enumerate(spans) if start <= first < last <= end)
