"""Two worked examples in any protocol's words: what `rollout.template = "few_shot"` shows before the question."""

from __future__ import annotations

from typing import Final, NamedTuple

from transformers import PreTrainedTokenizerBase

from schemas.records.passage import Passage, SearchHit
from schemas.records.rollout import Answer, Search
from sdsearch.protocol.ports import ActionProtocol


class WorkedSearch(NamedTuple):
    """A search of an example: what was thought, the query, and the passage that it found."""

    thought: str
    query: str
    title: str
    text: str


class WorkedExample(NamedTuple):
    """A question with the searches and the thought that lead to its answer."""

    question: str
    searches: tuple[WorkedSearch, ...]
    thought: str
    answer: str


EXAMPLES: Final = (
    WorkedExample(
        "Who wrote the novel Moby-Dick?",
        (
            WorkedSearch(
                "I do not know who wrote it. I search for its author.",
                "author of the novel Moby-Dick",
                "Moby-Dick",
                "Moby-Dick; or, The Whale is an 1851 novel by the American writer Herman Melville.",
            ),
        ),
        "The document says that Herman Melville wrote it.",
        "Herman Melville",
    ),
    WorkedExample(
        "In which city was the composer of the opera Fidelio born?",
        (
            WorkedSearch(
                "First I need the composer of Fidelio.",
                "composer of the opera Fidelio",
                "Fidelio",
                "Fidelio is the only opera of the composer Ludwig van Beethoven.",
            ),
            WorkedSearch(
                "It is Beethoven. Now I need the city where he was born.",
                "city where Ludwig van Beethoven was born",
                "Ludwig van Beethoven",
                "Ludwig van Beethoven was born in Bonn in 1770 and died in Vienna in 1827.",
            ),
        ),
        "Beethoven was born in Bonn.",
        "Bonn",
    ),
)
"""Facts of general knowledge; none is in the embedded world."""

_OPENING: Final = "Two examples of how it is done:\n\n"
_CLOSING: Final = "Now answer this question in the same way.\n"


def worked_examples(tokenizer: PreTrainedTokenizerBase, protocol: ActionProtocol) -> str:
    """Return the examples as text and a line that leads back to the task; PluginError as of `ActionProtocol.write`."""
    return f"{_OPENING}{''.join(f'{_written(tokenizer, protocol, e)}{chr(10) * 2}' for e in EXAMPLES)}{_CLOSING}"


def _written(tokenizer: PreTrainedTokenizerBase, protocol: ActionProtocol, example: WorkedExample) -> str:
    opening, closing = protocol.documents
    parts = [f"Question: {example.question}\n"]
    for number, search in enumerate(example.searches):
        passage = Passage(id=str(number), title=search.title, text=search.text)
        parts.append(protocol.write(tokenizer, Search(query=search.query), search.thought))
        parts.append(f"{opening}{protocol.passages([SearchHit(passage=passage, score=1.0)])}{closing}")
    parts.append(protocol.write(tokenizer, Answer(answer=example.answer), example.thought))
    return "".join(parts)
