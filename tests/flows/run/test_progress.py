"""What a run shows while it works and at its end."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from flows.console.terminal import format_seconds, format_value, printable
from flows.run.progress import RichReporter, before_and_after
from flows.settings.load import load_settings
from schemas.records.evaluation import EvaluationMode, EvaluationReport
from tests.support.records import make_evaluation


def evaluation(iteration: int, mode: EvaluationMode, em: float) -> EvaluationReport:
    report, _ = make_evaluation()
    return report.model_copy(update={"iteration": iteration, "mode": mode, "em": em})


def told(first_iteration: int = 1) -> list[str]:
    """Return the lines of a run of two iterations where output is no terminal."""
    console = Console(file=io.StringIO(), width=160)
    settings = load_settings("tiny", ["iterations=2", "model.path='[red]x'"])
    with RichReporter(Path("/some/where/sdsearch.duckdb"), console) as reporter:
        reporter.run_started("r1", settings, first_iteration)
        reporter.evaluated(evaluation(0, "greedy", 0.25))
        for iteration in range(first_iteration, 3):
            reporter.iteration_done(iteration, {"reward_mean": 0.125 * iteration, "em": 0.5, "unknown": 7.0})
        reporter.evaluated(evaluation(2, "greedy", 0.75))
        reporter.run_done("r1")
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_one_plain_line_an_iteration() -> None:
    lines = [line for line in told() if line.startswith("iteration ")]
    assert len(lines) == 2
    assert lines[0].startswith("iteration 1/2  reward 0.125  EM 0.500  ")
    assert lines[1].startswith("iteration 2/2  reward 0.250  EM 0.500  ")
    assert lines[1].endswith("about 0.0 s left")


def test_a_warning_is_a_line_of_its_own_and_no_markup() -> None:
    console = Console(file=io.StringIO(), width=160)
    RichReporter(None, console).warned("it wrote '[red]x'")
    assert console.file.getvalue() == "warning: it wrote '[red]x'\n"  # type: ignore[attr-defined]


def test_a_resumed_run_says_where_it_begins() -> None:
    lines = told(first_iteration=2)
    assert lines[0] == "run r1: 2 iterations, from iteration 2, model [red]x"
    assert sum(line.startswith("iteration ") for line in lines) == 1


def test_the_end_says_before_after_and_what_to_try() -> None:
    lines = told()
    em = next(line.split() for line in lines if "EM, greedy" in line)
    assert em[-3:] == ["0.250", "0.750", "+0.500"]
    assert "database: /some/where/sdsearch.duckdb" in lines
    assert [line.split()[:2] for line in lines[-3:]] == [["sdsearch", "show"], ["sdsearch", "sql"], ["sdsearch", "sql"]]


def test_before_and_after_take_the_first_and_the_last_of_each_mode() -> None:
    reports = [evaluation(i, "greedy", em) for i, em in ((4, 0.9), (0, 0.1), (2, 0.5))]
    console = Console(file=io.StringIO(), width=160)
    console.print(before_and_after([*reports, evaluation(0, "sampled", 0.2)]))
    rows = [line.split() for line in console.file.getvalue().splitlines() if " EM," in line]  # type: ignore[attr-defined]
    assert [row[-3:] for row in rows] == [["0.100", "0.900", "+0.800"], ["0.200", "0.200", "+0.000"]]


def test_before_and_after_tell_the_sets_apart() -> None:
    further = {"dataset": "nq", "split": "test", "further": True}
    reports = [evaluation(0, "greedy", 0.1).model_copy(update=further), evaluation(0, "greedy", 0.2)]
    reports += [evaluation(2, "greedy", 0.3).model_copy(update=further), evaluation(4, "greedy", 0.6)]
    console = Console(file=io.StringIO(), width=160)
    console.print(before_and_after(reports))
    rows = [line.split() for line in console.file.getvalue().splitlines() if " EM," in line]  # type: ignore[attr-defined]
    assert [(row[0], row[-1]) for row in rows] == [("dev", "+0.400"), ("nq", "+0.200")]


def test_an_error_gives_the_terminal_back() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)

    def fail_in_between() -> None:
        with RichReporter(Path("x"), console) as reporter:
            reporter.run_started("r1", load_settings("tiny"), 1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_in_between()
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert hidden in written
    assert written.rindex(shown) > written.rindex(hidden)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain [b]text[/b]", "plain [b]text[/b]"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\r\nb\tc", "a\\r\nb\tc"),
        ("\x9b2J", "\\x9b2J"),
        ("\u202eabc\u2028", "\\u202eabc\\u2028"),
        ("Łódź 東京", "Łódź 東京"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "-"), (0.25, "0.25"), (2.0, "2"), (100.0, "100"), (1.2e-5, "1.2e-05"), (7, "7")]
)
def test_format_value(value: object, shown: str) -> None:
    assert format_value(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(4.21, "4.2 s"), (190, "3 min 10 s"), (7500, "2 h 5 min"), (59.97, "1 min 0 s")]
)
def test_format_seconds(seconds: float, shown: str) -> None:
    assert format_seconds(seconds) == shown
