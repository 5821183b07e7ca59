"""Small files in every public form of questions, made from the embedded world: they stand in for the big data sets."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.records.question import Question
from sdsearch.world import load_questions

SEARCH_R1_PROMPT = (
    "Answer the given question. You must conduct reasoning inside <think> and </think> first. For example, <answer> "
    "Beijing </answer>. Question: {question}\n"
)
DatasetRows = Sequence[Mapping[str, Any]]


def world_questions(split: str, number: int, start: int = 0) -> list[Question]:
    """Questions of the embedded world, with the ids that FlashRAG gives: the split and a running number."""
    questions = load_questions(split)[start : start + number]
    return [question.model_copy(update={"id": f"{split}_{place}"}) for place, question in enumerate(questions)]


def flashrag_rows(questions: Sequence[Question]) -> DatasetRows:
    return [
        {
            "id": question.id,
            "question": question.question,
            "golden_answers": list(question.golden_answers),
            "metadata": {"type": question.category},
        }
        for question in questions
    ]


def search_r1_rows(questions: Sequence[Question], dataset: str) -> DatasetRows:
    """Rows as Search-R1's data preparation writes them: neither ids nor questions outside the prompt."""
    return [
        {
            "data_source": dataset,
            "prompt": [{"role": "user", "content": SEARCH_R1_PROMPT.format(question=question.question)}],
            "ability": "fact-reasoning",
            "reward_model": {"style": "rule", "ground_truth": {"target": list(question.golden_answers)}},
            "extra_info": {"split": question.id.rpartition("_")[0], "index": int(question.id.rpartition("_")[2])},
        }
        for question in questions
    ]


def write_rows(path: Path, rows: DatasetRows) -> Path:
    """Write rows as the file's name says: .parquet, .jsonl or .jsonl.gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
        return path
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def hub_folder(folder: Path, files: Mapping[str, Mapping[str, DatasetRows]]) -> Path:
    """Write a folder that `datasets.load_dataset` opens as it opens FlashRAG's: configuration, then split."""
    lines = ["---", "configs:"]
    for dataset, splits in files.items():
        lines += [f"- config_name: {dataset}", "  data_files:"]
        for split, rows in splits.items():
            write_rows(folder / dataset / f"{split}.jsonl", rows)
            lines += [f"  - split: {split}", f"    path: {dataset}/{split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")
    return folder


SEVEN = {
    "nq": "test",
    "triviaqa": "test",
    "popqa": "test",
    "hotpotqa": "dev",
    "2wikimultihopqa": "dev",
    "musique": "dev",
    "bamboogle": "test",
}


def write_seven_sets(folder: Path, sizes: Sequence[int] = (6, 5, 4, 4, 3, 3, 2)) -> Path:
    """Write the paper's test sets in miniature, in every public form, and settings that name them."""
    start, parts = 0, {}
    for (name, split), size in zip(SEVEN.items(), sizes, strict=True):
        questions = load_questions("test")[::40][start : start + size]
        parts[name] = [q.model_copy(update={"id": f"{split}_{place}"}) for place, q in enumerate(questions)]
        start += size
    merged = [*search_r1_rows(parts["nq"], "nq"), *search_r1_rows(parts["triviaqa"], "triviaqa")]
    write_rows(folder / "search_r1" / "test.parquet", merged)
    write_rows(folder / "popqa.parquet", flashrag_rows(parts["popqa"]))
    write_rows(folder / "hotpotqa" / "dev.jsonl.gz", flashrag_rows(parts["hotpotqa"]))
    hub = hub_folder(folder / "hub", {"2wikimultihopqa": {"dev": flashrag_rows(parts["2wikimultihopqa"])}})
    write_rows(folder / "musique" / "dev.jsonl", flashrag_rows(parts["musique"]))
    write_rows(folder / "bamboogle.jsonl", flashrag_rows(parts["bamboogle"]))
    path = folder / "seven.toml"
    names = ", ".join(f'"{name}:{split}"' for name, split in SEVEN.items())
    path.write_text(
        f"""
        [model]
        path = "mini"
        torch_threads = 1
        [rollout]
        template = "compact"
        max_searches = 3
        max_new_tokens = 40
        max_prompt_tokens = 256
        max_observation_tokens = 120
        questions_per_batch = 1
        [data]
        questions = "{folder}/search_r1/{{split}}.parquet"
        test = [{names}]
        [data.sets]
        world = "world"
        popqa = "{folder}/popqa.parquet"
        hotpotqa = "{folder}/{{dataset}}/{{split}}.jsonl.gz"
        2wikimultihopqa = "hub:{hub}"
        musique = "{folder}/{{dataset}}/{{split}}.jsonl"
        bamboogle = "{folder}/bamboogle.jsonl"
        """,
        encoding="utf-8",
    )
    return path
