"""AutoRefine's protocol, as its public checkpoints were trained: github.com/syr-cn/AutoRefine.

The wording of the prompt is `make_prefix` of its preprocess/data_process/utils.py, the replies are those of its
search_r1/llm_agent/generation.py (commit 8363788). Its script allows 3 searches, 512 tokens a turn, 1024 a reply, 2048
in a prompt, and 3 passages.
"""

from __future__ import annotations

from typing import ClassVar

from sdsearch.protocol.search_r1 import SearchR1


class AutoRefine(SearchR1):
    """Search-R1's turns with `<documents>`, which the policy sums up inside `<refine>`."""

    tags: ClassVar[tuple[str, ...]] = ("think", "search", "documents", "refine", "answer")
    documents: ClassVar[tuple[str, str]] = ("\n\n<documents>", "</documents>\n\n")
    instructions: ClassVar[str] = (
        "You are a helpful assistant excel at answering questions with multi-turn search engine calling. To answer "
        "questions, you must first reason through the available information using <think> and </think>. If you "
        "identify missing knowledge, you may issue a search request using <search> query </search> at any time. The "
        "retrieval system will provide you with the three most relevant documents enclosed in <documents> and "
        "</documents>. After each search, you need to summarize and refine the existing documents in <refine> and "
        "</refine>. You may send multiple search requests if needed. Once you have sufficient information, provide a "
        "concise final answer using <answer> and </answer>. For example, <answer> Donald Trump </answer>. "
    )
