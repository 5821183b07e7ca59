"""One question from one row, in either of its public forms.

FlashRAG: id, question, golden_answers, metadata. Search-R1 and AutoRefine: data_source, prompt [{role, content}],
reward_model.ground_truth.target, extra_info {split, index}.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from schemas.records.question import Question
from schemas.settings.data import SetName
from sdsearch.data.readers import BadRowError, Row, id_of, short, text_of

_FLASHRAG: Final = ("question", "golden_answers")
_SEARCH_R1: Final = ("prompt", "reward_model")
_ASKED: Final = "Question:"
# Prompts that were rendered by a chat template end with one of these.
_TURN_END: Final = re.compile(r"<\||<\uff5c|<end_of_turn>|\[/INST\]|</s>")


def question_of(row: Row | BadRowError, where: str, name: SetName, *, question_mark: bool) -> Question:
    """Return the question of a row; BadRowError where it has none, or comes as its own error."""
    if isinstance(row, BadRowError):
        raise row
    if _FLASHRAG[1] in row:
        identity, text, answers = row.get("id"), text_of(row, _FLASHRAG[0], where), row[_FLASHRAG[1]]
        column = "'golden_answers'"
    elif all(column in row for column in _SEARCH_R1):
        identity, text, answers = _search_r1_id(row, name), _asked(row, where), _target(row)
        column = "'reward_model.ground_truth.target'"
    else:
        raise BadRowError(
            f"{where}: the columns are {', '.join(map(str, row)) or 'none'}; expected FlashRAG's id, question, "
            "golden_answers, or Search-R1's data_source, prompt, reward_model, extra_info",
            "other columns",
        )
    return Question(
        id=id_of(identity, where),
        dataset=name.dataset,
        split=name.split,
        question=_normalised(text) if question_mark else text,
        golden_answers=_answers(answers, column, where),
        category=_category(row, where),
    )


def _normalised(text: str) -> str:
    """Search-R1's form of a question."""
    text = text.strip()
    return text if text.endswith("?") else f"{text}?"


def _search_r1_id(row: Row, name: SetName) -> object:
    """Return FlashRAG's id of a row, which Search-R1 keeps or leaves as split and index."""
    if "id" in row:
        return row["id"]
    extra = row.get("extra_info")
    if not isinstance(extra, Mapping) or extra.get("index") is None:
        return None
    return f"{extra.get('split') or name.split}_{extra['index']}"


def _asked(row: Row, where: str) -> str:
    """Return the question: its own column, or what the prompt's last message asks."""
    extra = row.get("extra_info")
    for holder in (row, extra if isinstance(extra, Mapping) else {}):
        if isinstance(holder.get("question"), str):
            return text_of(holder, "question", where)
    prompt = row["prompt"]
    last = prompt[-1] if isinstance(prompt, Sequence) and prompt else None
    content = last.get("content") if isinstance(last, Mapping) else None
    asked = _TURN_END.split(content.partition(_ASKED)[2])[0].strip() if isinstance(content, str) else ""
    if len(asked.splitlines()) > 1:
        raise BadRowError(
            f"{where}: 'prompt' continues after the line with '{_ASKED}' ({short(asked)}), and nothing tells whether "
            "that is part of the question; give the question alone in a column 'question' or in extra_info.question",
            "text after the question",
        )
    if not asked:
        raise BadRowError(
            f"{where}: 'prompt' is {short(prompt)}; expected messages of which the last one has '{_ASKED} …'",
            "no question",
        )
    return asked


def _target(row: Row) -> object:
    """Return the accepted answers, of which a single one need not be a list."""
    model = row["reward_model"]
    truth = model.get("ground_truth") if isinstance(model, Mapping) else None
    target = truth.get("target") if isinstance(truth, Mapping) else truth
    return [target] if isinstance(target, str) else target


def _answers(answers: object, column: str, where: str) -> tuple[str, ...]:
    if isinstance(answers, str) or not isinstance(answers, Sequence):
        raise BadRowError(f"{where}: {column} is {short(answers)}; expected a list of texts", "no answers")
    if not answers or not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise BadRowError(
            f"{where}: {column} is {short(answers)}; a question needs one answer or more, none of them empty; leave "
            "the question out or give its answers",
            "no answers",
        )
    return tuple(answers)


def _category(row: Row, where: str) -> str:
    metadata: Any = row.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise BadRowError(f"{where}: 'metadata' is {short(metadata)}; expected an object or nothing", "bad metadata")
    return str(metadata.get("category") or metadata.get("type") or "")
