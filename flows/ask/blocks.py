"""The hindsight block of a question in a run, for a policy that is asked as a teacher is."""

from __future__ import annotations

from typing import Final, NamedTuple

from flows.console.errors import UserError
from schemas.commands import command
from schemas.records.asking import BlockStep
from sdsearch.protocol.tokens import encode_foreign
from sdsearch.sampling.rollouts import RolloutLoop
from storage.storage import Storage

# A block of the whole group comes before one of a single rollout or turn (the paper's ablations).
_BLOCK: Final = """
    SELECT g.iteration, b.text, b.focal_turn
    FROM groups AS g
    JOIN questions AS q ON q.run = g.run AND q.question_key = g.question_key
    LEFT JOIN hindsight_blocks AS b ON b.run = g.run AND b.iteration = g.iteration AND b.group_id = g.group_id
    WHERE g.run = $run AND lower(trim(q.question)) = lower($question)
    ORDER BY b.iteration DESC NULLS LAST, b.block_index LIMIT 1
"""
_SAMPLED: Final = "SELECT DISTINCT question FROM v_groups WHERE run = $run"


class ShownBlock(NamedTuple):
    """A block, and its tokens as the policy reads them."""

    step: BlockStep
    token_ids: tuple[int, ...]


def find_block(storage: Storage, run: str, question: str, loop: RolloutLoop) -> ShownBlock:
    """Return the block of the newest iteration of `run` that sampled the question.

    The caller has looked that the run exists. Raises UserError when the run did not sample the question, built no
    block of it, or builds blocks of single turns, which no new rollout has.
    """
    answer = storage.database.answer(_BLOCK, {"run": run, "question": question})
    if not answer.rows:
        known = command("sql", _SAMPLED, "--run", run, workspace=storage.workspace.root)
        raise UserError(f"run '{run}' has sampled no question {question!r}; those that it has: {known}")
    (row,) = answer.records()
    if row["text"] is None:
        raise UserError(
            f"run '{run}' has built no hindsight block of {question!r} (distillation.enabled is false, or the stage "
            "hindsight is not done yet); leave --hindsight out"
        )
    if row["focal_turn"] is not None:
        raise UserError(
            f"run '{run}' shows its teacher another block at each turn (hindsight.masking is current_documents), which "
            "no new rollout has; name a run that masks otherwise, or leave --hindsight out"
        )
    tokens = tuple(encode_foreign(loop.tokenizer, row["text"], loop.protocol.tags))
    step = BlockStep(run=run, iteration=row["iteration"], text=row["text"], num_tokens=len(tokens))
    return ShownBlock(step, tokens)
