"""How often the 95 % interval of a study covers the truth, against drawing the questions for each seed on its own.

`python benchmarks/paired_intervals.py [--cases 300]`. A difference at a seed and a question is 0.05 and three drawn
parts: of the seed, of the question (shared by all seeds, since all runs answer the same questions), and of the pair.
"""

from __future__ import annotations

import argparse

import numpy as np

from sdsearch.evaluation.intervals import Floats, Interval, paired_bootstrap

_TRUTH = 0.05
_NUM_QUESTIONS = 200
_NUM_RESAMPLES = 1000
# Standard deviations of the parts: of the seed, the question, the pair.
_SPREADS = ((0.0, 0.25, 0.4), (0.02, 0.25, 0.4), (0.02, 0.4, 0.3), (0.03, 0.0, 0.4))


def questions_for_each_seed(differences_SQ: Floats, seed: int) -> Interval:
    """Return the interval of the nested bootstrap: seeds are drawn, and for each drawn seed its own questions."""
    generator = np.random.default_rng(seed)
    num_seeds, num_questions = differences_SQ.shape
    means_R = np.zeros(_NUM_RESAMPLES)
    for drawn_R in generator.integers(num_seeds, size=(num_seeds, _NUM_RESAMPLES)):
        questions_RQ = generator.multinomial(num_questions, np.full(num_questions, 1 / num_questions), _NUM_RESAMPLES)
        means_R += (differences_SQ[drawn_R] * questions_RQ).sum(axis=1) / differences_SQ.size
    low, high = np.quantile(means_R, (0.025, 0.975))
    return Interval(float(differences_SQ.mean()), float(low), float(high))


def main() -> None:
    """Print one row a number of seeds and spreads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=300)
    cases = parser.parse_args().cases
    print("| seeds | of the seed | of the question | of the pair | covered | covered, questions for each seed |")
    print("|---|---|---|---|---|---|")
    for num_seeds in (2, 3, 5):
        for spreads in _SPREADS:
            both = [_covered(num_seeds, spreads, case) for case in range(cases)]
            shares = " | ".join(f"{share:.1%}" for share in np.mean(both, axis=0))
            print(f"| {num_seeds} | {' | '.join(map(str, spreads))} | {shares} |", flush=True)


def _covered(num_seeds: int, spreads: tuple[float, float, float], case: int) -> list[bool]:
    generator = np.random.default_rng((num_seeds, case))
    shapes = ((num_seeds, 1), (1, _NUM_QUESTIONS), (num_seeds, _NUM_QUESTIONS))
    parts = (generator.normal(0, spread, shape) for spread, shape in zip(spreads, shapes, strict=True))
    differences_SQ = _TRUTH + sum(parts, np.zeros(shapes[2]))
    intervals = (
        paired_bootstrap(differences_SQ, np.zeros_like(differences_SQ), seed=case, num_resamples=_NUM_RESAMPLES),
        questions_for_each_seed(differences_SQ, seed=case),
    )
    return [interval.low <= _TRUTH <= interval.high for interval in intervals]


if __name__ == "__main__":
    main()
