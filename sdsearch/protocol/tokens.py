"""Text to tokens and back, without ever re-tokenising what the policy sampled."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

TAGS = ("think", "search", "documents", "answer", "refine")
_BATCH = 4096
_PLAIN = re.compile(r"\s*\w*\s*")


@lru_cache(maxsize=8)
def _pattern(tags: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"<(/?(?:{'|'.join(map(re.escape, tags))}))>", re.IGNORECASE)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode the environment's own words; protocol tags and chat-template tokens count as such."""
    token_ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return token_ids


def encode_foreign(tokenizer: PreTrainedTokenizerBase, text: str, tags: tuple[str, ...] = TAGS) -> list[int]:
    """Encode text that others wrote (questions, passages, queries).

    Protocol tags lose their angle brackets, and what the tokenizer reads as markup (special tokens, and added ones
    that it does not call special, such as some chat templates' role marks) is encoded as plain text, so that foreign
    text cannot open or close a span or a turn.
    """
    ids = _encode_as_text(tokenizer, neutralise_tags(text, tags), _markup_ids(tokenizer, len(tokenizer)))
    seen = decode(tokenizer, ids)
    # A tokenizer that normalises may make a tag out of look-alikes.
    return encode_foreign(tokenizer, seen, tags) if _pattern(tags).search(seen) else ids


def encode_between(
    tokenizer: PreTrainedTokenizerBase, opening: str, text: str, closing: str, tags: tuple[str, ...]
) -> list[int] | None:
    """Encode foreign text together with the environment's words around it, as a model that reads tags as text does.

    None where that is not safe or not exact: a word around the text is markup of the tokenizer, or the tokens read
    differently from what was put in.
    """
    markup = _markup_ids(tokenizer, len(tokenizer))
    whole = f"{opening}{neutralise_tags(text, tags)}{closing}"
    ids = _encode_as_text(tokenizer, whole, markup)
    around = [*encode(tokenizer, opening), *encode(tokenizer, closing)]
    return ids if markup.isdisjoint(around) and decode(tokenizer, ids) == whole else None


def foreign_lengths(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], tags: tuple[str, ...] = TAGS
) -> list[int]:
    """Return how many tokens `encode_foreign` makes of each text; many at once, which is many times faster."""
    markup = _markup_ids(tokenizer, len(tokenizer))
    lengths: list[int] = []
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        encoded = tokenizer(
            [neutralise_tags(text, tags) for text in batch],
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
        )["input_ids"]
        for text, ids in zip(batch, encoded, strict=True):
            is_plain = markup.isdisjoint(ids) and (
                _cannot_hide_a_tag(text) or not _pattern(tags).search(decode(tokenizer, ids))
            )
            lengths.append(len(ids) if is_plain else len(encode_foreign(tokenizer, text, tags)))
    return lengths


def _cannot_hide_a_tag(text: str) -> bool:
    """True for text that no tokenizer normalises into a tag which is not written in it."""
    return text.isascii() and text.isprintable()


def _encode_as_text(tokenizer: PreTrainedTokenizerBase, text: str, markup: frozenset[int]) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    if len(text) < 2 or markup.isdisjoint(ids):
        return ids
    middle = len(text) // 2
    return _encode_as_text(tokenizer, text[:middle], markup) + _encode_as_text(tokenizer, text[middle:], markup)


@lru_cache(maxsize=8)
def _markup_ids(tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> frozenset[int]:
    """Return the ids of added tokens that are no plain words or blanks; `num_tokens` tells of tokens added since."""
    added = tokenizer.added_tokens_decoder
    return frozenset(i for i, token in added.items() if token.special or not _PLAIN.fullmatch(token.content))


def neutralise_tags(text: str, tags: tuple[str, ...] = TAGS) -> str:
    """Replace the angle brackets of protocol tags by round ones: `<search>` becomes `(search)`."""
    return _pattern(tags).sub(r"(\1)", text)


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Decode tokens, special tokens kept and blanks left alone."""
    text: str = tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


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
