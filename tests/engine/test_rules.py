"""Rules: penalties as OpenAI defines them, biases, grammars, and the likeliest tokens of a batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanseek.engine.grammar import GrammarCompiler
from leanseek.engine.request import Grammar, Request, SamplingParams
from leanseek.engine.rules import Rule, in_thinking, rule_of, top_logprobs
from leanseek.engine.sampler import SamplingRows, sample
from leanseek.errors import EngineError
from leanseek.tokens.tokenizer import Tokenizer

W = 320


def rule(prompt: tuple[int, ...] = (5, 6), **params: object) -> Rule | None:
    return rule_of(Request("r", prompt, SamplingParams(**params)), None, vocab_size=W)


def test_nothing_asked_for_is_no_rule() -> None:
    assert rule() is None
    assert rule(temperature=0.3, top_k=5, logprobs=3, n=2) is None


def test_what_is_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(EngineError, match="logit_bias has token 320: tokens from 0 to 319"):
        rule(logit_bias=((3, 1.0), (320, 1.0)))
    with pytest.raises(EngineError, match="no tokenizer"):
        rule(grammar=Grammar("json_object"))


tokens = st.lists(st.integers(0, 9), max_size=150)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(tokens, tokens, st.floats(-2, 2), st.floats(-2, 2), st.sampled_from([1.0, 0.5, 1.3]), st.integers(0, 99))
def test_penalties_are_what_they_are_defined_as(
    prompt: list[int], reply: list[int], presence: float, frequency: float, repetition: float, seed: int
) -> None:
    found = rule(
        tuple(prompt),
        presence_penalty=presence,
        frequency_penalty=frequency,
        repetition_penalty=repetition,
        logit_bias=((2, 1.5), (2, 1.0), (7, -3.0)),
    )
    assert found is not None
    logits = torch.randn(W, generator=torch.Generator().manual_seed(seed))
    expected = logits.tolist()
    for token in range(W):
        if token in prompt or token in reply:
            expected[token] = expected[token] / repetition if expected[token] > 0 else expected[token] * repetition
        count = reply.count(token)
        expected[token] -= count * frequency + (count > 0) * presence
        expected[token] += {2: 2.5, 7: -3.0}.get(token, 0)
    for token in reply:
        found.note(token)
    found.adjust(logits)
    torch.testing.assert_close(logits, torch.tensor(expected), atol=1e-4, rtol=1e-5)
    assert not found.ended and found.error is None


def test_many_different_tokens_are_counted() -> None:
    found = rule(frequency_penalty=1.0)
    assert found is not None
    for token in [*range(300), *range(100)]:
        found.note(token)
    logits = torch.zeros(W)
    found.adjust(logits)
    assert logits.tolist() == [-2.0] * 100 + [-1.0] * 200 + [0.0] * 20


def test_a_grammar_has_the_last_word_and_ends_the_reply(tiny_tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tiny_tokenizer, W, [tiny_tokenizer.eos_id])
    a, b = tiny_tokenizer.encode("a")[0], tiny_tokenizer.encode("b")[0]
    params = SamplingParams(
        grammar=Grammar("regex", "[ab]b"), logit_bias=((a, -100.0), (9, 100.0)), presence_penalty=2.0
    )
    found = rule_of(Request("r", (5,), params), compiler, vocab_size=W)
    assert found is not None
    said = []
    while not found.ended:
        logits = torch.zeros(W)
        found.adjust(logits)
        said.append(int(logits.argmax()))
        found.note(said[-1])
    assert said == [b, b] and found.error is None
    broken = rule_of(Request("r", (5,), params), compiler, vocab_size=W)
    assert broken is not None
    broken.note(9)
    assert broken.ended and "grammar" in (broken.error or "")


def test_whether_a_prompt_leaves_its_thinking_open() -> None:
    think, end = 3, 4
    assert in_thinking([1, 3, 9], think, end)
    assert in_thinking([3, 9, 4, 8, 3], think, end)
    assert not in_thinking([3, 9, 4, 8], think, end)
    assert not in_thinking([1, 2], think, end)
    assert not in_thinking([3], None, None)


def test_top_logprobs_agree_with_the_sampler() -> None:
    logits_SW = torch.randn(5, W, generator=torch.Generator().manual_seed(0))
    logits_SW[3, 2:] = float("-inf")
    temperature_S = torch.tensor([0.0, 1.0, 0.5, 2.0, 1.0])
    whole_S = torch.zeros(5, dtype=torch.int64)
    rows = SamplingRows(
        temperature_S,
        torch.ones(5),
        torch.zeros(5),
        whole_S,
        whole_S + 7,
        whole_S,
        greedy=False,
        plain=True,
        unit=False,
    )
    tokens_S, logprobs_S = sample(logits_SW, rows)
    found = top_logprobs(logits_SW, temperature_S, [3, None, 20, 5, 0])
    assert found[1] is None and found[4] == ()
    assert [len(one or ()) for one in found] == [3, 0, 20, 2, 0]  # what a grammar excludes is not told
    scale_S = torch.where(temperature_S > 0, temperature_S, 1.0)
    every_SW = (logits_SW / scale_S[:, None]).log_softmax(dim=-1)
    for row in (0, 2, 3):
        pairs = found[row] or ()
        assert [value for _, value in pairs] == sorted((value for _, value in pairs), reverse=True)
        assert pairs[0][0] == int(every_SW[row].argmax())
        for token, value in pairs:
            assert value == pytest.approx(float(every_SW[row, token]), abs=1e-5)
    drawn = dict(top_logprobs(logits_SW, temperature_S, [W] * 5)[2] or ())
    assert drawn[int(tokens_S[2])] == pytest.approx(float(logprobs_S[2]), abs=1e-5)
    assert top_logprobs(logits_SW, temperature_S, [None] * 5) == [None] * 5
