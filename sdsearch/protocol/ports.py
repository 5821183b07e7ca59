"""How the policy asks and is answered: the port that a plugin fills for a protocol of other words."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Final, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from schemas.base import Section
from schemas.records.passage import SearchHit
from schemas.records.rollout import Action, Answer, MalformedReason, Search, StopReason
from schemas.settings.root import RolloutSettings
from sdsearch.plugins import PluginError, open_plugin

NOTHING_FOUND: Final = "No documents found."


class ReplyFrame(NamedTuple):
    """What stands around the environment's reply, and how the reply's own text is written there."""

    opening: str
    closing: str
    written: Callable[[str], str] = str


class ActionProtocol(Section):
    """The words of a conversation. A plugin derives from this class; its fields are `rollout.protocol_options`.

    `stops`: the strings that end a turn; without any, turns end with the model's end-of-turn token. `tags`: names of
    tags `<name>` and `</name>` that only the policy and the environment may write: in questions, passages and queries
    they lose their angle brackets. `instructions`: what stands before the question where rollout.template is
    'instruct'. `documents`: what is put before and after the passages that a search brings. `answer_opening`: what the
    policy writes right before an answer. `notices`: the reply to a turn that is neither a search nor an answer.
    `joined`: whether `documents` and the passages are made into tokens together, where no word of `documents` is a
    special token; else each apart.
    """

    stops: ClassVar[Mapping[str, StopReason]]
    tags: ClassVar[tuple[str, ...]]
    instructions: ClassVar[str]
    answer_opening: ClassVar[str] = "<answer>"
    documents: ClassVar[tuple[str, str]] = ("\n<documents>\n", "\n</documents>\n")
    joined: ClassVar[bool] = False
    notices: ClassVar[Mapping[MalformedReason, str]] = {
        "no_action": "No search or answer was found.",
        "not_opened": "A closing tag has no opening tag.",
        "unreadable": "The call could not be read.",
        "unknown_tool": "There is no such tool; the only one is search.",
        "two_calls": "More than one call was made; make one at a time.",
        "empty_query": "The search was empty.",
        "empty_answer": "The answer was empty.",
    }

    @abstractmethod
    def parse(self, text: str) -> Action:
        """Return what a turn's text asks for: a Search, an Answer, or Malformed."""

    @abstractmethod
    def query_span(self, text: str) -> tuple[int, int]:
        """Return [start, end) of the query in the text of a turn that is a search: its tokens are what is distilled."""

    def write(self, tokenizer: PreTrainedTokenizerBase, action: Search | Answer, thought: str) -> str:
        """Return a turn that asks for this after a thought: what examples and demonstrations show.

        `parse` reads the action from it again. PluginError where the protocol cannot say.
        """
        raise PluginError(
            f"rollout.protocol: {type(self).__name__} cannot write a turn, which rollout.template 'few_shot' and "
            "'sdsearch warmup' need; give it a method write(tokenizer, action, thought)"
        )

    def turn_end(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return what the policy writes after an action to end its turn; nothing where a stop ends it."""
        return ""

    def wording(self, template: str) -> tuple[str, str]:
        """Return what stands before and after a question: with 'instruct' the instructions too."""
        return f"{self.instructions if template == 'instruct' else ''}Question: ", "\n"

    def message_frame(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
        """Return what stands before and after the user's message; None for the chat template's own frame."""
        return None

    def reply_frame(
        self, tokenizer: PreTrainedTokenizerBase, kind: Literal["documents", "notice"], last_token: int | None
    ) -> ReplyFrame:
        """Return what stands around a reply to a turn whose last token is `last_token`."""
        return ReplyFrame(*(self.documents if kind == "documents" else ("\n", "\n")))

    def ask(self, question: str) -> str:
        """Return a question as it stands between the two parts of `wording`."""
        return question

    def passages(self, hits: Sequence[SearchHit]) -> str:
        """Return what a search found as the text between the two parts of `documents`."""
        lines = [f"Doc {rank}(Title: {hit.passage.title}) {hit.passage.text}" for rank, hit in enumerate(hits, 1)]
        return "\n".join(" ".join(line.split()) for line in lines) if lines else NOTHING_FOUND


def open_protocol(settings: RolloutSettings) -> ActionProtocol:
    """Return the protocol that the settings name; PluginError where it cannot be used."""
    protocol: ActionProtocol = open_plugin("protocol", settings.protocol, settings.protocol_options)
    lacking = [name for name in ("stops", "tags", "instructions") if not hasattr(protocol, name)]
    if lacking or not all(protocol.stops):
        wrong = f"no {', '.join(lacking)}" if lacking else "an empty stop"
        raise PluginError(
            f"rollout.protocol '{settings.protocol}' has {wrong}; expected stops (the strings that end a turn), tags "
            "(names that foreign text may not write) and instructions"
        )
    return protocol
