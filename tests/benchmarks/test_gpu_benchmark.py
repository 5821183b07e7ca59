"""The script that settles what a GPU run needs: every part of it, small, on the CPU, and the tables it makes."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
# FlexAttention has no backward pass on a CPU.
KNOWN = "FlexAttention does not support backward on CPU"
COLUMNS = {
    "a": {"model", "tuning", "type", "layout", "layers computed again", "loss error", "gradient error", "bound", "ok"},
    "b": {
        "size",
        "layout",
        "gradient s",
        "spread s",
        "useful tokens/s",
        "share of matmul peak",
        "optimiser s",
        "peak GB",
    },
    "c": {"size", "head chunk", "teacher s", "GRPO gradient s", "GRPO + SD gradient s", "SD share"},
    "d": {"what", "seed", "device", "EM greedy", "reward, last 4", "s/iteration", "resumed, same bits"},
    "e": {"size", "batch", "tokens/s", "rollouts/s", "device busy", "launches", "copies to host", "host time in"},
}


def run_script(*words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(SCRIPT), *words], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def columns_of(part: str, printed: str) -> set[str]:
    """The headings of a part's table among the printed ones."""
    _, _, rest = printed.partition(f"**{part}, ")
    return {name.strip() for name in rest.splitlines()[2].strip("|").split("|")}


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_part_runs_without_a_card(tmp_path: Path) -> None:
    printed = run_script("--device", "cpu", "--small", "--out", str(tmp_path))
    rows = rows_of(tmp_path / "gpu.jsonl")
    for part, columns in COLUMNS.items():
        own = [row for row in rows if row["part"] == part]
        failed = [row for row in own if "error" in row and KNOWN not in row["error"]]
        assert own, f"part {part} has rows"
        assert not failed
        assert not [row for row in own if "skip" in row]
        assert columns <= columns_of(part, printed)
    equal = [row for row in rows if row["part"] == "a" and "error" not in row]
    assert {(row["layout"], row["type"]) for row in equal} == {
        (layout, dtype) for layout in ("split", "padded") for dtype in ("float32", "bfloat16")
    }
    assert all(row["ok"] for row in equal if "ok" in row)
    assert [row["layout"] for row in equal if "ok" not in row] == ["padded"] * 4, "bfloat16's own rounding is no fault"
    exact = [row for row in rows if row.get("what") in ("as shipped", "deterministic algorithms")]
    assert [row["resumed, same bits"] for row in exact] == [True, True]


def test_a_case_that_fails_is_told_and_one_that_no_longer_fits_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    common = importlib.import_module("gpu_common")
    sink = common.Sink(tmp_path / "gpu.jsonl")
    bench = common.Bench(torch.device("cpu"), True, sink, "b", time.monotonic() + 10)
    with bench.case(size="3B") as row:
        raise RuntimeError("out of memory\ntried to allocate")
    with bench.case(seconds_needed=60, size="3B") as row:
        assert row["skip"].startswith("not reached")
    with bench.case(size="3B") as row:
        row["s"] = 1.5
    failed, skipped, done = rows_of(tmp_path / "gpu.jsonl")
    assert failed == {"part": "b", "size": "3B", "error": "RuntimeError: out of memory"}
    assert skipped["skip"] in ("not reached, 10 s were left", "not reached, 9 s were left")
    assert done == {"part": "b", "size": "3B", "s": 1.5}


@pytest.mark.long
def test_a_card_that_is_not_there_is_named(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--device", "cuda:99", "--out", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.strip().startswith("--device cuda:99: ")
    assert len(result.stderr.strip().splitlines()) == 1


def test_tables_are_made_of_what_was_written_before_a_run_was_cut_off(tmp_path: Path) -> None:
    rows: Sequence[dict[str, Any]] = [
        {"part": "machine", "text": "a card"},
        {"part": "a", "model": "llama", "gradient error": 1.23456e-7, "ok": True},
        {"part": "a", "model": "qwen2", "error": "it | failed"},
        {"part": "seconds", "part of": "a", "seconds": 3.2},
        {"part": "b", "size": "3B", "useful tokens/s": 12345.6},
    ]
    file = tmp_path / "gpu.jsonl"
    file.write_text("\n".join([*map(json.dumps, rows), '{"part": "b", "si']), encoding="utf-8")
    document = tmp_path / "document.md"
    document.write_text("before\n<!-- gpu -->\nold\n<!-- /gpu -->\nafter\n", encoding="utf-8")
    run_script("--from", str(file), "--results", str(document))
    assert document.read_text(encoding="utf-8").splitlines() == [
        "before",
        "<!-- gpu -->",
        "",
        "a card",
        "",
        "**a, equality**, 3.2 s",
        "",
        "| model | gradient error | ok | error |",
        "|---|---|---|---|",
        "| llama | 1.23e-07 | yes |  |",
        "| qwen2 |  |  | it / failed |",
        "",
        "**b, update**, cut off",
        "",
        "| size | useful tokens/s |",
        "|---|---|",
        "| 3B | 12346 |",
        "",
        "<!-- /gpu -->",
        "after",
    ]


@pytest.mark.long
def test_what_a_card_s_machine_lacks_is_not_imported() -> None:
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('prefect', 'vllm', 'duckdb', 'faiss', 'bm25s', 'datasets', 'typer')))\n"
        "sys.path.insert(0, 'benchmarks')\n"
        "import gpu, gpu_equality, gpu_update, gpu_teacher, gpu_sampling\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
