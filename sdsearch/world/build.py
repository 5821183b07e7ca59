"""Makes the mini policy from the embedded world: tokenizer, demonstrations, training, figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import NamedTuple

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from schemas.records.passage import Passage
from sdsearch.credit.block_variants import HEADER
from sdsearch.evaluation.answering import fixed_sample
from sdsearch.protocol.parsing import TAG_PROTOCOL
from sdsearch.protocol.ports import ActionProtocol
from sdsearch.protocol.prompting import render_frame
from sdsearch.retrieval.dense import build_dense_retriever
from sdsearch.retrieval.lexical import LexicalEncoder
from sdsearch.retrieval.ports import Retriever
from sdsearch.sampling.rollouts import RolloutLimits, RolloutLoop
from sdsearch.sampling.transformers_sampler import TransformersSampler
from sdsearch.seeds import derive_seed
from sdsearch.training.supervised import Batch, bucket
from sdsearch.world import load_passages, load_questions
from sdsearch.world.architecture import make_mini_model
from sdsearch.world.demonstrations import (
    MAX_OBSERVATION_TOKENS,
    MAX_SEARCHES,
    DemonstrationKind,
    Stage,
    answer_text,
    make_demonstration,
    mini_layout,
    turn_text,
)
from sdsearch.world.markup import NameSource, QuestionPlan, load_marked_world, unmark
from sdsearch.world.pretrain import pretrain
from sdsearch.world.probe import (
    BlockFigures,
    PlainFigures,
    measure_blocks,
    measure_plain,
    rename_world,
    with_retriever,
)
from sdsearch.world.scripts import PASSAGES_PER_QUERY, QueryBook
from sdsearch.world.tokenizer import train_tokenizer

NUM_STEPS = 5000
_PEAK_RATE = 2e-3
_READER_RATE = 1e-3
_TOKENS_PER_BATCH = 2500
_DEMONSTRATIONS_PER_CHUNK = 600
_NUM_PROBED = 200
_NUM_BLOCK_QUESTIONS = 200
_EARLY_SHARE = 0.12
_EARLY_MIX: dict[DemonstrationKind, float] = {"query_only": 0.3, "opening": 0.4, "one_hop": 0.3}
_MIX: dict[DemonstrationKind, float] = {"plain": 0.5, "natural": 0.2, "critical": 0.15, "opening": 0.15}
_READER_MIX: dict[DemonstrationKind, float] = {
    "plain": 0.4,
    "natural": 0.15,
    "critical": 0.15,
    "opening": 0.1,
    "one_hop": 0.2,
}


class BuildProgress(NamedTuple):
    """How far the build is; `loss` is the training loss, None outside training."""

    stage: str
    done: int
    total: int
    loss: float | None


ShowProgress = Callable[[BuildProgress], None]
"""Is told how far a build is."""


class MiniFigures(NamedTuple):
    """What the built policy can do on the dev split; `renamed` is the same world with all names invented."""

    greedy: PlainFigures
    sampled: PlainFigures
    renamed_greedy: PlainFigures
    renamed_sampled: PlainFigures
    blocks: BlockFigures


def build_mini(
    seed: int, progress: Callable[[BuildProgress], None], num_steps: int = NUM_STEPS
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Build the mini policy; the same seed, machine and number of threads give the same weights."""
    progress(BuildProgress("world", 0, 1, None))
    world, passages = load_marked_world(), load_passages()
    retriever = make_retriever(passages)
    plans = [plan for plan in world.plans if plan.split == "train"]
    book = QueryBook(world, plans, retriever, Random(derive_seed(seed, "queries")))
    progress(BuildProgress("tokenizer", 0, 1, None))
    tokenizer = train_tokenizer(_tokenizer_texts(passages, plans, book, Random(derive_seed(seed, "tokenizer"))))
    stage = Stage(world, book, mini_layout(tokenizer), NameSource(tokenizer, world))
    model = make_mini_model(len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id, seed)
    _train(model, stage, plans, seed, progress, num_steps)
    return model, tokenizer


def train_reader(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    progress: Callable[[BuildProgress], None],
    num_steps: int,
) -> None:
    """Train a built policy on, in place, until it reads better: how well it searches stays as it was meant to be.

    Half of the demonstrations have one passage per query, the others as many as the build; more of them are about
    reading alone. The same seed, machine and number of threads give the same weights.
    """
    world, retriever = load_marked_world(), make_retriever(load_passages())
    plans = [plan for plan in world.plans if plan.split == "train"]
    names, stages = NameSource(tokenizer, world), []
    for num_passages in (1, PASSAGES_PER_QUERY):
        progress(BuildProgress(f"queries, {num_passages} passages each", 0, 1, None))
        book = QueryBook(world, plans, retriever, Random(derive_seed(seed, "queries")), num_passages)
        stages.append(Stage(world, book, mini_layout(tokenizer), names))
    torch.manual_seed(seed)
    batches = _reader_batches(stages, plans, Random(derive_seed(seed, "reader")))
    for report in pretrain(model, batches, num_steps, _READER_RATE):
        progress(BuildProgress("reading", report.step, num_steps, report.loss))


def make_retriever(passages: Sequence[Passage]) -> Retriever:
    """Return the embedded world's default retriever over the given passages."""
    return build_dense_retriever(passages, LexicalEncoder.fit([passage.contents for passage in passages]))


def make_loop(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    retriever: Retriever,
    protocol: ActionProtocol = TAG_PROTOCOL,
    max_new_tokens: int = 48,
) -> RolloutLoop:
    """Return the rollout loop in the layout that the mini policy was trained in."""
    limits = RolloutLimits(
        max_searches=MAX_SEARCHES,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=256,
        max_observation_tokens=MAX_OBSERVATION_TOKENS,
        max_context_tokens=model.config.max_position_embeddings,
        num_passages=PASSAGES_PER_QUERY,
    )
    sampler = TransformersSampler(model, tokenizer, protocol)
    frame = render_frame(tokenizer, "compact", protocol)
    return RolloutLoop(tokenizer, sampler, retriever, limits, frame, protocol)


def measure_mini(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    progress: Callable[[BuildProgress], None],
) -> MiniFigures:
    """Measure the policy on dev questions: as they are, with invented names, and with hindsight blocks."""
    progress(BuildProgress("figures", 0, 3, None))
    world, passages, dev = load_marked_world(), load_passages(), load_questions("dev")
    questions = fixed_sample(dev, _NUM_PROBED, seed)
    loop = make_loop(model, tokenizer, make_retriever(passages))
    greedy, sampled = (measure_plain(loop, questions, mode, seed) for mode in ("greedy", "sampled"))
    progress(BuildProgress("figures", 1, 3, None))
    new_passages, renamed = rename_world(world, questions, NameSource(tokenizer, world), seed)
    elsewhere = with_retriever(loop, make_retriever(new_passages))
    renamed_greedy, renamed_sampled = (measure_plain(elsewhere, renamed, mode, seed) for mode in ("greedy", "sampled"))
    progress(BuildProgress("figures", 2, 3, None))
    blocks = measure_blocks(loop, model, fixed_sample(dev, _NUM_BLOCK_QUESTIONS, seed), seed)
    return MiniFigures(greedy, sampled, renamed_greedy, renamed_sampled, blocks)


def _tokenizer_texts(
    passages: Sequence[Passage], plans: Sequence[QuestionPlan], book: QueryBook, random: Random
) -> Iterator[str]:
    """Yield what the policy will read and write, so that its frequent words become single tokens."""
    yield from (f"Doc 1(Title: {passage.title}) {passage.text}" for passage in passages)
    for plan in plans:
        queries = [unmark(candidate.query) for candidate in random.choices(book.at(plan, 0).all, k=3)]
        yield f"Question: {unmark(plan.question)}\n"
        yield from (turn_text(query, position == 0) + "\n<documents>\n" for position, query in enumerate(queries))
        yield answer_text(unmark(plan.golden_answers[0]))
        yield f"{HEADER}Attempt 1 (CORRECT): {queries[0]} | {queries[1]}\nAttempt 2 (INCORRECT): no search\n"


def _train(
    model: LlamaForCausalLM,
    stage: Stage,
    plans: Sequence[QuestionPlan],
    seed: int,
    progress: Callable[[BuildProgress], None],
    num_steps: int,
) -> None:
    """Train in place."""
    torch.manual_seed(seed)
    batches = _batches(stage, plans, Random(derive_seed(seed, "demonstrations")), int(_EARLY_SHARE * num_steps))
    for report in pretrain(model, batches, num_steps, _PEAK_RATE):
        progress(BuildProgress("training", report.step, num_steps, report.loss))


def _batches(stage: Stage, plans: Sequence[QuestionPlan], random: Random, num_early: int) -> Iterator[Batch]:
    """Yield batches without end: first the short lessons (query, label, reading), then whole rollouts."""
    num_made = 0
    while True:
        mix = _EARLY_MIX if num_made < num_early else _MIX
        kinds = random.choices(list(mix), weights=list(mix.values()), k=_DEMONSTRATIONS_PER_CHUNK)
        made = [make_demonstration(stage, random.choice(plans), kind, random) for kind in kinds]
        chunk = bucket(made, _TOKENS_PER_BATCH, random)
        num_made += len(chunk)
        yield from chunk


def _reader_batches(stages: Sequence[Stage], plans: Sequence[QuestionPlan], random: Random) -> Iterator[Batch]:
    while True:
        kinds = random.choices(list(_READER_MIX), weights=list(_READER_MIX.values()), k=_DEMONSTRATIONS_PER_CHUNK)
        made = [make_demonstration(random.choice(stages), random.choice(plans), kind, random) for kind in kinds]
        yield from bucket(made, _TOKENS_PER_BATCH, random)
