"""A corpus of a million made-up passages through import, embedding, index and evaluation: seconds and memory of each.

    python benchmarks/corpus_scale.py --folder FOLDER [--passages 1000000] [--dim 256] [--threads 1]

Passages have 60 words drawn by Zipf's law from a vocabulary of 50,000, gzipped; one row in 10,000 is broken. The
encoder is the lexical one, folded to `--dim` dimensions, its shards float16. Queries are four words of a passage. Each
step is a process of its own, whose CPU seconds and largest resident memory are printed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

_BLOCK = 10_000
_WORDS_A_PASSAGE = 60
_VOCABULARY = 50_000


def make_corpus(path: Path, num_passages: int, queries: Path) -> None:
    """Write the corpus and a thousand queries."""
    drawn = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(drawn.choice(letters, drawn.integers(3, 11))) for _ in range(_VOCABULARY)])
    shares = 1 / np.arange(1, _VOCABULARY + 1)
    asked: list[str] = []
    with gzip.open(path, "wt", compresslevel=1, encoding="utf-8") as file:
        for start in range(0, num_passages, _BLOCK):
            rows = words[drawn.choice(_VOCABULARY, (_BLOCK, _WORDS_A_PASSAGE), p=shares / shares.sum())]
            for number, row in enumerate(rows, start):
                contents = f'"{row[0].title()} {row[1].title()}"\n{" ".join(row)}'
                file.write(
                    "broken\n" if number % 10_000 == 77 else json.dumps({"id": number, "contents": contents}) + "\n"
                )
            asked += [" ".join(sorted(row[:12], key=len)[-4:]) for row in rows[:: _BLOCK // 20][:20]]
    queries.write_text("\n".join(asked[:1000]), encoding="utf-8")


def run(step: str, *arguments: str, threads: int) -> None:
    """Run one command of the program, and print its time and memory."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    started = time.perf_counter()
    command = [sys.executable, "-m", "flows.app", *arguments]
    child = os.posix_spawn(sys.executable, command, environment)
    _, status, usage = os.wait4(child, 0)
    print(
        f"## {step}: exit code {os.waitstatus_to_exitcode(status)}, {time.perf_counter() - started:.0f} s, CPU "
        f"{usage.ru_utime + usage.ru_stime:.0f} s, at the most {usage.ru_maxrss / 1024:.0f} MB\n",
        flush=True,
    )


def main() -> None:
    """Make the corpus where it is missing, and run every step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    corpus, queries = options.folder / "made.jsonl.gz", options.folder / "queries.txt"
    if not corpus.exists():
        make_corpus(corpus, options.passages, queries)
    print(f"{corpus}: {corpus.stat().st_size / 1e6:.0f} MB", flush=True)
    home = ["--workspace", str(options.folder / "workspace")]
    sets = ["corpus=made", "encoder.kind=lexical", f"encoder.num_dimensions={options.dim}", "vector_dtype=float16"]
    chosen = [part for one in sets for part in ("--set", f"retrieval.{one}")]
    lists = ["--set", "retrieval.index.kind=ivf_sq", "--set", "retrieval.index.bits=8"]
    run("import", "corpus", "import", str(corpus), *home, threads=options.threads)
    run("embed", "corpus", "embed", "tiny", *home, *chosen, threads=options.threads)
    run("build ivf_sq", "index", "build", "tiny", *home, *chosen, *lists, threads=options.threads)
    asked = ["--queries", str(queries), "--kinds", "flat,ivf_sq", "--out", str(options.folder / "table.json")]
    run("evaluate", "index", "evaluate", "tiny", *home, *chosen, *lists, *asked, threads=options.threads)


if __name__ == "__main__":
    main()
