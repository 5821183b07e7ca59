"""Where demonstrations come from: the embedded world's scripts, or the CORRECT rollouts of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Final, NamedTuple, assert_never

from schemas.errors import UserError
from schemas.records.hindsight import HindsightAttempt, Label
from schemas.records.ledger import StageKey
from schemas.records.passage import SearchHit
from schemas.records.rollout import Answer, Group, Malformed, Rollout, Search
from schemas.settings.root import Settings
from schemas.settings.warmup import WORLD_DEMONSTRATIONS
from sdsearch.credit.block_text import neutralise
from sdsearch.seeds import derive_seed
from sdsearch.training.supervised import Batch, Demonstration, Layout, bucket, demonstrate
from sdsearch.world import load_passages
from sdsearch.world.build import make_retriever
from sdsearch.world.demonstrations import DemonstrationKind, Stage, make_demonstration
from sdsearch.world.markup import NameSource, load_marked_world
from sdsearch.world.scripts import QueryBook
from storage.database.stage_rows import file_of
from storage.storage import Storage

Draw = Callable[[bool, Random], Demonstration]
"""Returns a demonstration, with a hindsight block or without."""

_PER_CHUNK: Final = 200
_BLOCK_KINDS: Final[tuple[DemonstrationKind, ...]] = ("natural", "critical")
_OUTCOMES: Final = "SELECT rollout_id, outcome FROM rollouts WHERE run = $run"
_THOUGHTS: Final = {"search": "I search for what I need.", "answer": "I can answer."}


class Shown(NamedTuple):
    """A CORRECT rollout as it is told: the question, its turns, and its siblings' attempts."""

    question: str
    turns: tuple[tuple[str, Sequence[SearchHit] | None], ...]
    attempts: tuple[HindsightAttempt, ...]


def open_source(settings: Settings, storage: Storage, layout: Layout) -> Draw:
    """Return what draws demonstrations by `warmup.demonstrations`; UserError for a run that has none."""
    if settings.warmup.demonstrations == WORLD_DEMONSTRATIONS:
        return _world_source(settings, layout)
    return _run_source(settings, storage, layout)


def make_batches(settings: Settings, draw: Draw, longest: int) -> Iterator[Batch]:
    """Yield batches without end, the same by the settings' seed; UserError where no demonstration has room.

    longest: tokens that a demonstration may have.
    """
    random = Random(derive_seed(settings.seed, "warmup"))
    while True:
        made = [draw(random.random() < settings.warmup.block_share, random) for _ in range(_PER_CHUNK)]
        fitting = [one for one in made if len(one.token_ids) <= longest]
        if not fitting:
            shortest = min(len(one.token_ids) for one in made)
            raise UserError(
                f"warmup: the shortest demonstration has {shortest} tokens, the model's context {longest}; lower "
                "rollout.max_observation_tokens, or use another rollout.template"
            )
        yield from bucket(fitting, settings.warmup.tokens_per_batch, random)


def _world_source(settings: Settings, layout: Layout) -> Draw:
    world = load_marked_world()
    plans = [plan for plan in world.plans if plan.split == "train"]
    queries = Random(derive_seed(settings.seed, "queries"))
    book = QueryBook(world, plans, make_retriever(load_passages()), queries, settings.retrieval.num_passages)
    names = NameSource(layout.tokenizer, world)
    stage = Stage(world, book, layout, names, reply_share=0.0, max_searches=settings.rollout.max_searches)

    def draw(with_block: bool, random: Random) -> Demonstration:
        kind = random.choice(_BLOCK_KINDS) if with_block else "plain"
        return make_demonstration(stage, random.choice(plans), kind, random)

    return draw


def _run_source(settings: Settings, storage: Storage, layout: Layout) -> Draw:
    run = settings.warmup.demonstrations
    record = storage.find_run(run)
    rows = storage.database.query(_OUTCOMES, {"run": record.run}).to_pylist()
    outcomes: dict[str, Label] = {row["rollout_id"]: row["outcome"] for row in rows}
    shown = [one for group in _groups(storage, record.run) for one in _shown(group, outcomes, layout)]
    if not shown:
        raise UserError(
            f"warmup.demonstrations: run '{run}' has no well-formed CORRECT rollout ({len(outcomes)} are scored); "
            "name another run, or 'world'"
        )

    def draw(with_block: bool, random: Random) -> Demonstration:
        one = random.choice(shown)
        return demonstrate(layout, one.question, one.attempts if with_block else None, one.turns)

    return draw


def _groups(storage: Storage, run: str) -> Iterator[Group]:
    for iteration in range(1, storage.ledger.get_run(run).iterations_done + 1):
        sampled = storage.ledger.done(StageKey(run=run, iteration=iteration, stage="sample"))
        if sampled is not None:
            yield from storage.artifacts.read_records(file_of(sampled, "groups"), Group)


def _shown(group: Group, outcomes: dict[str, Label], layout: Layout) -> Iterator[Shown]:
    """Yield the group's CORRECT rollouts without an ill-formed turn."""
    attempts = tuple(
        HindsightAttempt(
            rollout_index=number,
            label=outcomes[rollout.id],
            contents=tuple(neutralise(query, layout.protocol.tags) for query in rollout.queries),
        )
        for number, rollout in enumerate(group.rollouts)
        if rollout.id in outcomes
    )
    for rollout in group.rollouts:
        if outcomes.get(rollout.id) == "CORRECT" and (turns := _turns(rollout, layout)) is not None:
            yield Shown(group.question.question, turns, attempts)


def _turns(rollout: Rollout, layout: Layout) -> tuple[tuple[str, Sequence[SearchHit] | None], ...] | None:
    """Return the turns in the protocol's words, each with what it found; None with an ill-formed one."""
    told = []
    for turn in rollout.turns:
        match turn.action:
            case Malformed():
                return None
            case Search() | Answer() as action:
                hits = turn.observation.hits if turn.observation is not None else None
                told.append((_written(turn.generation.text, action, layout), hits))
            case unknown:
                assert_never(unknown)
    return tuple(told)


def _written(text: str, action: Search | Answer, layout: Layout) -> str:
    """Return a turn as it was sampled where the protocol reads it so, else the action in the protocol's words."""
    protocol, tokenizer = layout.protocol, layout.tokenizer
    if protocol.parse(text) == action:
        end = protocol.turn_end(tokenizer)
        return text if not end or text.endswith(end) else text + end
    return protocol.write(tokenizer, action, _THOUGHTS[action.kind]) + protocol.turn_end(tokenizer)
