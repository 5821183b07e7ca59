"""Prompts, documents and notices as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from schemas.errors import UserError, library_errors
from schemas.records.passage import SearchHit
from schemas.records.rollout import MalformedReason, Observation
from schemas.records.run_inputs import PromptFrame
from sdsearch.protocol.parsing import TAG_PROTOCOL
from sdsearch.protocol.ports import ActionProtocol
from sdsearch.protocol.tokens import encode, encode_between, encode_foreign, foreign_lengths

TemplateName = Literal["compact", "instruct"]
_WHERE = "the chat template of model.path's tokenizer"
_REMEDY = "correct chat_template in that folder, or choose another model.path"
# Nothing that stands in a message may be changed, and neither its length nor its words may matter.
_PROBES = ("\u241eOne\u241e", "\u241eA \"b\" & 'c' <d> {e}\\\n\n é  F\u241e", f"\u241e{'Many words. ' * 400}\u241e")


class PromptTokens(NamedTuple):
    """A prompt in two parts that are tokenised apart, so that a block put between them changes neither."""

    head: tuple[int, ...]
    body: tuple[int, ...]

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.head + self.body


def render_frame(
    tokenizer: PreTrainedTokenizerBase,
    template: TemplateName,
    protocol: ActionProtocol = TAG_PROTOCOL,
    wording: str = "",
) -> PromptFrame:
    """Return what stands around every question of a run: the chat template where there is one, else plain text.

    Made once a run, since a template may print the date. The head is all that precedes the user's words (system turn,
    role tokens, begin-of-text). Raises UserError for a template that fails, or does not put the message as it is in
    one place with the same text around it.
    """
    before, after = protocol.wording(template)
    head, tail = _chat_frame(tokenizer)
    return PromptFrame(
        template=wording or template,
        head=head,
        before=before,
        after=after + tail,
        head_token_ids=tuple(encode(tokenizer, head) if head else _begin_of_text(tokenizer)),
        before_token_ids=tuple(encode(tokenizer, before)),
        after_token_ids=tuple(encode(tokenizer, after + tail)),
    )


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


def _chat_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return what a chat template puts before and after the user's message, whatever the message is."""
    if not tokenizer.chat_template:
        return "", ""
    now = datetime.now().astimezone()
    frames = []
    for probe in _PROBES:
        with library_errors(_WHERE, _REMEDY):
            rendered = tokenizer.apply_chat_template(
                [{"role": "user", "content": probe}],
                tokenize=False,
                add_generation_prompt=True,
                strftime_now=now.strftime,  # One moment for all probes.
            )
        if (count := rendered.count(probe)) != 1:
            found = "more than once" if count else "not as it is (it is left out, cut or changed)"
            raise UserError(f"{_WHERE}: the user's message is in the prompt {found}; {_REMEDY}")
        head, _, tail = rendered.partition(probe)
        frames.append((head, tail))
    if len(set(frames)) > 1:
        raise UserError(f"{_WHERE}: the text around the user's message depends on the message; {_REMEDY}")
    return frames[0]


def _begin_of_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def render_documents(
    tokenizer: PreTrainedTokenizerBase,
    hits: Sequence[SearchHit],
    max_tokens: int,
    protocol: ActionProtocol = TAG_PROTOCOL,
) -> Observation:
    """Return the reply to a search; passages are cut to `max_tokens` in all, the closing tag always stays."""
    text, (opening, closing) = protocol.passages(hits), protocol.documents
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
    tokenizer: PreTrainedTokenizerBase, reason: MalformedReason, protocol: ActionProtocol = TAG_PROTOCOL
) -> Observation:
    """Return the short notice that an ill-formed turn gets."""
    text = f"\n{protocol.notices[reason]}\n"
    return Observation(kind="notice", token_ids=tuple(encode(tokenizer, text)), text=text, hits=(), num_tokens_cut=0)
