"""The port of trackers: what a run hands them, and what a plugin of one's own derives from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from schemas.base import Record, Section
from schemas.errors import UserError

Ended = Literal["done", "failed", "interrupted"]


class TrackedRun(Record):
    """A run as trackers are told of it."""

    name: str
    kind: str  # Such as 'a training' or 'a fork of run first'.
    settings: dict[str, Any]  # All settings as JSON values; passwords in URLs are left out.
    folder: Path  # Where a tracker writes that has no folder of its own; it exists.
    tracker_id: str | None = None  # What `open` returned when the run was tracked before.
    last_step: int = -1  # The last step that the tracker had taken by then.


class Opened(NamedTuple):
    """A tracker's run that is open: its id there, and its last step; None where the tracker does not know it."""

    id: str
    last_step: int | None = None


class Message(Record):
    """A part of a rollout; the environment's replies have the role tool."""

    role: Literal["user", "assistant", "tool"]
    content: str


class Trace(Record):
    """A rollout as a conversation, with what is known of it: reward, advantage, outcome, label, golden answers, …"""

    rollout_id: str
    messages: tuple[Message, ...]
    facts: dict[str, float | str | None]


class Sink(Section):
    """A tracker of one's own: a plugin derives from this class; its fields are its settings, `tracking.options`.

    All methods but `check` are called by a thread of the tracker's own, one after another. Whatever they raise ends the
    tracking by this sink, and nothing else; a call that does not return holds up nobody.
    """

    def check(self) -> None:
        """Raise UserError for what the tracker lacks, such as a package; asked before anything is trained."""

    @abstractmethod
    def open(self, run: TrackedRun) -> Opened:
        """Begin the run in the tracker, or go on with `run.tracker_id`."""

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the figures of an iteration, named as the columns of `v_iterations` and `evaluations`; the step is done.

        Steps ascend, and none comes twice, unless the process was killed while the tracker took it.
        """

    def traces(self, step: int, traces: Sequence[Trace]) -> None:
        """Take some rollouts of an iteration, before its figures; a tracker that cannot show them takes none."""

    def close(self, ended: Ended) -> None:
        """End the run in the tracker."""


def need_package(module: str, extra: str) -> None:
    """Raise UserError, which names what to install, where a tracker's package is missing; nothing is imported."""
    if find_spec(module) is None:
        raise UserError(
            f"tracking.sinks '{extra}': the package {module} is not installed; install it with: "
            f"pip install 'sdsearch[{extra}]' (in a clone: pip install -e '.[{extra}]'), or leave the tracker out"
        )
