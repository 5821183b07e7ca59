"""From a generation's text to what the policy wants: a search, an answer, or nothing well-formed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

from transformers import PreTrainedTokenizerBase

from schemas.records.rollout import Action, Answer, Generation, Malformed, MalformedReason, Search, StopReason
from sdsearch.protocol.ports import ActionProtocol
from sdsearch.protocol.tokens import TAGS, decode, positions_inside, token_char_spans

SEARCH_OPEN, SEARCH_CLOSE = "<search>", "</search>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"


def find_inside(text: str, opening: str, closing: str) -> tuple[int, int] | None:
    """Return [start, end) of the text between the first closing tag and the opening tag nearest before it."""
    end = text.find(closing)
    opened = text.rfind(opening, 0, end) if end >= 0 else -1
    return (opened + len(opening), end) if opened >= 0 else None


def parse_action(text: str) -> Action:
    """Read a turn's action; the closing tag that comes first decides, as it stopped the generation."""
    search_end, answer_end = text.find(SEARCH_CLOSE), text.find(ANSWER_CLOSE)
    if search_end < 0 and answer_end < 0:
        return Malformed(reason="no_action")
    is_search = answer_end < 0 or 0 <= search_end < answer_end
    opening, closing = (SEARCH_OPEN, SEARCH_CLOSE) if is_search else (ANSWER_OPEN, ANSWER_CLOSE)
    inside = find_inside(text, opening, closing)
    if inside is None:
        return Malformed(reason="not_opened")
    content = " ".join(text[inside[0] : inside[1]].split())
    if not content:
        empty: MalformedReason = "empty_query" if is_search else "empty_answer"
        return Malformed(reason=empty)
    return Search(query=content) if is_search else Answer(answer=content)


def write_in_tags(action: Search | Answer, thought: str) -> str:
    """Return `<think> thought </think>` and the action in its tags on the next line."""
    name, content = ("search", action.query) if isinstance(action, Search) else ("answer", action.answer)
    return f"<think> {thought} </think>\n<{name}> {content} </{name}>"


class TagProtocol(ActionProtocol):
    """`<search> query </search>` and `<answer> answer </answer>` (Search-R1, AutoRefine)."""

    stops: ClassVar[Mapping[str, StopReason]] = {SEARCH_CLOSE: "search_closed", ANSWER_CLOSE: "answer_closed"}
    tags: ClassVar[tuple[str, ...]] = TAGS
    answer_opening: ClassVar[str] = ANSWER_OPEN
    instructions: ClassVar[str] = (
        "Answer the question below. Reason inside <think> and </think> first, every time you receive new "
        "information. If you lack knowledge, call the search engine with <search> your query </search>; it replies "
        "with the best passages between <documents> and </documents>. Search as often as you need. When no more "
        "knowledge is needed, give only the answer inside <answer> and </answer>, without explanation, for example "
        "<answer> Beijing </answer>.\n"
    )

    def parse(self, text: str) -> Action:
        """As `parse_action`."""
        return parse_action(text)

    def write(self, tokenizer: PreTrainedTokenizerBase, action: Search | Answer, thought: str) -> str:
        """Return thought and action in their tags, a line each."""
        return write_in_tags(action, thought)

    def query_span(self, text: str) -> tuple[int, int]:
        """Return what lies between `<search>` and `</search>` (paper, section 3)."""
        inside = find_inside(text, SEARCH_OPEN, SEARCH_CLOSE)
        assert inside is not None, "a search has both its tags"
        return inside


TAG_PROTOCOL: Final = TagProtocol()


def query_positions(
    tokenizer: PreTrainedTokenizerBase,
    token_ids: Sequence[int],
    text: str,
    protocol: ActionProtocol = TAG_PROTOCOL,
) -> tuple[int, ...]:
    """Return the offsets of the query tokens: those wholly within the query's own text."""
    if not isinstance(protocol.parse(text), Search):
        return ()
    return positions_inside(token_char_spans(tokenizer, token_ids), *protocol.query_span(text))


def make_generation(
    tokenizer: PreTrainedTokenizerBase,
    token_ids: Sequence[int],
    sampled_logprobs: Sequence[float | None],
    stop_reason: StopReason,
    protocol: ActionProtocol = TAG_PROTOCOL,
) -> Generation:
    """Record a sampled turn; the ids stay as sampled, the text and the query tokens are read off them."""
    text = decode(tokenizer, token_ids)
    return Generation(
        token_ids=tuple(token_ids),
        sampled_logprobs=tuple(sampled_logprobs),
        text=text,
        stop_reason=stop_reason,
        query_positions=query_positions(tokenizer, token_ids, text, protocol),
    )
