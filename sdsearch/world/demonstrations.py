"""Demonstrations: scripted rollouts as tokens, laid out as sampling lays them out, with a weight a token.

Four kinds. `plain` has no hindsight block: this is the student. `natural` starts with the block of a simulated
group with its true outcomes; the target takes the queries of a CORRECT attempt. `critical` starts with a block
whose labels were drawn without looking at the queries, so that only the labels tell which query to take.
`opening` is a `critical` one that ends after its first query: short, and all about the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from schemas.records.hindsight import HindsightAttempt, Label
from schemas.records.passage import Passage, SearchHit
from schemas.records.rollout import Answer, Search
from sdsearch.credit.block_text import neutralise
from sdsearch.protocol.parsing import TAG_PROTOCOL, write_in_tags
from sdsearch.protocol.prompting import render_frame
from sdsearch.training.supervised import Demonstration, Layout, demonstrate
from sdsearch.world.markup import MarkedWorld, NameSource, QuestionPlan, Renaming
from sdsearch.world.scripts import (
    Candidate,
    QueryBook,
    Script,
    ScriptedTurn,
    follow_queries,
    label_script,
    write_script,
)

DemonstrationKind = Literal["plain", "natural", "critical", "opening", "query_only", "one_hop"]
MAX_SEARCHES, MAX_OBSERVATION_TOKENS, MAX_BLOCK_TOKENS = 4, 160, 400
_DOCUMENT_SHARE, _DOCUMENT_WEIGHT = 0.1, 0.5
_GROUP_SIZES = (5, 5, 5, 5, 4, 3, 2)
_KEEP_NAMES_SHARE = 0.2
_THOUGHT_FIRST, _THOUGHT_NEXT, _THOUGHT_ANSWER = "I need facts.", "I search on.", "I can answer."


class Scene(NamedTuple):
    """What is told: a question, the attempts shown before it (None: no block), and the script to imitate."""

    plan: QuestionPlan
    attempts: tuple[tuple[tuple[str, ...], Label], ...] | None
    script: Script
    answers: bool


@dataclass(frozen=True)
class Stage:
    """What demonstrations are made from."""

    world: MarkedWorld
    book: QueryBook
    layout: Layout
    names: NameSource
    reply_share: float = _DOCUMENT_SHARE
    """Share of a reply's tokens that are trained on too."""
    max_searches: int = MAX_SEARCHES


def mini_layout(tokenizer: PreTrainedTokenizerBase) -> Layout:
    """Return the layout in which the mini policy is trained."""
    frame = render_frame(tokenizer, "compact")
    return Layout(tokenizer, TAG_PROTOCOL, frame, MAX_OBSERVATION_TOKENS, MAX_BLOCK_TOKENS)


def turn_text(query: str, is_first: bool) -> str:
    """Return a search turn as the mini policy writes it; its thought says nothing about the query's quality."""
    return write_in_tags(Search(query=query), _thought(is_first))


def answer_text(answer: str) -> str:
    """Return an answer turn as the mini policy writes it."""
    return write_in_tags(Answer(answer=answer), _THOUGHT_ANSWER)


def _thought(is_first: bool) -> str:
    return _THOUGHT_FIRST if is_first else _THOUGHT_NEXT


def make_demonstration(stage: Stage, plan: QuestionPlan, kind: DemonstrationKind, random: Random) -> Demonstration:
    """Simulate, rename and encode one demonstration of the given kind."""
    scene = make_scene(stage, plan, kind, random)
    keeps_names = random.random() < _KEEP_NAMES_SHARE
    return encode_scene(stage, scene, Renaming(random, None if keeps_names else stage.names), random)


def make_scene(stage: Stage, plan: QuestionPlan, kind: DemonstrationKind, random: Random) -> Scene:
    """Simulate one scene of the given kind, in marked text."""
    return _SCENES[kind](stage, plan, random)


def encode_scene(stage: Stage, scene: Scene, renaming: Renaming, random: Random) -> Demonstration:
    """Return the scene as tokens: block, prompt, then turn by turn the policy's text and the documents."""
    return demonstrate(
        stage.layout,
        renaming.apply(scene.plan.question),
        _attempts(scene, renaming),
        _turns(stage, scene, renaming),
        lambda num_tokens: _reply_weights(num_tokens, stage.reply_share, random),
    )


def _attempts(scene: Scene, renaming: Renaming) -> list[HindsightAttempt] | None:
    if scene.attempts is None:
        return None
    return [
        HindsightAttempt(
            rollout_index=position,
            label=label,
            contents=tuple(neutralise(renaming.apply(query)) for query in queries),
        )
        for position, (queries, label) in enumerate(scene.attempts)
    ]


def _reply_weights(num_tokens: int, share: float, random: Random) -> list[float]:
    """Give a few document tokens a weight: enough to learn the texts' wording, cheap in logits."""
    return [_DOCUMENT_WEIGHT * (random.random() < share) for _ in range(num_tokens)]


def _turns(stage: Stage, scene: Scene, renaming: Renaming) -> Iterator[tuple[str, Sequence[SearchHit] | None]]:
    """Yield each turn's text with what its search found; one after another, since renaming draws as it goes."""
    tokenizer, protocol = stage.layout.tokenizer, stage.layout.protocol
    end = protocol.turn_end(tokenizer)
    for position, turn in enumerate(scene.script.turns):
        search = Search(query=renaming.apply(turn.query))
        text = protocol.write(tokenizer, search, _thought(position == 0)) + end
        is_last = position == len(scene.script.turns) - 1
        yield text, _hits(stage, turn.hits, renaming) if scene.answers or not is_last else None
    if scene.answers:
        answer = Answer(answer=renaming.apply(scene.script.answer))
        yield protocol.write(tokenizer, answer, _THOUGHT_ANSWER) + end, None


def _hits(stage: Stage, hits: Sequence[str], renaming: Renaming) -> list[SearchHit]:
    marked = [(hit, stage.world.passages[hit]) for hit in hits]
    return [
        SearchHit(passage=Passage(id=hit, title=renaming.apply(p.title), text=renaming.apply(p.text)), score=1.0)
        for hit, p in marked
    ]


def _plain_scene(stage: Stage, plan: QuestionPlan, random: Random) -> Scene:
    return Scene(plan, None, write_script(stage.book, plan, random, stage.max_searches), True)


def _query_only_scene(stage: Stage, plan: QuestionPlan, random: Random) -> Scene:
    script = write_script(stage.book, plan, random, 1)
    return Scene(plan, None, script, False)


def _one_hop_scene(stage: Stage, plan: QuestionPlan, random: Random) -> Scene:
    """One search that brings one passage with the answer: the shortest demonstration of reading."""
    hop = plan.hops[-1]
    shown = plan._replace(question=f"What is the {hop.relation} of {hop.subject}?", hops=(hop,))
    turn = ScriptedTurn(f"{hop.relation} of {hop.subject}", (random.choice(sorted(hop.gold)),), True)
    return Scene(shown, None, Script((turn,), hop.object), True)


def _natural_scene(stage: Stage, plan: QuestionPlan, random: Random) -> Scene:
    book = stage.book
    group = [write_script(book, plan, random, stage.max_searches) for _ in range(random.choice(_GROUP_SIZES))]
    attempts = tuple((script.queries, label_script(script, plan)) for script in group)
    correct = [script for script, (_, label) in zip(group, attempts, strict=True) if label == "CORRECT"]
    if not correct:
        return Scene(plan, attempts, _untried_script(book, plan, attempts, random), True)
    model = random.choice(correct)
    found = [turn for turn in model.turns if turn.found] or list(model.turns)
    return Scene(plan, attempts, follow_queries(book, plan, found), True)


def _untried_script(
    book: QueryBook, plan: QuestionPlan, attempts: Sequence[tuple[tuple[str, ...], Label]], random: Random
) -> Script:
    tried = {query for queries, _ in attempts for query in queries}
    turns = []
    for position in range(len(plan.hops)):
        queries = book.at(plan, position)
        fresh = [c for c in queries.good if c.query not in tried] or queries.good or queries.all
        chosen = random.choice(fresh)
        turns.append(ScriptedTurn(chosen.query, chosen.hits, chosen in queries.good))
    return follow_queries(book, plan, turns)


def _critical_scene(stage: Stage, plan: QuestionPlan, random: Random) -> Scene:
    """Attempts with distinct queries and labels drawn apart from them; the target repeats a CORRECT one's."""
    size = random.choice(_GROUP_SIZES)
    only_good = random.random() < 0.5
    pools = [_shuffled_pool(stage.book, plan, position, only_good, random) for position in range(len(plan.hops))]
    size = min(size, *(len(pool) for pool in pools))
    sequences = [tuple(pool[number] for pool in pools)[: random.choice((1, 2, 2))] for number in range(size)]
    num_correct = random.randint(1, max(1, size - 1))
    labels: list[Label] = ["CORRECT" if number < num_correct else "INCORRECT" for number in range(size)]
    random.shuffle(labels)
    model = random.choice([seq for seq, label in zip(sequences, labels, strict=True) if label == "CORRECT"])
    attempts = [(tuple(c.query for c in seq), label) for seq, label in zip(sequences, labels, strict=True)]
    turns = [ScriptedTurn(c.query, c.hits, True) for c in model]
    script = follow_queries(stage.book, plan, turns)
    return Scene(plan, tuple(attempts), script, script.answer == plan.golden_answers[0])


def _shuffled_pool(
    book: QueryBook, plan: QuestionPlan, position: int, only_good: bool, random: Random
) -> list[Candidate]:
    queries = book.at(plan, position)
    pool = list(queries.good if only_good and len(queries.good) > 2 else queries.all)
    random.shuffle(pool)
    return pool


def _opening_scene(stage: Stage, plan: QuestionPlan, random: Random) -> Scene:
    scene = _critical_scene(stage, plan, random)
    return scene._replace(script=scene.script._replace(turns=scene.script.turns[:1]), answers=False)


_SCENES: dict[DemonstrationKind, Callable[[Stage, QuestionPlan, Random], Scene]] = {
    "plain": _plain_scene,
    "natural": _natural_scene,
    "critical": _critical_scene,
    "opening": _opening_scene,
    "query_only": _query_only_scene,
    "one_hop": _one_hop_scene,
}
