"""What a person sees of an answer: its text as it is written, coloured as `sdsearch show` does; or a line a step."""

from __future__ import annotations

import re
import sys
from typing import Final

from rich.console import Console

from flows.console.terminal import ascii_json, format_seconds, print_line, printable, takes_any_text
from flows.inspect.colours import DOCUMENTS, NOTICE, STYLES
from flows.inspect.web.spans import pieces_of
from schemas.records.asking import AskStep, BlockStep, EndStep
from schemas.records.rollout import Turn
from sdsearch.protocol.tokens import decode
from sdsearch.sampling.rollouts import RolloutLoop

# The end of a text that the next token may change: a character of several tokens, or a tag that is half written.
_UNSTABLE: Final = re.compile(r"(\ufffd+|<[^<>]{0,20})$")


class TextAudience:
    """Writes a rollout as the policy and the environment write it, token by token."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._token_ids: list[int] = []
        self._num_shown = 0
        self._in_line = False

    def token(self, loop: RolloutLoop, token_id: int) -> None:
        """Write what the token adds to the turn."""
        self._token_ids.append(token_id)
        text = decode(loop.tokenizer, self._token_ids)
        self._write_turn(_UNSTABLE.sub("", text))

    def turn(self, turn: Turn) -> None:
        """Write the rest of the turn, and the reply."""
        self._write_turn(turn.generation.text)
        self._token_ids, self._num_shown = [], 0
        if turn.observation is not None:
            self._write(turn.observation.text, NOTICE if turn.observation.kind == "notice" else DOCUMENTS)

    def step(self, step: AskStep) -> None:
        """Write the block before the answer, and a line at the end; the steps between are written already."""
        if isinstance(step, BlockStep):
            self._write(
                f"hindsight block of run {step.run}, iteration {step.iteration}:\n{step.text.rstrip()}\n\n", "dim"
            )
        if isinstance(step, EndStep):
            self.break_line()
            print_line(self._console, f"\n{_ending(step)}")

    def break_line(self) -> None:
        """Begin a new line where one is half written."""
        if self._in_line:
            self._write("\n", "")
        self._token_ids, self._num_shown = [], 0

    def _write_turn(self, text: str) -> None:
        """Write what of the turn's text is not written yet, each part in its colour."""
        at = 0
        for piece in pieces_of(text):
            new = piece.text[max(self._num_shown - at, 0) :]
            at += len(piece.text)
            if new:
                self._write(new, STYLES[piece.kind])
        self._num_shown = max(self._num_shown, at)

    def _write(self, text: str, style: str) -> None:
        self._console.out(printable(text), style=style or None, highlight=False, end="")
        self._in_line = not text.endswith("\n")


class JsonAudience:
    """Writes each step as a line of JSON."""

    def token(self, loop: RolloutLoop, token_id: int) -> None:
        """Write nothing: a line is a whole step."""

    def turn(self, turn: Turn) -> None:
        """Write nothing: the turn's steps follow."""

    def step(self, step: AskStep) -> None:
        """Write a line."""
        line = step.model_dump_json()
        print(line if takes_any_text(sys.stdout) else ascii_json(line), flush=True)

    def break_line(self) -> None:
        """Do nothing: all lines are whole."""


def _ending(step: EndStep) -> str:
    pace = step.num_completion_tokens / step.seconds if step.seconds else 0.0
    searches = f"{len(step.queries)} search{'' if len(step.queries) == 1 else 'es'}"
    answer = f"answer: {step.answer}" if step.answer is not None else f"no answer (the last turn: {step.stop_reason})"
    return (
        f"{answer}\n{searches}, {step.num_completion_tokens} tokens in {format_seconds(step.seconds)} "
        f"({pace:.0f} tokens/s)"
    )
