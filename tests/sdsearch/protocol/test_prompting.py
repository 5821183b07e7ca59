"""What a chat template puts around a question: equal to the library's own, refused where it cannot be cut."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import UserError
from sdsearch.protocol.prompting import prompt_lengths, render_frame, render_prompt
from sdsearch.protocol.tokens import decode, encode_foreign, foreign_lengths
from tests.support.builders import make_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GOOD = {
    "chatml": CHATML,
    "with a system turn": "{{ bos_token or '' }}<s>[SYSTEM]Be brief.[/SYSTEM]\n" + CHATML,
    "trims": CHATML.replace("m.content", "m.content | trim"),
    "without a generation prompt": "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}",
    "asks for tools": CHATML + "{% if tools %}{{ tools }}{% endif %}",
    "the message alone": "{{ messages[0].content }}",
}
BAD = [
    ("more than once", CHATML + "{{ messages[0].content }}"),
    ("not as it is", "hello"),
    ("depends on the message", CHATML + "{% if messages[0].content | length > 50 %}long{% endif %}"),
    ("depends on the message", "{{ messages[0].content[:3] }}: " + CHATML),
    ("not as it is", CHATML.replace("m.content", "m.content | lower")),
    ("not as it is", CHATML.replace("m.content", "m.content | upper")),
    ("not as it is", CHATML.replace("m.content", "m.content | tojson")),
    ("not as it is", CHATML.replace("m.content", "m.content | e")),
    ("not as it is", CHATML.replace("m.content", "m.content[:500]")),
    ("not as it is", CHATML.replace("m.content", "m.content | replace('\\n', ' ')")),
    ("Expected an expression", "{% if %}"),
    ("needs a system turn", "{{ raise_exception('needs a system turn') }}"),
    ("undefined", "{{ messages[0].content }}{{ nothing.at_all }}"),
    ("No filter named", "{{ messages[0].content | no_such_filter }}"),
]


def with_template(template: Any) -> Any:
    tokenizer = copy.deepcopy(make_tokenizer())
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("template", ["compact", "instruct"])
def test_a_prompt_is_what_the_library_renders(name: str, template: Any) -> None:
    tokenizer = with_template(GOOD[name])
    frame = render_frame(tokenizer, template)
    question = "Who wrote 'Middlemarch' & <why>?"
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": f"{frame.before}{question}"}], tokenize=False, add_generation_prompt=True
    )
    prompt = render_prompt(tokenizer, question, frame)
    whole = decode(tokenizer, prompt.token_ids)
    assert whole.replace(f"{question}\n", question) == rendered, "but for the line break after the question"
    assert decode(tokenizer, prompt.head) == frame.head == rendered.partition(frame.before)[0]
    assert prompt_lengths(tokenizer, [question], frame) == [len(prompt.token_ids)]


@pytest.mark.parametrize(("reason", "template"), BAD)
def test_templates_that_cannot_be_cut_are_refused_in_one_line(reason: str, template: str) -> None:
    with pytest.raises(UserError) as caught:
        render_frame(with_template(template), "compact")
    (line,) = str(caught.value).splitlines()
    assert line.startswith("the chat template of model.path's tokenizer: ")
    assert reason in line
    assert line.endswith("correct chat_template in that folder, or choose another model.path")


def test_several_named_templates_need_a_default() -> None:
    named = {"tool_use": CHATML, "rag": CHATML}
    with pytest.raises(UserError, match=r"the chat template of model\.path's tokenizer: .*default"):
        render_frame(with_template(named), "compact")
    assert render_frame(with_template({**named, "default": CHATML}), "compact").head == "<|im_start|>user\n"


def test_a_template_that_prints_the_time_is_rendered_at_one_moment() -> None:
    tokenizer = with_template("{{ strftime_now('%d %H:%M:%S.%f') }}" + CHATML)
    frame = render_frame(tokenizer, "compact")
    assert render_prompt(tokenizer, "a", frame).head == render_prompt(tokenizer, "b", frame).head
    assert frame.head.endswith("<|im_start|>user\n")
    assert render_frame(tokenizer, "compact").head != frame.head, "which is why it is kept with the run"


def test_without_a_template_the_begin_of_text_precedes_the_question_once() -> None:
    tokenizer = with_template(None)
    assert render_frame(tokenizer, "compact").head_token_ids == ()
    tokenizer.bos_token = "<|end|>"
    frame = render_frame(tokenizer, "compact")
    assert frame.head_token_ids == (tokenizer.bos_token_id,)
    tokenizer.chat_template = "{{ bos_token }}" + CHATML
    assert render_frame(tokenizer, "compact").head_token_ids.count(tokenizer.bos_token_id) == 1


@given(st.lists(st.text() | st.sampled_from(["<search>", "a <|end|> b", "<pad>", "＜search＞", "<sea\x00rch>", ""])))
def test_lengths_are_those_of_the_tokens(texts: list[str]) -> None:
    for tags in ("special", "text"):
        tokenizer = make_tokenizer(tags)
        assert foreign_lengths(tokenizer, texts) == [len(encode_foreign(tokenizer, text)) for text in texts]
