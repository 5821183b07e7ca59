"""`sdsearch ask`: one question, or a prompt that goes on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from rich.console import Console

from flows.ask.plan import AskPlan, as_question
from flows.console.errors import PEOPLES_ERRORS
from flows.console.interrupts import interruptible
from flows.console.terminal import print_line
from storage.storage import Storage

if TYPE_CHECKING:
    from flows.ask.work import Agent, Audience

_PROMPT = "question: "
_END = ("", "exit", "quit")
_EXIT_USER_ERROR = 2


def talk(
    plan: AskPlan, storage: Storage, question: str | None, hindsight: str | None, console: Console, *, as_json: bool
) -> None:
    """Ask the one question; without one, every question that is typed, or that is a line of standard input.

    Where questions go on, the error of one is told and the next one is asked; a command whose questions come from a
    file or a pipe then exits with 2 at its end. Ctrl-C ends the answer under way and the command, with 130.
    """
    if question is not None:
        as_question(question)  # Before anything is loaded.
    notes = Console(stderr=True)
    with interruptible(notes, "interrupted"), ExitStack() as stack:
        with notes.status("loading the libraries and the policy"):
            from flows.ask.show import JsonAudience, TextAudience
            from flows.ask.work import open_agent

            audience = JsonAudience() if as_json else TextAudience(console)
            agent = stack.enter_context(open_agent(plan, storage, hindsight, audience))
        if not as_json:
            chosen = ", the newest finished run; another one with --run NAME" if plan.is_chosen else ""
            print_line(console, f"{plan.title(agent.version)}{chosen}")
        if question is not None:
            _answer(agent, question, audience)
        elif not _converse(agent, audience, notes, as_json=as_json) and not sys.stdin.isatty():
            raise SystemExit(_EXIT_USER_ERROR)


def _converse(agent: Agent, audience: Audience, notes: Console, *, as_json: bool) -> bool:
    """Answer one question after another; False when one could not be answered."""
    all_answered = True
    for question in _questions(is_prompted=sys.stdin.isatty() and sys.stdout.isatty() and not as_json):
        try:
            _answer(agent, question, audience)
        except PEOPLES_ERRORS as error:
            all_answered = False
            print_line(notes, f"error: {error}")
    return all_answered


def _answer(agent: Agent, question: str, audience: Audience) -> None:
    try:
        agent.ask(question)
    finally:
        audience.break_line()


def _questions(*, is_prompted: bool) -> Iterator[str]:
    """Yield what a person types until Ctrl-D, an empty line, exit or quit; else the lines of standard input."""
    if not is_prompted:
        yield from (line for line in sys.stdin if line.strip())
        return
    while True:
        try:
            typed = input(f"\n{_PROMPT}").strip()
        except EOFError:
            print(flush=True)
            return
        except KeyboardInterrupt:
            print(flush=True)  # The terminal has shown ^C.
            raise
        if typed.lower() in _END:
            return
        yield typed
