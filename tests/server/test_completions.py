"""Text completions, by OpenAI's own client and as lm-eval's local-completions asks."""

from __future__ import annotations

import json

import openai
import pytest

from leanseek.engine.engine import Engine
from leanseek.engine.request import SamplingParams
from leanseek.server.completions import CompletionRequest
from leanseek.server.refusal import ApiError, parse_body
from tests.server.conftest import ScriptedEngine
from tests.server.invariants import events_of
from tests.server.test_app import send


def parse(**fields):
    request = parse_body(CompletionRequest, json.dumps({"prompt": "start 5", **fields}).encode(), "a prompt")
    request.check()
    return request


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        (["a", [3]], ["a", [3]]),
        ("", [""]),
        (None, [""]),
    ],
)
def test_prompts(prompt, expected):
    assert parse(prompt=prompt).prompt == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["a"] * 2000}, "prompt"),
        ({"prompt": ["a"] * 100, "n": 100}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"suffix": "x", "echo": True}, "suffix"),
        ({"suffix": "x", "prompt": [1]}, "suffix"),
    ],
)
def test_what_is_wrong_is_named(fields, param):
    with pytest.raises(ApiError) as caught:
        parse(**fields)
    assert (caught.value.status, caught.value.param) == (422, param)


def test_text_is_what_the_engine_says(client, tiny_model, tiny_tokenizer):
    ids = [tiny_tokenizer.bos_id, *tiny_tokenizer.encode("start 5")]
    params = SamplingParams(max_tokens=9, temperature=0)
    expected = Engine(tiny_model, tiny_tokenizer, max_batch=1).generate([ids], params)[0]
    asked = {"model": "tiny", "max_tokens": 9, "temperature": 0}
    answer = client.completions.create(prompt="start 5", **asked)
    assert answer.choices[0].text == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert client.completions.create(prompt=ids, **asked).choices[0].text == expected.text
    chunks = client.completions.create(prompt="start 5", **asked, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected.text


def test_many_prompts_and_replies_are_in_order(client):
    prompts = ["start 5", "the largest", "a"]
    asked = {"model": "tiny", "max_tokens": 5, "seed": 3}
    whole = client.completions.create(prompt=prompts, n=2, **asked)
    assert [one.index for one in whole.choices] == list(range(6))
    alone = [client.completions.create(prompt=one, n=2, **asked).choices for one in prompts]
    assert [one.text for one in whole.choices] == [one.text for choices in alone for one in choices]
    texts = [""] * 6
    reasons = [None] * 6
    for chunk in client.completions.create(prompt=prompts, n=2, **asked, stream=True):
        for one in chunk.choices:
            texts[one.index] += one.text
            reasons[one.index] = one.finish_reason or reasons[one.index]
    assert texts == [one.text for one in whole.choices]
    assert reasons == [one.finish_reason for one in whole.choices]


@pytest.mark.parametrize("stream", [False, True])
def test_echo_and_logprobs_have_openais_older_form(script, serve, connect, tiny_tokenizer, stream):
    engine = script("x", "y")
    engine.script = [*tiny_tokenizer.encode("total 8"), tiny_tokenizer.eos_id]
    prompt = "start ü"
    asked = {"model": "tiny", "prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": 50}
    made = connect(serve(engine)).completions.create(**asked, stream=stream)
    parts = [chunk.choices[0] for chunk in made] if stream else [made.choices[0]]
    text = "".join(one.text for one in parts)
    assert text == prompt + "total 8"
    tokens, values, tops, offsets = [], [], [], []
    for one in (one.logprobs for one in parts if one.logprobs):
        tokens += one.tokens
        values += one.token_logprobs
        tops += one.top_logprobs
        offsets += one.text_offset
    ids = [*engine.prompts[0], *engine.script]
    assert len(tokens) == len(values) == len(tops) == len(offsets)
    assert tokens[0] == "<｜begin▁of▁sentence｜>"
    assert (values[0], tops[0]) == (None, None)
    assert values[1 : len(engine.prompts[0])] == [-0.25] * (len(engine.prompts[0]) - 1)
    assert len(tokens) in (len(ids), len(ids) - 1)
    for token, at in zip(tokens, offsets, strict=True):
        assert token.startswith(("<｜", "bytes:")) or text[at:].startswith(token)
    assert all(token in top for token, top in zip(tokens[1:], tops[1:], strict=True))


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_scoring_as_lm_eval_asks(client, tiny_model, tiny_tokenizer, max_tokens):
    """Its sums over the continuation's tokens, and whether each was the likeliest."""
    context, continuation = tiny_tokenizer.encode("start 5 +3"), tiny_tokenizer.encode(" =8")
    ids = [tiny_tokenizer.bos_id, *context, *continuation]
    engine = Engine(tiny_model, tiny_tokenizer, max_batch=1)
    forced = SamplingParams(max_tokens=1, temperature=0, logprobs=1, prompt_logprobs=1)
    expected = engine.generate([ids], forced)[0].prompt_logprobs
    answer = client.completions.create(
        model="tiny", prompt=[ids], temperature=0, max_tokens=max_tokens, logprobs=1, seed=1, echo=True
    )
    found = answer.choices[0].logprobs
    assert len(found.token_logprobs) == len(ids) + max_tokens
    assert found.token_logprobs[: len(ids)] == pytest.approx(expected, abs=1e-5)
    for value, top in zip(found.token_logprobs[1:], found.top_logprobs[1:], strict=True):
        assert value <= max(top.values())
    if max_tokens:
        assert found.token_logprobs[-1] == max(found.top_logprobs[-1].values())  # greedy: no rounding between the two


def test_a_suffix_is_filled_in(script, serve, tiny_tokenizer):
    engine = script("x", "y")
    listener = serve(engine)
    body = json.dumps({"prompt": "start", "suffix": "end", "max_tokens": 4})
    for path in ("/v1/completions", "/beta/completions", "/completions"):
        assert send(listener, "POST", path, body)[0] == 200
        text = tiny_tokenizer.decode(engine.prompts[-1], skip_special=False)
        assert text == "<｜begin▁of▁sentence｜><｜fim▁begin｜>start<｜fim▁hole｜>end<｜fim▁end｜>"
    engine.tokenizer.find, kept = lambda text: None, engine.tokenizer.find
    try:
        assert send(listener, "POST", "/v1/completions", body)[0] == 400
    finally:
        engine.tokenizer.find = kept


def test_stop_texts(script, serve, connect, tiny_tokenizer):
    engine = script("x", "y")
    engine.script = [*tiny_tokenizer.encode("the total is 8"), tiny_tokenizer.eos_id]
    choice = connect(serve(engine)).completions.create(model="tiny", prompt="a", stop="is", max_tokens=50).choices[0]
    assert (choice.text, choice.finish_reason) == ("the total ", "stop")


def test_the_end_of_a_stream(script, serve):
    fields = {"prompt": "a", "stream": True, "stream_options": {"include_usage": True}}
    _, _, text = send(serve(script("x", "y")), "POST", "/v1/completions", json.dumps(fields))
    events = events_of(text)
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["total_tokens"] > 1
    assert events[-3]["choices"][0]["finish_reason"] == "stop"
    assert all(event["usage"] is None for event in events[:-2])


def test_tokens_that_do_not_exist(client):
    with pytest.raises(openai.BadRequestError, match="999999"):
        client.completions.create(model="tiny", prompt=[999999])


def test_tokenize_and_back(tiny_server, tiny_tokenizer):
    def post(path, **fields):
        status, _, text = send(tiny_server, "POST", path, json.dumps(fields))
        return status, json.loads(text)

    status, found = post("/tokenize", model="tiny", prompt="start 5")
    expected = [tiny_tokenizer.bos_id, *tiny_tokenizer.encode("start 5")]
    assert (status, found) == (200, {"tokens": expected, "count": len(expected), "max_model_len": 128})
    assert post("/v1/tokenize", prompt="start 5", add_special_tokens=False)[1]["tokens"] == expected[1:]
    assert post("/detokenize", tokens=expected)[1] == {"prompt": "<｜begin▁of▁sentence｜>start 5"}
    chat = post("/tokenize", messages=[{"role": "user", "content": "start 5"}])[1]["tokens"]
    text = "<｜begin▁of▁sentence｜><｜User｜>start 5<｜Assistant｜><think>\n"
    assert post("/detokenize", tokens=chat)[1] == {"prompt": text}
    assert post("/tokenize")[0] == 422
    assert post("/tokenize", prompt="a", messages=[{"role": "user", "content": "a"}])[0] == 422
    assert post("/detokenize", tokens=[-1])[0] == 422


@pytest.mark.parametrize("stream", [False, True])
def test_the_token_that_ends_a_text_is_told_too(tiny_tokenizer, serve, connect, stream):
    """lm-eval asks for one token more than it wants to score and drops the last, whatever that is."""
    ids = tiny_tokenizer.encode("total 5")
    client = connect(serve(ScriptedEngine(tiny_tokenizer, [tiny_tokenizer.eos_id])))
    answer = client.completions.create(model="tiny", prompt=ids, max_tokens=1, echo=True, logprobs=1, stream=stream)
    parts = [one.choices[0] for one in answer] if stream else answer.choices
    assert "".join(one.text for one in parts) == "total 5"
    values = [value for one in parts if one.logprobs for value in one.logprobs.token_logprobs]
    assert values == [None, *[-0.25] * (len(ids) - 1), -0.5]
