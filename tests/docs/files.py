"""The files that a page's example of questions reads, made from the embedded world; run in an empty folder."""

from __future__ import annotations

import re
from pathlib import Path

from tests.docs.session import ROOT
from tests.support.question_files import flashrag_rows, search_r1_rows, world_questions, write_rows

_TABLE = re.compile(r"^```toml\n(.*?)^```", re.DOTALL | re.MULTILINE)
_NAMED = 'questions = "data/{split}.parquet"'


def main() -> None:
    """Write the settings that a page shows as mine.toml, and the data sets that they name."""
    page = (ROOT / "docs" / "how-to" / "questions.md").read_text(encoding="utf-8")
    (settings,) = (found for found in _TABLE.findall(page) if _NAMED in found)
    Path("mine.toml").write_text(settings, encoding="utf-8")
    mixed = [
        *search_r1_rows(world_questions("train", 180), "nq"),
        *search_r1_rows(world_questions("train", 120, start=180), "hotpotqa"),
    ]
    write_rows(Path("data/train.parquet"), mixed)
    rows = [dict(row) for row in flashrag_rows(world_questions("dev", 40))]
    rows[7]["golden_answers"] = []
    write_rows(Path("data/musique/dev.jsonl.gz"), rows)


if __name__ == "__main__":
    main()
