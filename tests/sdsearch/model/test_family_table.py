"""The page on models: its table is made by a script, which gives each family one of three verdicts."""

from __future__ import annotations

import pytest

from tests.family_table import PAGE, rows
from tests.sdsearch.model.test_families import NAMED
from tests.support.families import FAMILIES, VARIANTS


def test_the_page_has_the_verdicts_of_the_script() -> None:
    page = PAGE.read_text(encoding="utf-8")
    table = dict(line.strip("| ").split(" | ", 1) for line in page.splitlines() if line.count(" | ") >= 2)
    assert {family for family in NAMED if not table[family].endswith("trained")} == set()
    for row in rows(["gpt2", "granite", "mamba", "falcon"]):
        assert str(row).endswith(table[row.family].rpartition("| ")[2] + " |")


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
def test_every_family_is_the_plain_model_or_refused() -> None:
    found = list(rows([*FAMILIES, *VARIANTS]))
    for row in found:
        verdict = row.verdict.partition(":")[0]
        assert verdict in ("trained", "refused", "not made")
        if verdict == "trained":
            assert max(row.sampler or 0.0, row.update or 0.0) <= 1e-3
    assert sum(row.verdict == "trained" for row in found) > len(found) / 2
