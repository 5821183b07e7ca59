"""`sdsearch evaluate --compare A B`: two evaluations side by side, where nothing but the policy differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from rich.console import Console

from flows.console.errors import UserError
from flows.console.terminal import make_table, print_line
from flows.run.stage_files import StageFiles
from schemas.base import nearest_name
from schemas.records.evaluation import HASH_CHARS, EvaluationAnswer, EvaluationConditions, EvaluationMode
from schemas.records.ledger import StageKey, StageRecord
from schemas.records.run_kind import EvaluationKind
from sdsearch.evaluation.intervals import Floats, Interval, bootstrap_mean
from storage.database.stage_rows import CONDITIONS, answers_file, has_file
from storage.storage import Storage

_METRICS: Final = {"em": "EM", "f1": "F1", "cover_em": "cover EM"}
_QUESTIONS: Final = "questions"
NAMES: Final = {
    "questions_sha256": _QUESTIONS,
    "index_hash": "index",
    "num_passages": "passages",
    "protocol": "protocol",
    "limits": "limits",
    "decoding": "decoding",
}
"""What people call the conditions that must be the same."""


class SetKey(NamedTuple):
    """What one evaluation answers: a data set's split, in a mode of decoding."""

    dataset: str
    split: str
    mode: EvaluationMode


class Side(NamedTuple):
    """One of the two: its name as it was asked for, and of each set the conditions and the answers by question."""

    name: str
    sets: Mapping[SetKey, tuple[EvaluationConditions, Mapping[str, EvaluationAnswer]]]


class Compared(NamedTuple):
    """A metric of one set, or the mean of several: both sides, and the difference with its interval."""

    where: str
    split: str
    mode: str
    metric: str
    num_questions: int
    first: float
    second: float
    difference: Interval


def compare_and_print(first: str, second: str, despite: str | None, storage: Storage, console: Console) -> None:
    """Print both evaluations with the paired differences; UserError for two that cannot be compared."""
    sides = read_side(storage, first), read_side(storage, second)
    keys = shared_sets(*sides)
    allowed = _allowed(despite)
    different = {key: differences(sides[0].sets[key][0], sides[1].sets[key][0]) for key in keys}
    check_conditions(sides, different, allowed)
    rows = [
        (
            each.where,
            each.split,
            each.mode,
            each.metric,
            each.num_questions,
            f"{each.first:.3f}",
            f"{each.second:.3f}",
            f"{each.difference.mean:+.3f}",
            f"{each.difference.low:+.3f} … {each.difference.high:+.3f}",
        )
        for each in compare_sets(*sides, keys)
    ]
    columns = ("data set", "split", "decoding", "metric", "questions", first, second, "difference", "95 %")
    console.print(make_table(columns, rows))
    for line in [*_told_conditions(sides, keys), *_marks(sides, different, keys)]:
        print_line(console, line)


def read_side(storage: Storage, asked: str) -> Side:
    """Return an evaluation: RUN is an evaluation or a training's last one; RUN@N a training's after N updates.

    Raises RunNotFoundError, and UserError where there is no such evaluation or an earlier version made it.
    """
    name, _, number = asked.partition("@")
    record = storage.find_run(name)
    if number and not number.isdecimal():
        raise UserError(f"--compare {asked}: expected RUN or RUN@UPDATES, such as {name}@100")
    last = record.kind.version if isinstance(record.kind, EvaluationKind) else record.iterations_done
    iterations = [int(number)] if number else range(last, -1, -1)
    keys = (StageKey(run=name, iteration=iteration, stage="evaluate") for iteration in iterations)
    done = next((found for key in keys if (found := storage.ledger.done(key))), None)
    if done is None:
        raise UserError(f"--compare {asked}: run '{name}' has no evaluation{' after so many updates' * bool(number)}")
    if not has_file(done, CONDITIONS):
        raise UserError(
            f"--compare {asked}: an earlier version of the program made this evaluation and kept no conditions; "
            "evaluate again, under another --name"
        )
    return Side(asked, dict(_sets(StageFiles(storage.artifacts), done)))


def _sets(
    files: StageFiles, done: StageRecord
) -> Iterator[tuple[SetKey, tuple[EvaluationConditions, Mapping[str, EvaluationAnswer]]]]:
    conditions = files.read(done, CONDITIONS, EvaluationConditions)
    places = {name: place for place, name in enumerate(dict.fromkeys((c.dataset, c.split) for c in conditions))}
    for each in conditions:
        answers = files.read(done, answers_file(each.mode, places[each.dataset, each.split]), EvaluationAnswer)
        key = SetKey(each.dataset, each.split, each.mode)
        yield key, (each, {answer.question_key: answer for answer in answers})


def shared_sets(first: Side, second: Side) -> list[SetKey]:
    """Return what both have answered, in the first one's order; UserError for nothing."""
    keys = [key for key in first.sets if key in second.sets]
    if not keys:
        told = [", ".join(f"{k.dataset}:{k.split} {k.mode}" for k in side.sets) for side in (first, second)]
        raise UserError(
            f"--compare: {first.name} has answered {told[0]}, and {second.name} {told[1]}; evaluate both on the same "
            "data set, with the same --mode"
        )
    return keys


def differences(first: EvaluationConditions, second: EvaluationConditions) -> dict[str, tuple[object, object]]:
    """Return by people's names what differs of what must be the same."""
    ours, theirs = first.compared, second.compared
    return {NAMES[name]: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}


def check_conditions(
    sides: tuple[Side, Side], different: Mapping[SetKey, Mapping[str, tuple[object, object]]], allowed: Sequence[str]
) -> None:
    """Raise UserError, which says both values, where a condition differs that was not allowed to."""
    refused = {
        name: (key, pair) for key, of_set in different.items() for name, pair in of_set.items() if name not in allowed
    }
    if not refused:
        return
    said = "; ".join(f"{name}: {_short(name, a)} and {_short(name, b)}" for name, (_, (a, b)) in refused.items())
    if _QUESTIONS in refused:
        key = refused[_QUESTIONS][0]
        remedy = f"ask both the same questions of {key.dataset}:{key.split}: data set, --num-questions, evaluation.seed"
    else:
        remedy = f"evaluate one again under the other's, or mark the differences with --despite {','.join(refused)}"
    raise UserError(
        f"--compare: {sides[0].name} and {sides[1].name} were evaluated under different conditions ({said}); {remedy}"
    )


def compare_sets(first: Side, second: Side, keys: Sequence[SetKey]) -> list[Compared]:
    """Return each set's metrics, and of each mode with several sets their unweighted means.

    Intervals are bootstraps over questions, paired: a resample has the same questions on both sides, and for a mean
    draws within each set.
    """
    found = []
    for mode in dict.fromkeys(key.mode for key in keys):
        of_mode = [key for key in keys if key.mode == mode]
        for group in [[key] for key in of_mode] + ([of_mode] if len(of_mode) > 1 else []):
            for metric in _METRICS:
                pairs = [_paired(first, second, key, metric) for key in group]
                if any(pair is None for pair in pairs):
                    continue  # Answers of an earlier version lack a metric.
                found.append(_compared(group, mode, metric, [pair for pair in pairs if pair is not None]))
    return found


def _compared(group: Sequence[SetKey], mode: str, metric: str, pairs: Sequence[tuple[Floats, Floats]]) -> Compared:
    where, split = (group[0].dataset, group[0].split) if len(group) == 1 else (f"mean of {len(group)}", "")
    first, second = (float(np.mean([pair[side].mean() for pair in pairs])) for side in (0, 1))
    interval = bootstrap_mean([theirs - ours for ours, theirs in pairs], seed=0)
    num_questions = sum(ours.size for ours, _ in pairs)
    return Compared(where, split, mode, _METRICS[metric], num_questions, first, second, interval)


def _paired(first: Side, second: Side, key: SetKey, metric: str) -> tuple[Floats, Floats] | None:
    """Return the scores of the same questions in the same order; None where one side has no such score."""
    ours, theirs = first.sets[key][1], second.sets[key][1]
    values = [[getattr(answers[question], metric) for question in sorted(ours)] for answers in (ours, theirs)]
    if any(value is None for of_side in values for value in of_side):
        return None
    return np.array(values[0], dtype=np.float64), np.array(values[1], dtype=np.float64)


def _allowed(despite: str | None) -> list[str]:
    """Return the conditions that may differ; UserError for a name that is none of them."""
    names = [name.strip() for name in (despite or "").split(",") if name.strip()]
    known = [name for name in NAMES.values() if name != _QUESTIONS]
    for name in names:
        if name not in known:
            near = nearest_name(name, known)
            hint = f"did you mean '{near}'?" if near else f"expected some of {', '.join(known)}"
            raise UserError(f"--despite: '{name}' is no condition that may differ; {hint}")
    return names


def _told_conditions(sides: tuple[Side, Side], keys: Sequence[SetKey]) -> Iterator[str]:
    yield "intervals: bootstrap over questions, paired; they do not cover other training seeds"
    for side in sides:
        left_out = [f"{key.dataset}:{key.split} {key.mode}" for key in side.sets if key not in keys]
        if left_out:
            yield f"only {side.name} has answered {', '.join(left_out)}"
    yield from dict.fromkeys(sides[0].sets[key][0].told for key in keys)


def _marks(
    sides: tuple[Side, Side], different: Mapping[SetKey, Mapping[str, tuple[object, object]]], keys: Sequence[SetKey]
) -> Iterator[str]:
    """Yield what differs beside the policy; the program is always allowed to."""
    seen = {name: pair for of_set in different.values() for name, pair in of_set.items()}
    first, second = (side.sets[keys[0]][0] for side in sides)
    if first.code_version != second.code_version:
        seen["program"] = (first.code_version, second.code_version)
    for name, (a, b) in seen.items():
        yield f"NOT THE SAME, {name}: {sides[0].name} {_short(name, a)}, {sides[1].name} {_short(name, b)}"


def _short(name: str, value: object) -> str:
    text = str(value)
    return text[:HASH_CHARS] if name in (_QUESTIONS, "index") else text
