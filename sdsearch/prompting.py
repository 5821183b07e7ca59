"""Prompts, documents and notices as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from schemas.errors import UserError
from schemas.passage import SearchHit
from schemas.rollout import MalformedReason, Observation
from sdsearch.tokens import encode, encode_foreign

TemplateName = Literal["compact", "instruct"]
_BODY_MARK = "\u241eBODY\u241e"
_INSTRUCTIONS = (
    "Answer the question below. Reason inside <think> and </think> first, every time you receive new "
    "information. If you lack knowledge, call the search engine with <search> your query </search>; it replies "
    "with the best passages between <documents> and </documents>. Search as often as you need. When no more "
    "knowledge is needed, give only the answer inside <answer> and </answer>, without explanation, for example "
    "<answer> Beijing </answer>.\n"
)
_TEMPLATES: dict[TemplateName, tuple[str, str]] = {
    "compact": ("Question: ", "\n"),
    "instruct": (f"{_INSTRUCTIONS}Question: ", "\n"),
}
_NOTICES: dict[MalformedReason, str] = {
    "no_action": "No search or answer was found.",
    "not_opened": "A closing tag has no opening tag.",
    "empty_query": "The search was empty.",
    "empty_answer": "The answer was empty.",
}
NOTHING_FOUND = "No documents found."


class PromptTokens(NamedTuple):
    """A prompt in two parts that are tokenised apart, so that a block put between them changes neither."""

    head: tuple[int, ...]
    body: tuple[int, ...]

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.head + self.body


def render_prompt(tokenizer: PreTrainedTokenizerBase, question: str, template: TemplateName) -> PromptTokens:
    """Return the prompt's tokens: chat template when the tokenizer has one, plain text otherwise.

    The head is all that precedes the user's words (system turn, role tokens, begin-of-text); the body holds the
    task prompt and what follows it. The question is foreign text.
    """
    before, after = _TEMPLATES[template]
    head_text, tail_text = _chat_frame(tokenizer)
    body = encode(tokenizer, before) + encode_foreign(tokenizer, question) + encode(tokenizer, after + tail_text)
    head = encode(tokenizer, head_text) if head_text else _begin_of_text(tokenizer)
    return PromptTokens(tuple(head), tuple(body))


def _chat_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    if not tokenizer.chat_template:
        return "", ""
    messages = [{"role": "user", "content": _BODY_MARK}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    head, mark, tail = rendered.partition(_BODY_MARK)
    if not mark:
        raise UserError("the tokenizer's chat template drops the user's message; choose another model folder")
    return head, tail


def _begin_of_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def render_documents(tokenizer: PreTrainedTokenizerBase, hits: Sequence[SearchHit], max_tokens: int) -> Observation:
    """Return the reply to a search; passages are cut to `max_tokens` in all, the closing tag always stays."""
    lines = [f"Doc {rank}(Title: {hit.passage.title}) {hit.passage.text}" for rank, hit in enumerate(hits, 1)]
    text = "\n".join(" ".join(line.split()) for line in lines) if lines else NOTHING_FOUND
    opening, closing = "\n<documents>\n", "\n</documents>\n"
    opening_ids, closing_ids = encode(tokenizer, opening), encode(tokenizer, closing)
    content_ids = encode_foreign(tokenizer, text)
    room = max(0, max_tokens - len(opening_ids) - len(closing_ids))
    kept = content_ids[:room]
    token_ids = (*opening_ids, *kept, *closing_ids)
    return Observation(
        kind="documents",
        token_ids=token_ids,
        text=tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False),
        hits=tuple(hits),
        num_tokens_cut=len(content_ids) - len(kept),
    )


def render_notice(tokenizer: PreTrainedTokenizerBase, reason: MalformedReason) -> Observation:
    """Return the short notice that an ill-formed turn gets."""
    text = f"\n{_NOTICES[reason]}\n"
    return Observation(kind="notice", token_ids=tuple(encode(tokenizer, text)), text=text, hits=(), num_tokens_cut=0)
