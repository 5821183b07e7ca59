"""The files that examples of pages read; run in an empty folder: `python -m tests.docs.files questions|own-data`."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from tests.docs.session import ROOT
from tests.support.question_files import flashrag_rows, search_r1_rows, world_questions, write_rows

_TABLE = re.compile(r"^```toml\n(.*?)^```", re.DOTALL | re.MULTILINE)


def shown_settings(page: Path, named: str) -> str:
    """Return the settings that a page shows and that hold a text; ValueError unless there is one block of them."""
    (settings,) = (found for found in _TABLE.findall(page.read_text(encoding="utf-8")) if named in found)
    return str(settings)


def write_own_data() -> None:
    """Write what docs/tutorials/own-data.md shows: the script that makes a corpus, and handbook.toml."""
    folder = ROOT / "docs" / "tutorials"
    shutil.copy(folder / "handbook.py", "handbook.py")
    Path("handbook.toml").write_text(shown_settings(folder / "own-data.md", 'dataset = "handbook"'), encoding="utf-8")


def write_questions() -> None:
    """Write the settings that docs/how-to/questions.md shows as mine.toml, and the data sets that they name."""
    page = ROOT / "docs" / "how-to" / "questions.md"
    Path("mine.toml").write_text(shown_settings(page, 'questions = "data/{split}.parquet"'), encoding="utf-8")
    mixed = [
        *search_r1_rows(world_questions("train", 180), "nq"),
        *search_r1_rows(world_questions("train", 120, start=180), "hotpotqa"),
    ]
    write_rows(Path("data/train.parquet"), mixed)
    rows = [dict(row) for row in flashrag_rows(world_questions("dev", 40))]
    rows[7]["golden_answers"] = []
    write_rows(Path("data/musique/dev.jsonl.gz"), rows)


if __name__ == "__main__":
    {"questions": write_questions, "own-data": write_own_data}[sys.argv[1]]()
