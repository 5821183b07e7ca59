"""Chat templates with the features of public families, written for these tests; no family's text is copied."""

from __future__ import annotations

import copy
from functools import cache

from transformers import PreTrainedTokenizerFast

from tests.support.builders import make_tokenizer

_TOOLS = (
    "{%- if tools %}<|im_start|>system\nYou may call tools.\n<tools>\n{%- for t in tools %}\n{{ t | tojson }}"
    "{%- endfor %}\n</tools><|im_end|>\n{%- endif %}"
)
_CALLS = (
    "{%- for c in m.tool_calls or [] %}{{ '\n' if m.content else '' }}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{%- endfor %}'
)
_REPLY = "<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
_START = "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
# As Qwen2.5 and Hermes: calls in tags, replies in a message of the user.
QWEN25 = (
    _TOOLS + "{%- for m in messages %}{%- if m.role == 'tool' %}" + _REPLY + "{% else %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}" + _CALLS + "<|im_end|>\n{% endif %}{%- endfor %}" + _START
)
# As Qwen3: thinking is kept after the user's last message; without thinking, an empty one opens the turn.
QWEN3 = (
    _TOOLS + "{%- for m in messages %}{%- if m.role == 'tool' %}" + _REPLY + "{% elif m.role == 'assistant' %}"
    "{%- set parts = m.content.split('</think>') %}{%- set said = parts[-1].lstrip('\n') %}"
    "{%- set thought = parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '' %}"
    "<|im_start|>assistant\n"
    "{% if loop.last or thought %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ said }}"
    + _CALLS
    + "<|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{%- endif %}"
)
# Earlier thinking is dropped, as by DeepSeek-R1's template.
DROPS = QWEN3.replace("loop.last or thought", "loop.last")
# As Llama 3.x: the tools in the user's message, a call is JSON alone, replies are JSON strings.
LLAMA = (
    "{%- for m in messages %}<|start|>{{ 'ipython' if m.role == 'tool' else m.role }}<|stop|>{{ '\n\n' }}"
    "{%- if m.role == 'tool' %}{{ m.content | tojson }}{%- elif m.tool_calls %}"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
    "{%- else %}{%- if loop.first and tools %}"
    "{%- for t in tools %}{{ t | tojson(indent=4) }}\n\n{% endfor %}{%- endif %}"
    "{{ m.content | trim }}{%- endif %}<|eot|>{%- endfor %}"
    "{%- if add_generation_prompt %}<|start|>assistant<|stop|>\n\n{% endif %}"
)
TEMPLATES = {"qwen25": QWEN25, "qwen3": QWEN3, "drops": DROPS, "llama": LLAMA}


@cache
def make_chat_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A small tokenizer with a family's template and its marks as special tokens."""
    tokenizer = copy.deepcopy(make_tokenizer("text"))
    end = "<|eot|>" if family == "llama" else "<|im_end|>"
    marks = ["<|start|>", "<|stop|>", "<|eot|>"] if family == "llama" else ["<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.eos_token = end
    tokenizer.chat_template = TEMPLATES[family]
    return tokenizer
