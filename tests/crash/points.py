"""Where a run is killed: the points of the matrix, drawn from the trace of an uninterrupted run."""

from __future__ import annotations

import random
import re
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from schemas.records.ledger import STAGES
from tests.crash.events import Event, Strike


@dataclass(frozen=True)
class Point:
    """A kind of moment: the events that match, and whether the kill follows the event by a random delay.

    `until`: the delay is at most the time from the event to the next one that matches this. `eager`: the events are
    there only when rows enter the database after each stage.
    """

    label: str
    pattern: str
    until: str = ""
    halve: bool = False
    fresh_index: bool = False
    signal: int = signal.SIGKILL
    eager: bool = False


@dataclass(frozen=True)
class Kill:
    """One kill of one process of a case; `at` is its place in the uninterrupted run's trace."""

    label: str
    strike: Strike
    at: int = 0
    fresh_index: bool = False
    eager: bool = False


_OF_STAGES = [
    point
    for stage in STAGES
    for point in (
        Point(f"before {stage}", rf"{stage}@\d+ begins"),
        Point(f"inside {stage}, any moment", rf"{stage}@\d+ works", until=rf"{stage}@\d+ worked"),
        Point(f"after {stage}", rf"{stage}@\d+ is done"),
    )
]
POINTS = [
    *_OF_STAGES,
    Point("a file is half written", r".* sync artifacts/.*", halve=True),
    Point("between fsync and rename", r".* rename artifacts/.*"),
    Point("after a rename", r".* renamed artifacts/.*"),
    Point("between a stage's rename and commit", r".* renamed artifacts/.*/stage\.json"),
    Point("between two partial files of the rollouts", r"sample@\d+ (?:sync|renamed) artifacts/.*/partial-.*"),
    Point("a checkpoint is half written", r"update@\d+ sync checkpoints/.*", halve=True),
    Point("a checkpoint is written, any moment", r"update@\d+ trains", until=r"update@\d+ worked"),
    Point("before a checkpoint's rename", r"update@\d+ rename checkpoints/.*"),
    Point("after a checkpoint's rename", r"update@\d+ renamed checkpoints/.*version=\d+"),
    Point("checkpoints are removed", r".* remove checkpoints/run=\w+/version=\d+~?/.*[^~]"),
    Point("inside a transaction", r".* sql (?:INSERT|DELETE|UPDATE|SELECT)", eager=True),
    Point("right before COMMIT", r".* sql COMMIT", eager=True),
    Point("during COMMIT", r".* sql COMMIT", until=r".* sql COMMIT done", eager=True),
    Point("right after COMMIT", r".* sql COMMIT done", eager=True),
    Point("SIGTERM at any moment", r".* (?:works|sync .*|rename .*)", until=r".*", signal=signal.SIGTERM),
    Point("Ctrl-C at any moment", r".* (?:works|sync .*|rename .*)", until=r".*", signal=signal.SIGINT),
    Point("the run is created", r"start (?:sync|rename|renamed|sql) ?.*(?:run\.json~?|[A-Z])"),
    Point("the index is written", r"start (?:sync|rename|renamed) (?:corpora|indexes)/.*", fresh_index=True),
]
REBUILD = Point("the database is made again", r".*", until=r".*")


def occurs(point: Point, trace: Sequence[Event]) -> bool:
    """Return whether a moment of a point is in the trace."""
    return any(re.fullmatch(point.pattern, event.name) for event in trace)


def draw(point: Point, trace: Sequence[Event], random_: random.Random) -> Kill:
    """Draw one moment of a point; every event that matches is equally likely."""
    places = [place for place, event in enumerate(trace) if re.fullmatch(point.pattern, event.name)]
    assert places, f"no event of an uninterrupted run matches {point.label}: {point.pattern}"
    place = random_.choice(places)
    delay_s = random_.uniform(0.0, _length_s(point, trace, place)) if point.until else 0.0
    occurrence = Counter(event.name for event in trace[: place + 1])[trace[place].name]
    strike = Strike(trace[place].name, occurrence, delay_s, point.halve, point.signal)
    return Kill(point.label, strike, place, point.fresh_index, point.eager)


def draw_start(trace: Sequence[Event], random_: random.Random) -> Kill:
    """Draw a moment in which a resumed run starts up, loads what it needs and finds its place."""
    first_stage = next(event for event in trace if event.name.endswith(" begins"))
    return Kill("resume starts up, any moment", Strike("start", 1, random_.uniform(1e-3, first_stage.at_s)))


def _length_s(point: Point, trace: Sequence[Event], place: int) -> float:
    end = next((event for event in trace[place + 1 :] if re.fullmatch(point.until, event.name)), trace[-1])
    return end.at_s - trace[place].at_s
