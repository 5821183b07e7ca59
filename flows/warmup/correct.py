"""Demonstrations from CORRECT rollouts: those of a run of the workspace, or of a folder that `export` wrote."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import ValidationError

from schemas.base import hash_json
from schemas.commands import command
from schemas.errors import UserError
from schemas.paths import local_path
from schemas.records.conversation import Conversation, SaidTurn
from schemas.records.hindsight import HindsightAttempt, Label
from schemas.records.ledger import StageKey
from schemas.records.passage import SearchHit
from schemas.records.rollout import Answer, Group, Search
from schemas.settings.warmup import WarmupSettings
from sdsearch.credit.block_text import neutralise
from sdsearch.training.supervised import Layout
from storage.database.stage_rows import file_of
from storage.storage import Storage

CONVERSATIONS: Final = "conversations.jsonl"
"""The file of an export that has its rollouts."""

_OUTCOMES: Final = "SELECT rollout_id, outcome FROM rollouts WHERE run = $run"
_THOUGHTS: Final = {"search": "I search for what I need.", "answer": "I can answer."}


class Told(NamedTuple):
    """A scored rollout: its question, what came of it, and each turn as it was written and as it was meant."""

    question: str
    outcome: Label
    turns: tuple[tuple[str, SaidTurn], ...]
    place: int
    """Among its siblings."""

    @property
    def queries(self) -> tuple[str, ...]:
        """What was searched for, in order."""
        return tuple(turn.said for _, turn in self.turns if turn.kind == "search" and turn.replied)


class Shown(NamedTuple):
    """A CORRECT rollout in the words of a protocol: the question, its turns, and its siblings' attempts."""

    question: str
    turns: tuple[tuple[str, Sequence[SearchHit] | None], ...]
    attempts: tuple[HindsightAttempt, ...]


def correct_rollouts(settings: WarmupSettings, storage: Storage, layout: Layout) -> list[Shown]:
    """Return the CORRECT rollouts without an ill-formed turn that `warmup.demonstrations` names.

    Raises UserError for a folder that is no export, and where there are none; RunNotFoundError for a run that is none.
    """
    named = settings.demonstrations
    groups = list(_of_export(local_path(named)) if settings.shows_export else _of_run(storage, named))
    shown = [one for group in groups for one in _shown(group, layout)]
    if not shown:
        source = f"export '{named}'" if settings.shows_export else f"run '{named}'"
        raise UserError(
            f"warmup.demonstrations: {source} has no well-formed CORRECT rollout ({sum(map(len, groups))} are scored); "
            "name another run or export, or 'world'"
        )
    return shown


def fingerprint(shown: Iterable[Shown]) -> str:
    """Return a sha256 that tells whether demonstrations are the same."""
    told = (
        {
            "question": one.question,
            "turns": [(text, [hit.passage.model_dump() for hit in hits or ()]) for text, hits in one.turns],
            "attempts": [attempt.model_dump() for attempt in one.attempts],
        }
        for one in shown
    )
    return hash_json(list(told))


def _of_run(storage: Storage, name: str) -> Iterator[list[Told]]:
    """Yield the scored rollouts of a run, group by group."""
    run = storage.find_run(name).run
    rows = storage.database.query(_OUTCOMES, {"run": run}).to_pylist()
    outcomes: dict[str, Label] = {row["rollout_id"]: row["outcome"] for row in rows}
    for iteration in range(1, storage.ledger.get_run(run).iterations_done + 1):
        sampled = storage.ledger.done(StageKey(run=run, iteration=iteration, stage="sample"))
        for group in storage.artifacts.read_records(file_of(sampled, "groups"), Group) if sampled else ():
            yield [
                Told(
                    group.question.question,
                    outcomes[rollout.id],
                    tuple((turn.generation.text, SaidTurn.of(turn)) for turn in rollout.turns),
                    place,
                )
                for place, rollout in enumerate(group.rollouts)
                if rollout.id in outcomes
            ]


def _of_export(folder: Path) -> Iterator[list[Told]]:
    """Yield the rollouts of an export, group by group."""
    for _, siblings in groupby(_conversations(folder / CONVERSATIONS), lambda one: (one.run, one.group_id)):
        yield [_told(one, place) for place, one in enumerate(siblings)]


def _conversations(path: Path) -> Iterator[Conversation]:
    again = f"write it with: {command('export', 'RUN', '--rollouts', '--to', str(path.parent))}"
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield Conversation.model_validate_json(line)
                except ValidationError as error:
                    first = error.errors()[0]
                    where = ".".join(map(str, first["loc"])) or "line"
                    raise UserError(
                        f"warmup.demonstrations: line {number} of {path} is no rollout of this version's export "
                        f"({where}: {first['msg']}); {again}"
                    ) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UserError(f"warmup.demonstrations: {path} cannot be read ({reason}); {again}") from error


def _told(one: Conversation, place: int) -> Told:
    written = [message.content for message in one.messages if message.role == "assistant"]
    if len(written) != len(one.turns) or not one.messages or one.messages[0].role != "user":
        raise UserError(
            f"warmup.demonstrations: rollout '{one.rollout_id}' of the export has {len(written)} messages of the "
            f"assistant and {len(one.turns)} turns, expected as many, after the user's question; export it again"
        )
    return Told(one.messages[0].content, one.outcome, tuple(zip(written, one.turns, strict=True)), place)


def _shown(group: Sequence[Told], layout: Layout) -> Iterator[Shown]:
    """Yield the group's CORRECT rollouts without an ill-formed turn."""
    attempts = tuple(
        HindsightAttempt(
            rollout_index=told.place,
            label=told.outcome,
            contents=tuple(neutralise(query, layout.protocol.tags) for query in told.queries),
        )
        for told in group
    )
    for told in group:
        if told.outcome == "CORRECT" and (turns := _turns(told, layout)) is not None:
            yield Shown(told.question, turns, attempts)


def _turns(told: Told, layout: Layout) -> tuple[tuple[str, Sequence[SearchHit] | None], ...] | None:
    """Return the turns in the protocol's words, each with what it found; None with an ill-formed one."""
    turns: list[tuple[str, Sequence[SearchHit] | None]] = []
    for text, turn in told.turns:
        if turn.kind == "malformed":
            return None
        action = Search(query=turn.said) if turn.kind == "search" else Answer(answer=turn.said)
        hits = [SearchHit(passage=passage, score=1.0) for passage in turn.passages]
        turns.append((_written(text, action, layout), hits if turn.replied else None))
    return tuple(turns)


def _written(text: str, action: Search | Answer, layout: Layout) -> str:
    """Return a turn as it was sampled where the protocol reads it so, else the action in the protocol's words."""
    protocol, tokenizer = layout.protocol, layout.tokenizer
    if protocol.parse(text) == action:
        end = protocol.turn_end(tokenizer)
        return text if not end or text.endswith(end) else text + end
    return protocol.write(tokenizer, action, _THOUGHTS[action.kind]) + protocol.turn_end(tokenizer)
