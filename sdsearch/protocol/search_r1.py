"""Search-R1's protocol, as its public checkpoints were trained: github.com/PeterGriffinJin/Search-R1 (Apache-2.0).

The wording of the prompt is `make_prefix` of its scripts/data_process/nq_search.py, the replies are those of its
search_r1/llm_agent/generation.py (commit a14dc3a). Its scripts allow 4 searches, 500 tokens a turn and a reply, 2048 in
a prompt, and 3 passages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

from transformers import PreTrainedTokenizerBase

from schemas.records.passage import SearchHit
from schemas.records.rollout import Action, Answer, Malformed, MalformedReason, Search, StopReason
from sdsearch.protocol.parsing import write_in_tags
from sdsearch.protocol.ports import ActionProtocol

_ACTION: Final = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL)
_INVALID: Final = (
    "My previous action is invalid. If I want to search, I should put the query between <search> and </search>. If I "
    "want to give the final answer, I should put the answer between <answer> and </answer>. Let me try again."
)


class SearchR1(ActionProtocol):
    """`<search>`, `<information>`, `<answer>`; the first whole pair of tags is the action."""

    stops: ClassVar[Mapping[str, StopReason]] = {"</search>": "search_closed", "</answer>": "answer_closed"}
    tags: ClassVar[tuple[str, ...]] = ("think", "search", "information", "answer")
    documents: ClassVar[tuple[str, str]] = ("\n\n<information>", "</information>\n\n")
    joined: ClassVar[bool] = True
    instructions: ClassVar[str] = (
        "Answer the given question. You must conduct reasoning inside <think> and </think> first every time you get "
        "new information. After reasoning, if you find you lack some knowledge, you can call a search engine by "
        "<search> query </search> and it will return the top searched results between <information> and "
        "</information>. You can search as many times as your want. If you find no further external knowledge needed, "
        "you can directly provide the answer inside <answer> and </answer>, without detailed illustrations. For "
        "example, <answer> Beijing </answer>. "
    )
    notices: ClassVar[Mapping[MalformedReason, str]] = dict.fromkeys(ActionProtocol.notices, _INVALID)

    def parse(self, text: str) -> Action:
        """Return the action of the first whole pair of tags."""
        found = _ACTION.search(text)
        if found is None:
            return Malformed(reason="not_opened" if any(stop in text for stop in self.stops) else "no_action")
        content = found[2].strip()
        if found[1] == "search":
            return Search(query=content) if content else Malformed(reason="empty_query")
        return Answer(answer=content) if content else Malformed(reason="empty_answer")

    def write(self, tokenizer: PreTrainedTokenizerBase, action: Search | Answer, thought: str) -> str:
        """Return thought and action in their tags, a line each."""
        return write_in_tags(action, thought)

    def query_span(self, text: str) -> tuple[int, int]:
        """Return what lies between the tags of the action."""
        found = _ACTION.search(text)
        assert found is not None, "a search has both its tags"
        return found.span(2)

    def wording(self, template: str) -> tuple[str, str]:
        """Leave the blank before the question and the line's end to it: they share its tokens, as in training."""
        return f"{self.instructions if template == 'instruct' else ''}Question:", ""

    def ask(self, question: str) -> str:
        """Return the question with its mark, as the checkpoints' data have it."""
        asked = question.strip()
        return f" {asked}\n" if asked.endswith("?") else f" {asked}?\n"

    def passages(self, hits: Sequence[SearchHit]) -> str:
        """Return a line for each passage; nothing where there is none."""
        lines = (f"Doc {rank}(Title: {hit.passage.title}) {hit.passage.text}\n" for rank, hit in enumerate(hits, 1))
        return "".join(lines).strip()
