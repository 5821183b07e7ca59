"""The road from the command line to a rollout is short: a reader who looks for one passes few functions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
LIMIT = 10


def frames_of(*arguments: str) -> list[str]:
    """Return the functions of the program from `main` to the first rollout that is trained on."""
    command = [sys.executable, "-m", "tests.support.frames", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    lines = ended.stdout.splitlines()
    assert "frames:" in lines, ended.stdout + ended.stderr
    return lines[lines.index("frames:") + 1 :]


def test_few_functions_lie_between_the_command_and_a_rollout(tmp_path: Path) -> None:
    settings = ("model.torch_threads=1", "data.questions_per_iteration=1", "evaluation.num_questions=1")
    options = [part for setting in settings for part in ("--set", setting)]
    frames = frames_of("train", "tiny", "--no-prefect", "--workspace", str(tmp_path), *options)
    assert frames[0] == "flows/app.py: main"
    assert "flows/training/iteration.py: iterate" in frames
    assert frames[-1] == "sdsearch/sampling/rollouts.py: roll_out"
    assert len(frames) <= LIMIT, frames
