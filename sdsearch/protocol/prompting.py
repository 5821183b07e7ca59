"""Prompts, documents and notices as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from schemas.records.passage import SearchHit
from schemas.records.rollout import MalformedReason, Observation
from schemas.records.run_inputs import PromptFrame
from schemas.settings.templates import EXAMPLES, INSTRUCTIONS, QUESTION
from sdsearch.protocol.chat_template import message_frame
from sdsearch.protocol.examples import worked_examples
from sdsearch.protocol.parsing import TAG_PROTOCOL
from sdsearch.protocol.ports import ActionProtocol
from sdsearch.protocol.tokens import encode, encode_between, encode_foreign, foreign_lengths


class PromptTokens(NamedTuple):
    """A prompt in two parts that are tokenised apart, so that a block put between them changes neither."""

    head: tuple[int, ...]
    body: tuple[int, ...]

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.head + self.body


def render_frame(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    protocol: ActionProtocol = TAG_PROTOCOL,
    wording: str = "",
) -> PromptFrame:
    """Return what stands around every question of a run: the chat template where there is one, else plain text.

    Made once a run, since a template may print the date. The head is all that precedes the user's words (system turn,
    role tokens, begin-of-text). Raises UserError for a template that fails, or does not put the message as it is in
    one place with the same text around it.
    """
    before, after = _wording(tokenizer, template, protocol)
    head, tail = protocol.message_frame(tokenizer) or message_frame(tokenizer)
    return PromptFrame(
        template=wording or template,
        head=head,
        before=before,
        after=after + tail,
        head_token_ids=tuple(encode(tokenizer, head) if head else _begin_of_text(tokenizer)),
        before_token_ids=tuple(encode(tokenizer, before)),
        after_token_ids=tuple(encode(tokenizer, after + tail)),
    )


def _wording(tokenizer: PreTrainedTokenizerBase, template: str, protocol: ActionProtocol) -> tuple[str, str]:
    """Return what stands before and after a question by a template's name, or by its text with the question in it."""
    if template in ("compact", "instruct"):
        return protocol.wording(template)
    if template == "few_shot":
        before, after = protocol.wording("instruct")
        asked = before.removeprefix(protocol.instructions)
        return f"{protocol.instructions.rstrip()}\n{worked_examples(tokenizer, protocol)}{asked}", after
    filled = template.replace(INSTRUCTIONS, protocol.instructions)
    if EXAMPLES in filled:
        filled = filled.replace(EXAMPLES, worked_examples(tokenizer, protocol))
    before, _, after = filled.partition(QUESTION)
    return before, after


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, question: str, frame: PromptFrame, protocol: ActionProtocol = TAG_PROTOCOL
) -> PromptTokens:
    """Return the prompt's tokens: the head alone, and the task prompt with the question, which is foreign text."""
    asked = tuple(encode_foreign(tokenizer, protocol.ask(question), protocol.tags))
    return PromptTokens(frame.head_token_ids, frame.before_token_ids + asked + frame.after_token_ids)


def prompt_lengths(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    frame: PromptFrame,
    protocol: ActionProtocol = TAG_PROTOCOL,
) -> list[int]:
    """Return how many tokens the prompt of each question has."""
    asked = [protocol.ask(question) for question in questions]
    return [frame.num_tokens + length for length in foreign_lengths(tokenizer, asked, protocol.tags)]


def _begin_of_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def render_documents(
    tokenizer: PreTrainedTokenizerBase,
    hits: Sequence[SearchHit],
    max_tokens: int,
    protocol: ActionProtocol = TAG_PROTOCOL,
    last_token: int | None = None,
) -> Observation:
    """Return the reply to a search in a turn that ended with `last_token`.

    Passages are cut to `max_tokens` in all, the closing tag always stays.
    """
    opening, closing, written = protocol.reply_frame(tokenizer, "documents", last_token)
    text = written(protocol.passages(hits))
    closing_ids = encode(tokenizer, closing)
    joined = encode_between(tokenizer, opening, text, closing, protocol.tags) if protocol.joined else None
    if joined is None:
        opening_ids = encode(tokenizer, opening)
        content_ids = encode_foreign(tokenizer, text, protocol.tags)
        kept = content_ids[: max(0, max_tokens - len(opening_ids) - len(closing_ids))]
        token_ids, num_cut = (*opening_ids, *kept, *closing_ids), len(content_ids) - len(kept)
    else:
        num_cut = max(0, len(joined) - max_tokens)
        end = max(len(encode(tokenizer, opening)), max_tokens - len(closing_ids))
        token_ids = (*joined[:end], *closing_ids) if num_cut else tuple(joined)
    return Observation(
        kind="documents",
        token_ids=token_ids,
        text=tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False),
        hits=tuple(hits),
        num_tokens_cut=num_cut,
    )


def render_notice(
    tokenizer: PreTrainedTokenizerBase,
    reason: MalformedReason,
    protocol: ActionProtocol = TAG_PROTOCOL,
    last_token: int | None = None,
) -> Observation:
    """Return the short notice that an ill-formed turn gets."""
    opening, closing, written = protocol.reply_frame(tokenizer, "notice", last_token)
    text = f"{opening}{written(protocol.notices[reason])}{closing}"
    return Observation(kind="notice", token_ids=tuple(encode(tokenizer, text)), text=text, hits=(), num_tokens_cut=0)
