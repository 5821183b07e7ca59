"""`rollout.template`: names, a file whose text is kept, and what is neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.console.errors import UserError
from flows.settings.load import load_settings

TEXT = "{instructions}Answer in a word.\nQ: {question}\nA: "


def load(template: object) -> str:
    return load_settings("tiny", [f'rollout.template="{template}"']).rollout.template


def test_a_files_text_takes_its_paths_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prompt.txt").write_text(TEXT, encoding="utf-8")
    assert load(tmp_path / "prompt.txt") == TEXT
    monkeypatch.chdir(tmp_path)
    settings = load_settings("tiny", ["rollout.template=prompt.txt"])
    assert settings.rollout.template == TEXT
    (tmp_path / "prompt.txt").write_text(TEXT.replace("word", "name"), encoding="utf-8")
    changed = load_settings("tiny", ["rollout.template=prompt.txt"])
    assert changed.content_hash() != settings.content_hash(), "a resumed run notices"
    assert changed.rollout.wording != settings.rollout.wording
    assert load("few_shot") == "few_shot"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"no place for it", "has {question} 0 times"),
        (b"{question} {question}", "has {question} 2 times"),
        (b"\xff\xfe{question}", "expected a text file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert told in str(caught.value)


def test_what_is_no_template_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="did you mean 'few_shot'"):
        load("fewshot")
