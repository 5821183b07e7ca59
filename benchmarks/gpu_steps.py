"""The rollouts of parts b and c: tokens drawn, lengths like a search agent's; and the operations that they need."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from gpu_common import Bench, Shape
from update_cases import Case, draw_sequences

from flows.settings.load import load_settings
from schemas.records.hindsight import HindsightAttempt, HindsightBlock
from schemas.records.question import Question
from schemas.records.rollout import Answer, Generation, Group, Observation, Rollout, Search, Turn
from schemas.settings.root import Settings
from sdsearch.model.attention import TreeLayout
from sdsearch.model.batching import TokenBatch, TokenSequence
from sdsearch.training.loss import ScoredRollout, TrainingRollout

QUERY, BLOCK = 12, 200  # tokens


def step_case(bench: Bench) -> Case:
    """Return groups of five with none to three searches, half the paper's lengths of a turn and a reply."""
    return (
        Case("", 2, (0, 1, 2, 3, 1), prompt=24, turn=16, documents=20)
        if bench.small
        else Case("", 4, (0, 1, 2, 3, 1), prompt=200, turn=128, documents=420)
    )


def settings_for(bench: Bench, **sections: dict[str, object]) -> Settings:
    """Return paper_3b's settings of the update with all terms of the loss, as small ones on request."""
    paper = load_settings("paper_3b")
    small = {"max_tokens_per_microbatch": 256, "head_chunk": 64} if bench.small else {}
    update = {**paper.update.model_dump(), "gradient_parts_every": 0, **small, **sections.pop("update", {})}
    distillation = {**paper.distillation.model_dump(), "warmup_iterations": 0, "top_k": 8 if bench.small else 50}
    model = {"path": "drawn", "dtype": "bfloat16", **sections.pop("model", {})}
    return Settings(model=model, update=update, distillation=distillation, grpo=paper.grpo.model_dump(), **sections)


def draw_groups(case: Case, vocabulary: int) -> list[Group]:
    """Return the case's groups as records, whose turns end with a query of `QUERY` tokens; the last turn answers."""
    draw = random.Random(0)
    question = Question(id="drawn", dataset="drawn", split="train", question="drawn?", golden_answers=("drawn",))
    groups = []
    for number in range(case.num_groups):
        prompt = tuple(draw.choices(range(vocabulary), k=case.prompt))
        rollouts = []
        for index, searches in enumerate(case.searches):
            turns = [_turn(draw, case, vocabulary, is_last=place == searches) for place in range(searches + 1)]
            rollouts.append(Rollout(id=f"{number}/{index}", group_id=str(number), index=index, turns=tuple(turns)))
        groups.append(
            Group(
                id=str(number),
                iteration=1,
                policy_version=0,
                question=question,
                prompt_token_ids=prompt,
                block_offset=len(prompt) // 2,
                rollouts=tuple(rollouts),
            )
        )
    return groups


def _turn(draw: random.Random, case: Case, vocabulary: int, *, is_last: bool) -> Turn:
    generation = Generation(
        token_ids=tuple(draw.choices(range(vocabulary), k=case.turn)),
        sampled_logprobs=(-1.0,) * case.turn,
        text="drawn",
        stop_reason="answer_closed" if is_last else "search_closed",
        query_positions=() if is_last else tuple(range(case.turn - QUERY - 1, case.turn - 1)),
    )
    if is_last:
        return Turn(generation=generation, action=Answer(answer="drawn"), observation=None)
    documents = tuple(draw.choices(range(vocabulary), k=case.documents))
    observation = Observation(kind="documents", token_ids=documents, text="drawn", hits=(), num_tokens_cut=0)
    return Turn(generation=generation, action=Search(query="drawn"), observation=observation)


def draw_blocks(groups: Sequence[Group], vocabulary: int, length: int) -> list[HindsightBlock]:
    """Return a block of drawn tokens for each group."""
    draw = random.Random(1)
    attempt = HindsightAttempt(rollout_index=0, label="CORRECT", contents=("drawn",))
    return [
        HindsightBlock(
            group_id=group.id,
            focal_rollout=None,
            focal_turn=None,
            attempts=(attempt,),
            num_dropped_attempts=0,
            homogeneous=False,
            text="drawn",
            token_ids=tuple(draw.choices(range(vocabulary), k=length)),
        )
        for group in groups
    ]


def drawn_rollouts(case: Case, vocabulary: int) -> list[ScoredRollout]:
    """Return the case's rollouts with drawn log-probabilities and advantages; nothing is distilled."""
    generator = torch.Generator().manual_seed(2)
    nothing = (torch.zeros(0, 1, dtype=torch.long), torch.zeros(0, 1))
    scored = []
    sequences = [sequence for group in draw_sequences(case, vocabulary) for sequence in group]
    for place, sequence in enumerate(sequences):
        sampled, reference = -12 + 0.1 * torch.randn(2, len(sequence.reads), generator=generator)
        advantage = float(torch.randn(1, generator=generator))
        rollout = TrainingRollout(str(place), sequence, tuple(sampled.tolist()), advantage, (), *nothing)
        scored.append(ScoredRollout(rollout, sampled, None, reference))
    return scored


def useful_tokens(sequences: Sequence[TokenSequence]) -> int:
    """Tokens of every rollout by itself, prompt included, up to its last sampled one."""
    return sum(sequence.num_tokens for sequence in sequences)


def step_flops(shape: Shape, sequences: Sequence[TokenSequence]) -> float:
    """Return the fewest operations of a gradient: each context once, forward and twice that backward.

    Two a weight and token in the layers, the same in the head at the read positions alone, and four a visible pair,
    head width and head in attention; nothing that is computed again counts.
    """
    batch = TokenBatch.of(sequences, torch.device("cpu"))
    kv = shape.hidden // shape.heads * shape.kv_heads
    layer = 2 * shape.hidden * (shape.hidden + kv) + 3 * shape.hidden * shape.intermediate
    layers = 2 * layer * shape.layers * len(batch.input_ids_T)
    head = 2 * shape.hidden * shape.vocabulary * len(batch.targets_N)
    return 3.0 * (layers + head + 4 * shape.hidden * shape.layers * visible_pairs(batch.layout))


def visible_pairs(layout: TreeLayout) -> int:
    """Return how many (token, token that it sees) pairs a row of trees has."""
    pairs = 0
    for tree in layout.trees:
        pairs += tree.num_context * (tree.num_context + 1) // 2
        pairs += sum(length * tree.num_context + length * (length + 1) // 2 for length in tree.branches)
    return pairs
