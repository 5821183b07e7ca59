"""What a run on a GPU needs to know: is it right there, how fast, how much memory. One card, under eight minutes.

    PYTHONPATH=. python benchmarks/gpu.py [--parts a b c d e] [--minutes 8] [--out .bench] [--results FILE]
    PYTHONPATH=. python benchmarks/gpu.py --device cpu --small    # every part, small, without a card

Parts, in this order: a, equality: the whole step's loss and gradient against the naive float64 objective, in each
layout, fp32 and bf16; b, update: 0.5 B, 1.5 B and 3 B in Qwen2.5's shapes, speed, share of the peak, memory against the
estimate of `sdsearch doctor`, and the largest micro-batch that fits; c, teacher: the teacher pass, the head's chunks,
SD's share; d, training: the quickstart's curve, seconds an iteration, whether bits repeat; e, sampling: tokens/s of the
transformers sampler, and where its time goes.

Every row is printed and written to FOLDER/gpu.jsonl when it is made, so a run that is cut off counts; a part that fails
says so in its rows, and the next one starts. `--from FILE` makes the tables of such a file and measures nothing. Needs
torch 2.11 to 2.13, transformers, peft and pydantic; part d also what the plain loop needs (duckdb, pyarrow, faiss-cpu,
scikit-learn, bm25s, rich, typer, psutil, httpx). Neither Prefect nor vLLM is imported.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results import machine, put_results

PARTS = {"a": "equality", "b": "update", "c": "teacher", "d": "training", "e": "sampling"}
# Of the whole time; what a part leaves over goes to the later ones.
SHARES = {"a": 0.15, "b": 0.32, "c": 0.14, "d": 0.27, "e": 0.12}
FILE = "gpu.jsonl"
# Set before torch is loaded. cuBLAS repeats the bits of a product with such a workspace alone, under deterministic
# algorithms; threads that spin while they wait starve each other on a machine that does other work too.
ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def main() -> None:
    options = read_options()
    if options.source is None:
        options.source = measure(options)
    lines = report(read_rows(options.source))
    print("\n".join(lines))
    if options.results:
        put_results(options.results, "gpu", lines)


def measure(options: argparse.Namespace) -> Path:
    """Run the parts and return the file of their rows."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import torch
    from gpu_common import Bench, Sink, described

    try:
        device = torch.empty(1, device=options.device).device
    except (AssertionError, RuntimeError) as error:  # torch without CUDA raises AssertionError.
        raise SystemExit(f"--device {options.device}: {str(error).splitlines()[0]}") from error
    file = Path(options.out) / FILE
    sink = Sink(file)
    sink.put("machine", {"text": f"`python benchmarks/gpu.py{told(options)}`, {described(device)}, {machine()}"})
    began, share = time.monotonic(), 0.0
    for letter in options.parts:
        share += SHARES[letter] / sum(SHARES[part] for part in options.parts)
        deadline = began + 60 * options.minutes * share
        bench = Bench(device, options.small, sink, letter, deadline)
        started = time.monotonic()
        try:
            importlib.import_module(f"gpu_{PARTS[letter]}").run(bench)
        except Exception as error:  # A missing package or a fault of one part must not cost the others.
            bench.put(error=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}")
        sink.put("seconds", {"part of": letter, "seconds": round(time.monotonic() - started, 1)})
    return file


def told(options: argparse.Namespace) -> str:
    words = f" --device {options.device}" if options.device != "cuda" else ""
    words += " --small" if options.small else ""
    return words + (f" --parts {' '.join(options.parts)}" if options.parts != list(PARTS) else "")


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a file, whose last line may be cut off."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def report(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a table a part, as lines of markdown."""
    lines = [str(row["text"]) for row in rows if row["part"] == "machine"]
    seconds = {row["part of"]: row["seconds"] for row in rows if row["part"] == "seconds"}
    for letter, name in PARTS.items():
        own = [{key: value for key, value in row.items() if key != "part"} for row in rows if row["part"] == letter]
        if own:
            took = f", {seconds[letter]} s" if letter in seconds else ", cut off"
            lines += ["", f"**{letter}, {name}**{took}", "", *table(own)]
    return lines


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return rows as a table with the columns of all of them, in order of appearance."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return lines + [f"| {' | '.join(shown(row.get(column)) for column in columns)} |" for row in rows]


def shown(value: Any) -> str:
    """Return a figure with three digits that count; nothing where there is none."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "/")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes that a CPU does in seconds")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=8.0, help="cases that no longer fit are left out, and named")
    parser.add_argument("--out", type=Path, default=Path(".bench"))
    parser.add_argument("--from", dest="source", type=Path, help=f"a {FILE} to make tables of; nothing is measured")
    parser.add_argument("--results", type=Path, help="a markdown file whose marked section the tables replace")
    return parser.parse_args()


if __name__ == "__main__":
    main()
