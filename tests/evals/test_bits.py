from __future__ import annotations

import math

import pytest
import torch

from leanseek.data.batches import IGNORED
from leanseek.errors import DataError
from leanseek.evals.bits import bits_per_byte, text_batches
from leanseek.model.segments import Segments
from leanseek.model.transformer import Transformer
from leanseek.tokens.tokenizer import Tokenizer

TEXTS = ["start 12 +3\n", "the largest of a number: é ｜ \n" * 9, ""]


@torch.no_grad()
def by_hand(model: Transformer, tokenizer: Tokenizer, text: str) -> float:
    ids = torch.tensor([tokenizer.bos_id, *tokenizer.encode(text)])
    logits = model.logits(model(ids[:-1], Segments.single(len(ids) - 1)))
    return float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")) / math.log(2)


def test_bits_are_those_of_each_text_by_itself(tiny_model: Transformer, tiny_tokenizer: Tokenizer):
    batches, size = text_batches(tiny_tokenizer, TEXTS, window_tokens=500, batch_tokens=5)
    assert size == sum(len(text.encode()) for text in TEXTS) and len(batches) == 2
    wanted = sum(by_hand(tiny_model, tiny_tokenizer, text) for text in TEXTS[:2]) / size
    assert bits_per_byte(tiny_model, batches, size) == pytest.approx(wanted, rel=1e-5)


def test_every_token_is_a_target_once_however_texts_are_cut(tiny_tokenizer: Tokenizer):
    wanted = [token for text in TEXTS for token in tiny_tokenizer.encode(text)]
    for window_tokens, batch_tokens in ((500, 10_000), (7, 20), (1, 1)):
        batches, _ = text_batches(tiny_tokenizer, TEXTS, window_tokens=window_tokens, batch_tokens=batch_tokens)
        targets = torch.cat([batch.targets_T for batch in batches])
        assert targets[targets != IGNORED].tolist() == wanted
        assert max(max(batch.segments.lengths) for batch in batches) <= window_tokens


def test_a_model_without_a_clue_needs_the_entropy_of_the_vocabulary(make_model, tiny_tokenizer: Tokenizer):
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    batches, size = text_batches(tiny_tokenizer, ["aaaa"])
    tokens = len(tiny_tokenizer.encode("aaaa"))
    assert bits_per_byte(model, batches, size) == pytest.approx(tokens * math.log2(320) / 4)


def test_no_text_is_refused(tiny_tokenizer: Tokenizer):
    with pytest.raises(DataError, match="no text"):
        text_batches(tiny_tokenizer, ["", ""])
