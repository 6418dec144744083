"""Grammars: what is drawn under a mask is what was asked for; what cannot be asked for is told in a sentence."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanseek.engine import grammar as module
from leanseek.engine.grammar import KEPT_GRAMMARS, GrammarCompiler, GrammarState
from leanseek.engine.request import Grammar
from leanseek.errors import EngineError
from leanseek.tokens.tokenizer import END_THINK, THINK, Tokenizer

PADDED = 350


@pytest.fixture(scope="module")
def compiler(tiny_tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tiny_tokenizer, PADDED, [tiny_tokenizer.eos_id])


def draw(state: GrammarState, seed: int, tokenizer: Tokenizer, tokens: int = 300) -> tuple[list[int], bool]:
    """Return a reply of random logits with a liking for ends, and whether it came to its own."""
    generator = torch.Generator().manual_seed(seed)
    liked = torch.tensor([4.0 * (tokenizer.bytes_of(i) in (b'"', b"}", b"]")) for i in range(PADDED)])
    liked[tokenizer.eos_id] = 3
    ids: list[int] = []
    while not state.complete and len(ids) < tokens:
        logits = torch.randn(PADDED, generator=generator) + liked
        state.mask_(logits)
        assert state.error is None
        token = int(logits.argmax())
        assert logits[token] > float("-inf") and token < tokenizer.vocab_size
        state.note(token)
        ids.append(token)
    return ids, state.complete


def allowed(state: GrammarState) -> set[int]:
    logits = torch.zeros(PADDED)
    state.mask_(logits)
    assert state.error is None
    return set((logits == 0).nonzero().squeeze(1).tolist())


def test_any_json_object(compiler: GrammarCompiler, tiny_tokenizer: Tokenizer) -> None:
    ended = 0
    for seed in range(60):
        ids, complete = draw(compiler.compile(Grammar("json_object")), seed, tiny_tokenizer)
        if complete:
            ended += 1
            assert isinstance(json.loads(tiny_tokenizer.decode(ids)), dict)
    assert ended > 40


@pytest.mark.parametrize(
    "expression", [r"[0-9]{2,4}", r"(yes|no|maybe)!?", r"a*b[^c]{3}", r"[a-z]+@\d\.com", r"[^<]*é?"]
)
def test_regular_expressions(expression: str, compiler: GrammarCompiler, tiny_tokenizer: Tokenizer) -> None:
    ended = 0
    for seed in range(12):
        ids, complete = draw(compiler.compile(Grammar("regex", expression)), seed, tiny_tokenizer)
        if complete:
            ended += 1
            assert re.fullmatch(expression, tiny_tokenizer.decode(ids))
    assert ended


values = st.recursive(
    st.sampled_from([{"type": "integer"}, {"type": "boolean"}, {"const": "k"}, {"enum": [1, None]}, {"type": "null"}]),
    lambda inner: st.one_of(
        st.builds(lambda one: {"type": "array", "items": one, "maxItems": 3}, inner),
        st.builds(
            lambda some: {"type": "object", "properties": some, "required": [*some], "additionalProperties": False},
            st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3),
        ),
    ),
    max_leaves=5,
)


def shape(schema: dict[str, Any], value: Any) -> bool:
    if "const" in schema or "enum" in schema:
        return value in schema.get("enum", [schema.get("const")])
    if schema["type"] == "array":
        return isinstance(value, list) and len(value) <= 3 and all(shape(schema["items"], one) for one in value)
    if schema["type"] == "object":
        return set(value) == set(schema["properties"]) and all(
            shape(schema["properties"][k], v) for k, v in value.items()
        )
    return type(value) is {"integer": int, "boolean": bool, "null": type(None)}[schema["type"]]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(values, st.integers(0, 99))
def test_json_schemas(compiler: GrammarCompiler, tiny_tokenizer: Tokenizer, schema: dict[str, Any], seed: int) -> None:
    ids, complete = draw(compiler.compile(Grammar("json_schema", json.dumps(schema))), seed, tiny_tokenizer, 1500)
    assert not complete or shape(schema, json.loads(tiny_tokenizer.decode(ids)))


def test_a_grammar_waits_for_the_end_of_thinking(compiler: GrammarCompiler, tiny_tokenizer: Tokenizer) -> None:
    end, think, eos = tiny_tokenizer.id_of(END_THINK), tiny_tokenizer.id_of(THINK), tiny_tokenizer.eos_id
    grammar = Grammar("json_object", after_thinking=True)
    state = compiler.compile(grammar, starts_in_thinking=True, end_think_id=end)
    # Thinking is free, but it cannot be the whole reply.
    assert state.free and allowed(state) == set(range(PADDED)) - {eos}
    for token in [*tiny_tokenizer.encode('{"a": </think> "'), think, end]:
        state.note(token)
    assert not state.free
    said = {tiny_tokenizer.bytes_of(token)[:1] for token in allowed(state)}
    assert said == {b"{", b"\n"}
    for token in tiny_tokenizer.encode("\n\n{}"):
        assert token in allowed(state)
        state.note(token)
    assert state.complete
    at_once = compiler.compile(grammar, starts_in_thinking=False, end_think_id=end)
    assert {tiny_tokenizer.bytes_of(token)[:1] for token in allowed(at_once)} == {b"{"}
    # Where the reply may open its thinking itself, it may do so at once or never.
    for first in (think, None):
        state = compiler.compile(grammar, end_think_id=end, think_id=think)
        assert think in allowed(state)
        state.note(tiny_tokenizer.encode("{")[0] if first is None else first)
        assert state.free is (first is not None) and (think in allowed(state)) is state.free


def test_a_thinking_that_ends_with_text(compiler: GrammarCompiler, tiny_tokenizer: Tokenizer) -> None:
    state = compiler.compile(Grammar("regex", "a", after_thinking=True), starts_in_thinking=True)
    for token in tiny_tokenizer.encode("right </think>"):
        assert token in allowed(state)
        state.note(token)
    assert not state.free and allowed(state) == set(tiny_tokenizer.encode("a"))


def test_tools_are_free_text_until_the_marker(compiler: GrammarCompiler, tiny_tokenizer: Tokenizer) -> None:
    t = tiny_tokenizer
    state = compiler.compile(Grammar("tools", 'start: "(" /[0-9]/ ")"', marker="answer<"))
    assert allowed(state) == set(range(PADDED))  # no token has the marker and more
    for token in t.encode("the answer is answer answer"):
        state.note(token)
    assert t.eos_id in allowed(state) and state.free
    beyond = [i for i in range(PADDED) if t.bytes_of(i).startswith(b"<") and t.bytes_of(i) != b"<"]
    assert allowed(state) == set(range(PADDED)) - set(beyond)
    state.note(t.encode("<")[0])
    assert not state.free and {t.bytes_of(i) for i in allowed(state)} == {b"("}
    for token in t.encode("(7)"):
        assert not state.complete and token in allowed(state)
        state.note(token)
    assert state.complete and allowed(state) == {t.eos_id}
    # An end before the marker is an end.
    state = compiler.compile(Grammar("tools", 'start: "(" /[0-9]/ ")"', marker="answer<"))
    state.note(t.eos_id)
    assert state.complete


def test_a_token_of_many_characters_does_not_pass_the_marker(
    compiler: GrammarCompiler, tiny_tokenizer: Tokenizer
) -> None:
    t = tiny_tokenizer
    longest = max((i for i in range(t.vocab_size) if t.bytes_of(i).isalpha()), key=lambda i: len(t.bytes_of(i)))
    word = t.bytes_of(longest).decode()
    state = compiler.compile(Grammar("tools", 'start: "!"', marker="#" + word[:2]))
    assert longest in allowed(state)
    state.note(t.encode("#")[0])
    assert longest not in allowed(state)


def test_what_cannot_be_used_is_told_and_kept(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    for grammar, reason in (
        (Grammar("json_schema", '{"type": "odd"}'), "JSON schema cannot be used: .*Invalid type: odd"),
        (Grammar("json_schema", '{"not": {}}'), "Unimplemented keys"),
        (Grammar("json_schema", "{"), "not JSON"),
        (Grammar("json_schema", "[" * 60000), "not JSON"),
        (Grammar("json_schema", '{"items":' * 900 + "{}" + "}" * 900), "JSON schema cannot be used"),
        (Grammar("json_schema", "3"), "an object is needed"),
        (Grammar("json_schema", '{"$ref": "file:///etc/passwd"}'), "JSON schema cannot be used"),
        (Grammar("regex", "a" * 5000), "5,000 characters; at most 4,096"),
        (Grammar("regex", "(a"), "regular expression cannot be used: .*invalid regex"),
        (Grammar("lark", "strat: /a/"), "grammar cannot be used"),
        (Grammar("tools", "start: /a/", marker=""), "marker = ''"),
    ):
        for _ in range(2):
            with pytest.raises(EngineError, match=f"(?s){reason}"):
                compiler.compile(grammar)
    monkeypatch.setattr(module, "objection", lambda *_, **__: pytest.fail("it was known already"))
    with pytest.raises(EngineError, match="Invalid type: odd"):
        compiler.compile(Grammar("json_schema", '{"type": "odd"}'))


def test_few_grammars_are_kept(tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(module, "objection", lambda kind, text, **_: asked.append(text) or "")
    compiler = GrammarCompiler(tiny_tokenizer, PADDED, [tiny_tokenizer.eos_id])
    for i in (*range(KEPT_GRAMMARS), 0, KEPT_GRAMMARS, 0, 1):
        compiler.compile(Grammar("regex", f"{i}"))
    assert asked == [*map(str, range(KEPT_GRAMMARS + 1)), "1"]


def test_two_replies_of_one_grammar_do_not_meddle(compiler: GrammarCompiler, tiny_tokenizer: Tokenizer) -> None:
    one, two = (compiler.compile(Grammar("regex", "ab")) for _ in range(2))
    one.note(tiny_tokenizer.encode("a")[0])
    assert {tiny_tokenizer.bytes_of(i) for i in allowed(one)} == {b"b"}
    assert {tiny_tokenizer.bytes_of(i)[:1] for i in allowed(two)} == {b"a"}


def test_a_token_against_the_grammar_is_an_error_not_a_crash(
    compiler: GrammarCompiler, tiny_tokenizer: Tokenizer
) -> None:
    state = compiler.compile(Grammar("regex", "ab"))
    state.note(tiny_tokenizer.encode("x")[0])
    assert state.error is not None and "could not be held to its grammar" in state.error
    logits = torch.zeros(PADDED)
    state.mask_(logits)
    state.note(0)
    assert torch.isfinite(logits).all() and not state.complete
