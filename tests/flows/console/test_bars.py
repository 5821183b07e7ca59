"""Bars at the foot of a terminal, and what is printed and logged above them."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from flows.console.bars import Bars, takes_bars
from flows.evaluation.show import EvaluationReporter
from flows.run.progress import RichReporter, RolloutProgress, SilentReporter
from flows.settings.load import load_settings
from schemas.records.ledger import StageKey
from tests.support.builders import make_groups, make_tokenizer
from tests.support.typing_in import Screen


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def lines_on(terminal: Terminal) -> list[str]:
    return Screen(200).fed(terminal.getvalue().replace("\n", "\r\n").encode()).lines


class Clock:
    """Seconds that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_pace_and_time_left() -> None:
    clock = Clock()
    bars = Bars(Console(file=Terminal(), width=200), clock)
    try:
        bars.open_whole("iteration", 5, 2)
        bars.begin_part("sample", "questions")
        clock.now += 2
        bars.move_part(1, 4, 3000)
        assert foot(bars)[1].endswith("1/4 questions about 6.0 s left 1,500 tokens/s")
        clock.now += 1
        assert "about 5.0 s left 1,500 tokens/s" in foot(bars)[1], "it counts down"
        bars.begin_part("teacher", "")
        assert foot(bars)[1].split()[-1] == "0/?", "nothing is left of the part before"
        clock.now += 7
        bars.move_whole(3, "reward 0.5 [red]x")
        assert foot(bars)[0].endswith("3/5  about 20.0 s left reward 0.5 [red]x")
        bars.end_part()
        assert len(foot(bars)) == 1
    finally:
        bars.close()


def foot(bars: Bars) -> list[str]:
    """Return the bars as they would be drawn now."""
    drawing = Console(file=io.StringIO(), width=200)
    drawing.print(bars._progress.get_renderable())
    return [line.rstrip() for line in drawing.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_what_was_found_done_tells_nothing_of_the_pace() -> None:
    clock = Clock()
    bars = Bars(Console(file=Terminal(), width=200), clock)
    try:
        bars.begin_part("evaluate", "answers")
        for found in (32, 64):
            bars.move_part(found, 128, 0)
        clock.now += 10
        bars.move_part(80, 128, 500)
        assert "about 30.0 s left" in foot(bars)[0]
    finally:
        bars.close()


class WithConsole(logging.Handler):
    """A handler that prints to a console of its own, as Prefect's."""

    def __init__(self, stream: Terminal) -> None:
        super().__init__()
        self.console = Console(file=stream, force_terminal=True)

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(self.format(record), soft_wrap=True)


@pytest.mark.parametrize("handler", [logging.StreamHandler, WithConsole])
def test_logs_stand_above_the_bars(handler: type[logging.Handler]) -> None:
    """Every line is whole, the bars are drawn once, and afterwards the handler writes where it did."""
    terminal = Terminal()
    log, own = logging.getLogger("tests.bars"), handler(terminal)  # type: ignore[call-arg]
    log.addHandler(own)
    log.propagate = False
    try:
        with RichReporter(None, Console(file=terminal, width=200)) as reporter:
            reporter.run_started("r1", load_settings("tiny", ["iterations=9"]), 1)
            for iteration in range(1, 10):
                reporter.stage_started(StageKey(run="r1", iteration=iteration, stage="sample"))
                log.warning("log line %d of 9", iteration)
                reporter.noted(f"note {iteration}")
                reporter.iteration_done(iteration, {"em": 0.5})
        log.warning("the end")
    finally:
        log.removeHandler(own)
    lines = lines_on(terminal)
    expected = [line for i in range(1, 10) for line in (f"log line {i} of 9", f"note: note {i}")]
    assert [line for line in lines if line.startswith(("log line", "note"))] == expected
    assert sum("━" in line for line in lines) <= 2, "the bars as they were left, no copies of them"
    assert lines[-1] == "the end"


def test_a_log_whose_stream_was_closed_is_left_alone() -> None:
    stream = Terminal()
    log, handler = logging.getLogger("tests.closed"), logging.StreamHandler(stream)
    log.addHandler(handler)
    stream.close()
    try:
        Bars(Console(file=Terminal(), width=200)).close()
    finally:
        log.removeHandler(handler)
    assert handler.stream is stream


def test_takes_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    assert takes_bars(Console(file=Terminal()))
    assert not takes_bars(Console(file=io.StringIO()))
    monkeypatch.setenv("TERM", "dumb")
    assert not takes_bars(Console(file=Terminal()))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not takes_bars(Console(file=Terminal()))


def test_an_evaluation_shows_its_answers() -> None:
    terminal = Terminal()
    reporter = EvaluationReporter(Console(file=terminal, width=200))
    reporter.stage_progress(32, 64)
    reporter.stage_pace(40, 64, 900)
    reporter.close()
    (line,) = [line for line in lines_on(terminal) if "━" in line]
    assert line.startswith("evaluate ")
    assert " 40/64 answers " in line
    assert line.endswith(" tokens/s")


class Heard(SilentReporter):
    """Keeps what it is told of a stage."""

    def __init__(self) -> None:
        self.kept: list[tuple[int, int]] = []
        self.paces: list[tuple[int, int, int]] = []

    def stage_progress(self, done: int, total: int) -> None:
        self.kept.append((done, total))

    def stage_pace(self, done: int, total: int, num_tokens: int) -> None:
        self.paces.append((done, total, num_tokens))


def test_a_question_is_through_when_all_its_rollouts_are() -> None:
    groups, reporter = make_groups(make_tokenizer()), Heard()
    size = len(groups[0].rollouts)
    progress = RolloutProgress(reporter, 5, size)
    progress.kept(3)
    in_turns = [
        (rollout, place)
        for place in range(4)
        for group in groups
        for rollout in group.rollouts
        if len(rollout.turns) > place
    ]
    for rollout, place in in_turns:
        progress.turn_ended(rollout.id, rollout.turns[place], ends_rollout=place == len(rollout.turns) - 1)
    num_tokens = sum(len(rollout.completion_positions) for group in groups for rollout in group.rollouts)
    assert reporter.paces[-1] == (5, 5, num_tokens)
    assert [done for done, _, _ in reporter.paces] == [3] * (len(in_turns) - 2) + [4, 5]
    assert reporter.kept == [(3, 5)]
