"""Training as a person sees it: live bars on a terminal, plain lines where they are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.typing_in import Screen, on_a_terminal

MICRO = (
    *("iterations=2", "data.questions_per_iteration=2", "evaluation.num_questions=2", "model.torch_threads=1"),
    *("rollout.max_new_tokens=6", "rollout.max_searches=1", "rollout.group_size=2"),
)


@pytest.mark.parametrize(
    ("environment", "is_live"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
    ids=["terminal", "no colour", "dumb"],
)
def test_training_on_a_terminal(tmp_path: Path, environment: dict[str, str], is_live: bool) -> None:
    sets = [word for setting in MICRO for word in ("--set", setting)]
    words = ["train", "tiny", *sets, "--run", "r1", "--no-prefect", "--workspace", str(tmp_path / "w")]
    shown = on_a_terminal(words, environment=environment)
    assert shown.code == 0, shown.text
    lines = Screen(200).fed(shown.text.encode()).lines
    iterations = [line for line in lines if line.startswith("iteration ")]
    assert sum(line.startswith("evaluation after ") for line in lines) == 4
    assert lines.count("run r1: 2 iterations, model mini") == 1
    if not is_live:
        assert [line.split()[1] for line in iterations] == ["1/2", "2/2"], "plain lines"
        assert "━" not in "".join(lines)
        return
    (iteration,) = iterations
    assert " 2/2 " in iteration
    for part in ("sample", "score", "hindsight", "teacher", "update", "evaluate"):
        assert f"\n{part} " in shown.text.replace("\r", ""), part
    assert "tokens/s" in shown.text
    assert "questions" in shown.text
    assert "steps" in shown.text
