"""Answer a question with the policy in this folder, searching on the way: python answer.py QUESTION --retriever URL.

It needs vLLM alone, and what lies beside it. The retriever speaks Search-R1's protocol (`sdsearch retriever serve`).
"""

import argparse
import json
import re
import urllib.request
from pathlib import Path

QUERY = re.compile(r"<search>((?:(?!<search>).)*)</search>", re.DOTALL)


def search(url: str, query: str, num_passages: int) -> str:
    """Return the passages as the policy read them in training."""
    body = json.dumps({"queries": [query], "topk": num_passages, "return_scores": True}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        found = [hit["document"]["contents"].partition("\n") for hit in json.load(reply)["result"][0]]
    lines = [f"Doc {n}(Title: {title.strip(chr(34))}) {text}" for n, (title, _, text) in enumerate(found, 1)]
    return "\n".join(" ".join(line.split()) for line in lines) or "No documents found."


def main() -> None:
    from vllm import LLM, SamplingParams

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question")
    parser.add_argument("--retriever", required=True, metavar="URL")
    asked, folder = parser.parse_args(), Path(__file__).parent
    how = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    model = LLM(str(folder), dtype=how["dtype"], max_model_len=how["context_tokens"])
    encode = model.get_tokenizer().encode
    before, question, after, opening, closing = (
        encode(text, add_special_tokens=False)
        for text in (how["before"], asked.question, how["after"], *how["documents"])
    )
    ids = [*how["head_token_ids"], *before, *question, *after]
    decoding = SamplingParams(
        temperature=0,
        max_tokens=how["max_new_tokens"],
        stop=how["stops"],
        include_stop_str_in_output=True,
        # Tags may be special tokens of the tokenizer.
        skip_special_tokens=False,
        spaces_between_special_tokens=False,
    )
    for turn in range(how["max_searches"] + 1):
        written = model.generate({"prompt_token_ids": ids}, decoding, use_tqdm=False)[0].outputs[0]
        print(written.text)
        query = QUERY.search(written.text)
        if query is None or turn == how["max_searches"]:
            break
        passages = search(asked.retriever, " ".join(query[1].split()), how["num_passages"])
        print(passages)
        room = how["max_observation_tokens"] - len(opening) - len(closing)
        ids += [*written.token_ids, *opening, *encode(passages, add_special_tokens=False)[:room], *closing]


if __name__ == "__main__":
    main()
