from __future__ import annotations

import pytest
import torch

from leanseek.engine.engine import Engine
from leanseek.engine.request import SamplingParams
from leanseek.evals import acceptance as module
from leanseek.evals.acceptance import acceptance
from leanseek.model.segments import Segments
from leanseek.model.transformer import Transformer

PROMPTS = [[0, 30, 31], [0, 40], [0, 50, 60, 70, 80]]


@pytest.fixture(scope="module")
def replies(tiny_model: Transformer) -> list[tuple[list[int], list[int]]]:
    engine = Engine(tiny_model, max_batch=4)
    outputs = engine.generate(PROMPTS, SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True))
    return [(prompt, output.token_ids) for prompt, output in zip(PROMPTS, outputs, strict=True)]


@torch.no_grad()
def by_hand(model: Transformer, prompt: list[int], reply: list[int]) -> tuple[int, int]:
    """Draft each token after the first by itself, from nothing but what was there before it."""
    right = 0
    for i in range(1, len(reply)):
        known = torch.tensor([*prompt, *reply[:i]])
        before = Segments.single(len(known) - 1)
        hidden = model(known[:-1], before)
        draft = model.logits(model.mtp(hidden, known[1:], before)[-1:]).argmax()
        right += int(draft) == reply[i]
    return right, len(reply) - 1


def test_drafts_are_those_that_decoding_would_make(tiny_model: Transformer, replies, monkeypatch):
    counts = [by_hand(tiny_model, *reply) for reply in replies]
    for tokens in (10_000, 1):
        monkeypatch.setattr(module, "CALL_TOKENS", tokens)
        found = acceptance(tiny_model, replies)
        assert found is not None
        assert (round(found.share * found.count), found.count) == tuple(map(sum, zip(*counts, strict=True)))


def test_drafts_that_always_agree_are_all_accepted(make_model):
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()  # the model always says token 0, and so does every draft
    found = acceptance(model, [([5, 6], [0, 0, 0, 0])])
    assert found is not None and (found.share, found.count) == (1.0, 3)
    found = acceptance(model, [([5, 6], [0, 7, 0, 7])])
    assert found is not None and found.share == pytest.approx(1 / 3)


def test_replies_of_one_token_have_no_draft(tiny_model: Transformer):
    found = acceptance(tiny_model, [([0, 1], [5])])
    assert found is not None and found.count == 0


def test_a_model_without_the_layer_has_no_acceptance(make_model):
    assert acceptance(make_model(num_nextn_predict_layers=0), [([0, 1], [5, 6])]) is None
