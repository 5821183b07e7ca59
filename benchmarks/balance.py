"""How much of the ranks' time an optimiser step uses, by its cut into micro-batches: drawn search rollouts, in tokens.

`python -m benchmarks.balance`. A round takes as long as its longest micro-batch, and every rank waits for it. The
useful share is what one process would forward, over ranks times the length of all rounds.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import mean

from sdsearch.model.balance import balanced_rounds, num_forwarded, pass_length
from sdsearch.model.batching import TokenSequence, microbatches

GROUPS, SIBLINGS, BUDGET, STEPS = 51, 5, 16_384, 20


def drawn_step(seed: int) -> list[TokenSequence]:
    """Return about 256 rollouts: one to five turns of a query and a reply of about 500 tokens each, then an answer."""
    draw = random.Random(seed)
    rollouts = []
    for group in range(GROUPS):
        context = (group,) * draw.randint(150, 400)
        for _ in range(SIBLINGS):
            turns = sum(draw.randint(40, 250) + draw.randint(350, 520) for _ in range(draw.randint(0, 4)))
            length = turns + draw.randint(40, 400)
            rollouts.append(TokenSequence(context, (0,) * (length + 1), (length,)))
    return rollouts


def in_turn(rollouts: Sequence[TokenSequence], ranks: int) -> list[list[list[int]]]:
    """Return the micro-batches of one process, dealt to the ranks in turn."""
    batches = list(microbatches(rollouts, BUDGET))
    return [(batches[start : start + ranks] + [[]] * ranks)[:ranks] for start in range(0, len(batches), ranks)]


def main() -> None:
    """Print the mean and the worst useful share over the steps, for each number of ranks."""
    print(f"{GROUPS * SIBLINGS} rollouts a step, {BUDGET} tokens a micro-batch, {STEPS} steps")
    for ranks in (2, 4, 8, 16):
        shares: dict[str, list[float]] = {"dealt in turn": [], "balanced": []}
        for seed in range(STEPS):
            rollouts = drawn_step(seed)
            needed = sum(num_forwarded(rollouts, batch) for batch in microbatches(rollouts, BUDGET))
            rounds = {"dealt in turn": in_turn(rollouts, ranks), "balanced": balanced_rounds(rollouts, BUDGET, ranks)}
            for name, cut in rounds.items():
                shares[name].append(needed / (ranks * pass_length(rollouts, cut)))
        told = ", ".join(f"{name} {mean(values):.3f} (worst {min(values):.3f})" for name, values in shares.items())
        print(f"{ranks:2d} ranks: useful share {told}")


if __name__ == "__main__":
    main()
