"""A tokenizer must not give tokens for which the model has no embedding."""

from __future__ import annotations

from copy import deepcopy

import pytest

from schemas.errors import UserError
from sdsearch.model.policy import check_tokens
from tests.support.builders import make_model, make_tokenizer


def test_every_token_of_text_needs_an_embedding() -> None:
    tokenizer = make_tokenizer()
    check_tokens(make_model(vocab_size=len(tokenizer)), tokenizer)
    with pytest.raises(
        UserError, match=r"the tokenizer has 1 tokens, such as .*, for which the model has no embedding"
    ):
        check_tokens(make_model(vocab_size=len(tokenizer) - 1), tokenizer)


def test_a_special_token_that_is_not_the_protocol_s_needs_none() -> None:
    tokenizer = deepcopy(make_tokenizer())
    model = make_model(vocab_size=len(tokenizer))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    check_tokens(model, tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<refine>"]})
    with pytest.raises(UserError, match=r"such as '<refine>'"):
        check_tokens(model, tokenizer)
