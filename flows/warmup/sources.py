"""Where demonstrations come from: the embedded world's scripts, or the CORRECT rollouts of a run or an export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Final, NamedTuple

from flows.warmup.correct import correct_rollouts, fingerprint
from schemas.errors import UserError
from schemas.settings.root import Settings
from schemas.settings.warmup import WORLD_DEMONSTRATIONS
from sdsearch.seeds import derive_seed
from sdsearch.training.supervised import Batch, Demonstration, Layout, bucket, demonstrate
from sdsearch.world import load_passages
from sdsearch.world.build import make_retriever
from sdsearch.world.demonstrations import DemonstrationKind, Stage, make_demonstration
from sdsearch.world.markup import NameSource, load_marked_world
from sdsearch.world.scripts import QueryBook
from storage.storage import Storage

Draw = Callable[[bool, Random], Demonstration]
"""Returns a demonstration, with a hindsight block or without."""

_PER_CHUNK: Final = 200
_BLOCK_KINDS: Final[tuple[DemonstrationKind, ...]] = ("natural", "critical")


class Source(NamedTuple):
    """Where demonstrations are drawn from; the fingerprint of rollouts tells whether they are still the same."""

    draw: Draw
    fingerprint: str = ""


def open_source(settings: Settings, storage: Storage, layout: Layout) -> Source:
    """Return what draws demonstrations by `warmup.demonstrations`; errors as of `correct_rollouts`."""
    if settings.warmup.demonstrations == WORLD_DEMONSTRATIONS:
        return _world_source(settings, layout)
    shown = correct_rollouts(settings.warmup, storage, layout)

    def draw(with_block: bool, random: Random) -> Demonstration:
        one = random.choice(shown)
        return demonstrate(layout, one.question, one.attempts if with_block else None, one.turns)

    return Source(draw, fingerprint(shown))


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


def _world_source(settings: Settings, layout: Layout) -> Source:
    world = load_marked_world()
    plans = [plan for plan in world.plans if plan.split == "train"]
    queries = Random(derive_seed(settings.seed, "queries"))
    book = QueryBook(world, plans, make_retriever(load_passages()), queries, settings.retrieval.num_passages)
    names = NameSource(layout.tokenizer, world)
    stage = Stage(world, book, layout, names, reply_share=0.0, max_searches=settings.rollout.max_searches)

    def draw(with_block: bool, random: Random) -> Demonstration:
        kind = random.choice(_BLOCK_KINDS) if with_block else "plain"
        return make_demonstration(stage, random.choice(plans), kind, random)

    return Source(draw)
