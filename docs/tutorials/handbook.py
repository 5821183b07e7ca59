"""Write a small corpus and questions about it: the handbook of a company that does not exist."""

import json
import random
import re
from pathlib import Path

FACTS = ("lead", "office", "customer", "supplier", "mascot", "sponsor")
SYLLABLES = re.findall("..", "babebodadodufafigagekakilolumaminanopaporarisasotativavozazu")
draw = random.Random(0)


def invent() -> str:
    """Return a name that exists nowhere, such as Rizuvo."""
    return "".join(draw.sample(SYLLABLES, 3)).capitalize()


passages, questions = [], {"train": [], "dev": []}
for number in range(60):
    project = invent()
    for fact in FACTS:
        value = invent()
        passages.append(
            (f"{project}, {fact}", f"The {fact} of {project} is {value}. {project} is a project of the company.")
        )
        questions["dev" if number % 3 == 0 else "train"].append((f"What is the {fact} of {project}?", value))

folder = Path("handbook")
folder.mkdir(exist_ok=True)
with open(folder / "corpus.jsonl", "w", encoding="utf-8") as file:
    for number, (title, text) in enumerate(passages):
        print(json.dumps({"id": str(number), "contents": f'"{title}"\n{text}'}), file=file)
for split, rows in questions.items():
    with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as file:
        for number, (question, answer) in enumerate(rows):
            print(json.dumps({"id": f"{split}{number}", "question": question, "golden_answers": [answer]}), file=file)
