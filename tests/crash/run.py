"""The crash matrix: `python -m tests.crash.run --minutes M --seed S` kills runs at drawn moments and prints a table.

Exit code 1 when anything was lost or differs. Nothing is written but below a temporary folder, of which the cases
that went wrong are kept.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.crash.forkserver import ForkServer
from tests.crash.harness import Case, Outcome, Reference, play, play_reference, trace_rebuild
from tests.crash.points import POINTS, REBUILD, draw, draw_start, occurs

ITERATIONS = 3
FULL_ROUNDS = 2
_CHAIN_KILLS = 4
_CHAINS_A_ROUND = 3
_REBUILDS_A_ROUND = 3


def draw_round(reference: Reference, random_: random.Random) -> list[Case]:
    """Return cases in random order that kill once at every point, and several times in some runs."""
    trace = reference.trace
    # What ranks do is in no trace: of a run with several the points remain that its own process passes.
    points = POINTS if reference.ranks == 1 else [point for point in POINTS if occurs(point, trace)]
    cases = [Case(kill.label, (kill,)) for kill in (draw(point, trace, random_) for point in points)]
    for _ in range(_CHAINS_A_ROUND):
        chain = [draw(point, trace, random_) for point in random_.sample(points, _CHAIN_KILLS)]
        chain.sort(key=lambda kill: kill.at)
        cases.append(Case("several in one run", (*chain[:2], draw_start(trace, random_), *chain[2:])))
    twice = draw(random_.choice(points), trace, random_)
    cases.append(Case("the resumed run dies at the same place", (twice, twice, draw_start(trace, random_))))
    for _ in range(_REBUILDS_A_ROUND):
        cases.append(Case(REBUILD.label, (draw(REBUILD, reference.rebuild_trace, random_),), of_rebuild=True))
    random_.shuffle(cases)
    return cases


class Matrix:
    """Plays cases on several fork servers side by side and keeps what came of them."""

    def __init__(self, folder: Path, minutes: float | None, seed: int, jobs: int, only: str, ranks: int = 1) -> None:
        self.outcomes: list[Outcome] = []
        self._folder = folder
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self._seed = seed
        self._jobs = jobs
        self._ranks = ranks
        self._only = re.compile(only)
        self._lock = threading.Lock()

    def play(self) -> None:
        """Play the reference, then cases until the rounds or the time are over."""
        with ForkServer() as server:
            reference = play_reference(server, self._folder / "reference", ITERATIONS, self._ranks)
            self._reference = trace_rebuild(server, reference)
        self._cases = enumerate(self._draw())
        with ThreadPoolExecutor(self._jobs) as pool:
            for worker in [pool.submit(self._work) for _ in range(self._jobs)]:
                worker.result()

    def _draw(self) -> Iterator[Case]:
        for number in itertools.count() if self._deadline else range(FULL_ROUNDS):
            round_ = draw_round(self._reference, random.Random(f"{self._seed} {number}"))
            yield from (case for case in round_ if self._only.search(case.name))

    def _work(self) -> None:
        with ForkServer() as server:
            while (numbered := self._next()) is not None:
                number, case = numbered
                folder = self._folder / f"case-{number:03d}"
                outcome = play(case, server, folder, self._reference, ITERATIONS)
                with self._lock:
                    self.outcomes.append(outcome)
                    _tell(number, outcome)
                if not outcome.went_wrong:
                    shutil.rmtree(folder)

    def _next(self) -> tuple[int, Case] | None:
        with self._lock:
            late = self._deadline is not None and time.monotonic() > self._deadline
            return None if late else next(self._cases, None)


def _tell(number: int, outcome: Outcome) -> None:
    mark = "WRONG" if outcome.went_wrong else "ok"
    print(
        f"{number:4} {mark:5} {len(outcome.struck)} kills {outcome.num_resumes} resumes  {outcome.case.name}",
        flush=True,
    )
    if outcome.went_wrong:
        for kill in outcome.case.kills:
            print(f"       {kill.strike}")
        for line in [*outcome.lost, *outcome.differing][:8]:
            print(f"       {line}", flush=True)


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the kills by the point where they struck, with what was lost and what differed of those cases.

    A case with several kills counts as lost or differing at its own name, since no single kill can be blamed.
    """
    kills = Counter(label for outcome in outcomes for label in outcome.struck)
    cases = Counter(outcome.case.name for outcome in outcomes)
    resumes = Counter(dict.fromkeys(cases, 0))
    lost, differing = Counter[str](), Counter[str]()
    for outcome in outcomes:
        name = outcome.case.name
        resumes[name] += outcome.num_resumes
        lost[name] += bool(outcome.lost)
        differing[name] += bool(outcome.differing)
    lines = [f"{'kill point':42} {'kills':>6} {'runs':>6} {'resumes':>8} {'lost':>6} {'differing':>10}"]
    columns = (kills, cases, resumes, lost, differing)
    rows = [(name, *(column[name] for column in columns)) for name in sorted({*kills, *cases})]
    rows.append(("total", *(column.total() for column in columns)))
    lines += [f"{name:42} {a:6} {b:6} {c:8} {d:6} {e:10}" for name, a, b, c, d, e in rows]
    return "\n".join(lines)


def main() -> int:
    """Play the matrix and print its table; 0 when nothing was lost and nothing differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, help=f"time for cases; {FULL_ROUNDS} full rounds when not given")
    parser.add_argument("--seed", type=int, help="seed of all draws; a new one when not given")
    parser.add_argument("--only", default="", help="regular expression that a case's name must contain")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--ranks", type=int, default=1, help="ranks of each run (distributed.ranks)")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix="sdsearch-crash-"))
    print(f"crash matrix, seed {seed}, files in {folder}", flush=True)
    started = time.monotonic()
    matrix = Matrix(folder, options.minutes, seed, options.jobs, options.only, options.ranks)
    matrix.play()
    print(f"\n{table(matrix.outcomes)}\nseed {seed}, {time.monotonic() - started:.0f} s")
    if any(outcome.went_wrong for outcome in matrix.outcomes):
        print(f"the folders of what went wrong are in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
