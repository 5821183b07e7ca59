"""Which retriever the settings name: by `kind`, which files without one need not give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.console.errors import UserError
from flows.settings.load import load_settings, shipped_configs, stored_settings
from schemas.settings.retrieval import DenseRetrievalSettings, HttpRetrievalSettings, LexicalEncoderSettings
from schemas.settings.root import Settings
from tests.support.records import make_run

HTTP = ("retrieval.kind=http", 'retrieval.urls=["http://127.0.0.1:8000"]')


@pytest.mark.parametrize("config", shipped_configs())
def test_files_without_a_kind_are_dense(config: str) -> None:
    assert isinstance(load_settings(config).retrieval, DenseRetrievalSettings)


def test_a_kind_that_is_given_chooses_and_the_fields_of_dense_stay_where_they_were(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        '[model]\npath = "x"\n[retrieval]\ncorpus = "c"\nnum_passages = 5\n'
        '[retrieval.encoder]\nkind = "lexical"\nk1 = 2'
    )
    expected = DenseRetrievalSettings(corpus="c", num_passages=5, encoder=LexicalEncoderSettings(k1=2))
    assert load_settings(str(path)).retrieval == expected
    http = load_settings("tiny", [*HTTP, "retrieval.timeout_s=2.5"]).retrieval
    assert http == HttpRetrievalSettings(urls=("http://127.0.0.1:8000",), timeout_s=2.5)


def test_settings_come_back_as_they_went_and_runs_of_before_are_read() -> None:
    for settings in (load_settings("tiny"), load_settings("tiny", HTTP)):
        assert Settings.model_validate_json(settings.model_dump_json(), strict=True) == settings
    before = load_settings("tiny").model_dump(mode="json")
    del before["retrieval"]["kind"], before["retrieval"]["index"]
    record = make_run().model_copy(update={"settings_json": json.dumps(before)})
    assert stored_settings(record) == load_settings("tiny")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["retrieval.kind=htp"], "retrieval.kind: no retriever 'htp'; did you mean 'http'?"),
        (["retrieval.kind=3"], "retrieval.kind: expected 'dense', 'bm25', 'hybrid', 'http' or a plugin, got 3"),
        (["retrieval.kind=[1]"], "retrieval.kind: expected 'dense', 'bm25', 'hybrid', 'http' or a plugin, got [1]"),
        (["retrieval=3"], "retrieval: expected a section of settings, got 3"),
        (
            ["retrieval.num_pasages=3"],
            "did you mean 'retrieval.num_passages'?",
        ),
        (["retrieval.encodr.kind=hf"], "unknown setting 'retrieval.encodr'; did you mean 'retrieval.encoder'?"),
        (["retrieval.encoder.k1=2"], "retrieval.encoder.kind: is missing; set it to 'lexical' or 'hf'"),
        (["retrieval.kind=http"], "retrieval.urls: is missing and has no default; set it (Base URLs"),
        (["retrieval.kind=http", "retrieval.urls=[]"], "retrieval.urls: expected non-empty array of text like ^https"),
        (["retrieval.kind=http", "retrieval.urls=['gpu1:8000']"], "retrieval.urls: expected non-empty array of text"),
        ([*HTTP, "retrieval.timeout=3"], "did you mean 'retrieval.timeout_s'?"),
        ([*HTTP, "retrieval.timeout_s=0"], "retrieval.timeout_s: expected number > 0 and ≤ 1000000, got 0"),
        ([*HTTP, "retrieval.corpus=c"], "unknown setting 'retrieval.corpus': kind = 'http' has none; it may"),
    ],
    ids=str,
)
def test_what_is_wrong_is_one_line(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_settings("tiny", overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
