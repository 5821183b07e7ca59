"""The mini policy's tokenizer: byte-level BPE with single digits and the protocol's tags as single tokens."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY_SIZE = 2048
PAD, END = "<|pad|>", "<|end|>"
TAG_TOKENS = tuple(f"<{slash}{tag}>" for tag in ("think", "search", "documents", "answer") for slash in ("", "/"))


def train_tokenizer(texts: Iterable[str], vocabulary_size: int = VOCABULARY_SIZE) -> PreTrainedTokenizerFast:
    """Return a tokenizer trained on `texts`; every text survives encoding and decoding unchanged.

    Digits are single tokens, so that numbers are copied digit by digit. Pad and end-of-turn differ, so that
    padding never passes for a sampled token.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in (PAD, END, *TAG_TOKENS)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(TAG_TOKENS),
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
