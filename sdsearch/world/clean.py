"""Make the shipped world files from the raw ones: repair texts, leave out questions that cannot be trusted.

`python -m sdsearch.world.clean RAW_FOLDER passages > passages.jsonl`; instead of `passages` also `train`, `dev` or
`test`. What was repaired and left out is counted on standard error.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

from sdsearch.credit.scoring import normalise_answer

Row = dict[str, Any]

# Names that reach further back than the state meant (Switzerland 1291, Sweden 1523, Netherlands 1579).
_FIRST_INDEPENDENCE_YEAR: Final = 1700
# Cut-off list items and names in the sources, and the two "Europe"s that are hardly told from the continent.
_BROKEN_ANSWERS: Final = {
    "national symbol": {"ten", "six", "four", "white", "yellow"},
    "largest ethnic group": {"Bengali at least"},
    "discoverer": {"Fausto", "Pierre", "Argonne"},
    "official language": {"Somalia"},
    "main export partner": {"Europe"},
    "national anthem": {"Europe"},
}
# In texts with marked slots a name stands in braces, so the patterns allow them.
_REPAIRS: Final = (
    ("empty location", re.compile(r"It lies in  and has"), "It has"),
    ("empty domain", re.compile(r" and its internet domain is (?:\{\}|)(?=\.$)"), ""),
    ("half a border", re.compile(r", between \{?[A-Z]\w+\}?(?=\. |\.$| and has )"), ""),
    ("country for a language", re.compile(r"The official language of (\{?Somalia\}?) is \1\. "), ""),
    ("doubled full stop", re.compile(r"\.\.(?= |$)"), "."),
    ("repeated export", re.compile(r"\b(\w+), (\w[\w ]*), \1\."), r"\1, \2."),
)


class CleanQuestions(NamedTuple):
    """The questions kept, and how many were left out, by reason."""

    rows: list[Row]
    left_out: Counter[str]


def clean_text(text: str) -> tuple[str, list[str]]:
    """Return a passage's text, with or without marked slots, repaired, and the names of the repairs made."""
    balanced = _drop_unopened(text)
    made = ["bracket never opened"] * (balanced != text)
    for name, pattern, replacement in _REPAIRS:
        balanced, count = pattern.subn(replacement, balanced)
        made += [name] * count
    return balanced, made


def _drop_unopened(text: str) -> str:
    kept, depth = [], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if depth >= 0:
            kept.append(character)
        depth = max(depth, 0)
    return "".join(kept)


def clean_passages(rows: Iterable[Row]) -> tuple[list[Row], Counter[str]]:
    """Return the corpus rows with repaired contents and the number of each repair; none is left out."""
    cleaned, repairs = [], Counter[str]()
    for row in rows:
        contents, made = clean_text(row["contents"])
        repairs.update(made)
        cleaned.append({"id": row["id"], "contents": contents})
    return cleaned, repairs


def clean_questions(rows: Iterable[Row]) -> CleanQuestions:
    """Return the questions in FlashRAG's columns; the raw ids, splits and evidence stay as they were."""
    kept, left_out = [], Counter[str]()
    for row in rows:
        reason = _objection(row)
        if reason:
            left_out[reason] += 1
            continue
        metadata = {"category": row["type"], "split": row["split"], "evidence": row["evidence"]}
        kept.append({key: row[key] for key in ("id", "question", "golden_answers")} | {"metadata": metadata})
    return CleanQuestions(kept, left_out)


def _objection(row: Row) -> str | None:
    question, answers = row["question"], row["golden_answers"]
    if any(f" {relation} of " in question and set(answers) & broken for relation, broken in _BROKEN_ANSWERS.items()):
        return "answer broken in the source"
    if " independence year of " in question and int(answers[0]) < _FIRST_INDEPENDENCE_YEAR:
        return "independence of an old state"
    if "anthem is Europe?" in question:
        return "bridge is an everyday word"
    words = f" {normalise_answer(question)} "
    if row["type"] != "comparison" and any(f" {normalise_answer(answer)} " in words for answer in answers):
        return "answer stands in the question"
    return None


def _read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(raw: Path, part: str) -> None:
    """Print one shipped file's rows; counts go to standard error."""
    if part == "passages":
        rows, counts = clean_passages(_read(raw / "passages.jsonl"))
    else:
        rows, counts = clean_questions(_read(raw / "questions.jsonl"))
        rows = [row for row in rows if row["metadata"]["split"] == part]
    for row in rows:
        print(json.dumps(row))
    print(f"{part}: {len(rows)} rows; in the whole raw file {dict(counts)}", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[2] not in ("passages", "train", "dev", "test"):
        sys.exit("usage: python -m sdsearch.world.clean RAW_FOLDER {passages,train,dev,test}")
    main(Path(sys.argv[1]), sys.argv[2])
