"""SamplingParams: what is refused, with the value got and what is accepted."""

from __future__ import annotations

import pytest

from leanseek.engine.request import SamplingParams
from leanseek.errors import EngineError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_tokens": 0}, "max_tokens = 0: at least 1"),
        ({"temperature": -0.1}, "temperature = -0.1: between 0 and 100"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"top_p": 0.0}, "top_p = 0.0: above 0 and at most 1"),
        ({"top_p": 1.01}, "top_p = 1.01"),
        ({"top_k": -1}, "top_k = -1: 0 or more"),
        ({"top_k": 1 << 63}, "top_k = 9223372036854775808"),
        ({"min_p": 1.5}, "min_p = 1.5: between 0 and 1"),
        ({"n": 0}, "n = 0: at least 1"),
        ({"seed": 1 << 64}, "seed = 18446744073709551616"),
        ({"seed": -(1 << 63)}, "seed = -9223372036854775808"),
        ({"stop": ("ok", "")}, r"stop = \('ok', ''\): texts that are not empty"),
        ({"logprobs": 21}, "logprobs = 21: None or 0 to 20"),
        ({"prompt_logprobs": -1}, "prompt_logprobs = -1"),
        ({"presence_penalty": 2.1}, "presence_penalty = 2.1: between -2 and 2"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty = nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty = 0.0: above 0"),
        ({"logit_bias": ((-1, 0.0),)}, "logit_bias"),
        ({"logit_bias": ((1, float("inf")),)}, "logit_bias"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(EngineError, match=message):
        SamplingParams(**values)


def test_the_ends_of_the_ranges_are_fine():
    params = SamplingParams(max_tokens=1, temperature=0, top_p=1, top_k=0, min_p=1, n=1, seed=0, logprobs=0)
    assert params.temperature == 0 and SamplingParams(temperature=100, seed=-5, top_p=1e-6).seed == -5
