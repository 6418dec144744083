"""Guided replies: whatever is drawn, the format's own parser finds calls of known functions in it, and nothing else."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from leanseek.engine.grammar import GrammarCompiler, terms_of
from leanseek.engine.request import Grammar
from leanseek.errors import EngineError, UsageError
from leanseek.messages import Message, ToolCall, ToolSpec
from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.guides import Guide, guide
from leanseek.tokens.schemas import arguments_of, without_tags
from leanseek.tokens.tokenizer import Tokenizer

QWEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if tools %}<tool_call>{% endif %}<|im_start|>assistant\n{% if false %}<think></think>{% endif %}"
)
WEATHER = ToolSpec(
    "weather",
    "what it is like",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer", "minimum": 1, "maximum": 12},
            "unit": {"enum": ["C", "F", "a</b", None]},
            "note": {"anyOf": [{"type": "string", "maxLength": 6}, {"type": "null"}]},
            "place": {"$ref": "#/$defs/place"},
            "code": {"type": "string", "pattern": "^[a-c]{2}$"},
        },
        "required": ["city", "place"],
        "$defs": {
            "place": {
                "type": "object",
                "properties": {
                    "x": {"type": "number", "minimum": 0},
                    "tags": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["x"],
                "additionalProperties": False,
            }
        },
    },
)
SAY = ToolSpec("say", "", {"type": "object", "properties": {"text": {"type": ["string", "boolean"]}, "more": {}}})
TOOLS = [WEATHER, ToolSpec("now"), ToolSpec("now_all", "", {"type": "object"}), SAY]
FORMS = ("v3", "r1", "v31", "leanseek", "v32", "v32 of text", "template", "template of text")


def with_tokens(base: Tokenizer, *texts: str, template: str | None = None) -> Tokenizer:
    """Return a copy of a tokenizer that has some more tokens."""
    fast = type(base._fast).from_str(base._fast.to_str())
    fast.add_tokens([AddedToken(text, special=False, normalized=False) for text in texts])
    return Tokenizer(fast, {**base._config, **({"chat_template": template} if template else {})})


@pytest.fixture(scope="module")
def make(tiny_tokenizer: Tokenizer) -> Callable[[str], tuple[ChatFormat, GrammarCompiler]]:
    """Return a function that gives a chat format and the compiler of its vocabulary."""
    made: dict[str, tuple[ChatFormat, GrammarCompiler]] = {}

    def one(form: str) -> tuple[ChatFormat, GrammarCompiler]:
        if form not in made:
            name = form.removesuffix(" of text")
            added = {"v32": ("｜DSML｜",), "template": ("<tool_call>", "</tool_call>")}.get(name, ())
            template = QWEN if name == "template" else None
            tokenizer = with_tokens(tiny_tokenizer, *(() if "of text" in form else added), template=template)
            size = tokenizer.vocab_size + 9
            made[form] = ChatFormat(tokenizer, name), GrammarCompiler(tokenizer, size, [tokenizer.eos_id])
        return made[form]

    return one


def draw(
    compiler: GrammarCompiler,
    grammar: Grammar,
    seed: int,
    said: Sequence[int] = (),
    *,
    tokens: int = 600,
    **thinking: Any,
) -> tuple[list[int], bool]:
    """Return a reply of random logits that begins with what is said, and whether it came to its end."""
    state = compiler.compile(grammar, **thinking)
    generator = torch.Generator().manual_seed(seed)
    # Otherwise random texts hardly ever end.
    liked = torch.zeros(compiler.vocab_size)
    tokenizer = compiler._tokenizer
    for i in range(compiler.vocab_size):
        piece = tokenizer.bytes_of(i)
        liked[i] = (
            4 * (piece in (b'"', b"}", b"]", b"<", b"/")) + 5 * (i in tokenizer.added_tokens) - 2 * piece.isspace()
        )
    ids: list[int] = []
    while not state.complete and len(ids) < tokens:
        logits = torch.randn(compiler.vocab_size, generator=generator) + liked
        state.mask_(logits)
        assert state.error is None
        token = said[len(ids)] if len(ids) < len(said) else int(logits.argmax())
        assert logits[token] > float("-inf"), (ids, token)
        state.note(token)
        ids.append(token)
    assert state.error is None
    return ids, state.complete


def fits(value: Any, schema: Any, root: Mapping[str, Any]) -> bool:
    """Whether a value is what a schema allows; for the keywords used here."""
    if schema is True or schema == {}:
        return True
    if "$ref" in schema:
        return fits(value, root["$defs"][schema["$ref"].split("/")[-1]], root)
    if "anyOf" in schema and not any(fits(value, one, root) for one in schema["anyOf"]):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None), "array": list}
    kinds["object"] = dict
    wanted = schema.get("type", list(kinds))
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if not any(isinstance(value, kinds[one]) and ((one == "boolean") == isinstance(value, bool)) for one in wanted):
        return False
    if isinstance(value, str):
        return schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 1 << 30)
    if isinstance(value, list):
        return all(fits(one, schema.get("items", True), root) for one in value)
    if isinstance(value, dict):
        known = schema.get("properties", {})
        others = schema.get("additionalProperties", True)
        each = (fits(one, known[key], root) if key in known else others is not False for key, one in value.items())
        return set(schema.get("required", ())) <= set(value) and all(each)
    return not isinstance(value, int | float) or schema.get("minimum", value) <= value <= schema.get("maximum", value)


def check(message: Message) -> None:
    """Assert that every call is of a known function, with arguments that its schema allows."""
    for call in message.tool_calls:
        tool = next(tool for tool in TOOLS if tool.name == call.name)
        schema = arguments_of(tool)
        assert fits(json.loads(call.arguments), schema, schema), call


def grammar_of(found: Guide) -> Grammar:
    return Grammar("tools" if found.marker else "lark", found.text, found.marker, after_thinking=True)


@pytest.mark.parametrize("form", FORMS)
def test_every_call_of_random_replies_is_right(form: str, make: Callable[..., Any]) -> None:
    chat, compiler = make(form)
    found = guide(chat._dialect, chat.tokenizer, TOOLS)
    opener = chat._marks.encode(min(chat._dialect.calls.openers, key=len))
    ended = 0
    for seed in range(25):
        said = [*chat.tokenizer.encode("start "), *opener] if seed % 5 else []
        ids, complete = draw(compiler, grammar_of(found), seed, said, end_think_id=chat.end_think_id)
        message = chat.parse(ids, starts_in_thinking=False)
        if complete:
            ended += 1
            check(message)
            assert not seed % 5 or (message.content == "start " and message.tool_calls)
    assert ended > 12


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("thinking", [False, True])
def test_forced_replies_are_calls_after_the_thinking(form: str, thinking: bool, make: Callable[..., Any]) -> None:
    chat, compiler = make(form)
    thinking = thinking and chat.thinks
    found = guide(chat._dialect, chat.tokenizer, TOOLS, forced=True, thinking=thinking)
    closing = [chat.end_think_id] if thinking else []
    thought = [*chat.tokenizer.encode("think of it"), *closing] if thinking else []
    ended = 0
    for seed in range(6):
        ids, complete = draw(
            compiler, grammar_of(found), seed, thought, starts_in_thinking=thinking, end_think_id=chat.end_think_id
        )
        chat_thinks = chat._dialect.opens_thinking
        message = chat.parse(ids if chat_thinks else ids[len(thought) :], starts_in_thinking=thinking)
        if complete:
            ended += 1
            assert message.content == ("\n\n" if thinking and not chat_thinks and message.content else "")
            assert message.tool_calls
            check(message)
    assert ended


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["json_schema", "regex"])
def test_a_reply_is_calls_or_the_answer_that_is_wanted(form: str, kind: str, make: Callable[..., Any]) -> None:
    chat, compiler = make(form)
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    answer = Grammar("json_schema", json.dumps(schema)) if kind == "json_schema" else Grammar("regex", r"[ab]/\/c+")
    thinking = chat.thinks
    terms = terms_of(answer, after_thinking=thinking)
    found = guide(chat._dialect, chat.tokenizer, TOOLS, thinking=thinking, answer=terms)
    assert not found.marker
    thought = [*chat.tokenizer.encode("think of it"), chat.end_think_id] if thinking else []
    opening = chat._marks.encode(chat._dialect.calls.render([ToolCall("", "now", "{}")]))[:2]
    ends = {"calls": 0, "answer": 0}
    for seed in range(8):
        said = [*thought, *(opening if seed % 2 else chat.tokenizer.encode("{" if kind == "json_schema" else "a"))]
        ids, complete = draw(
            compiler, grammar_of(found), seed, said, starts_in_thinking=thinking, end_think_id=chat.end_think_id
        )
        opens = chat._dialect.opens_thinking
        message = chat.parse(ids if opens else ids[len(thought) :], starts_in_thinking=thinking)
        if not complete:
            continue
        ends["calls" if seed % 2 else "answer"] += 1
        assert bool(message.tool_calls) == bool(seed % 2)
        check(message)
        if not seed % 2 and kind == "json_schema":
            assert fits(json.loads(message.content), schema, schema)
        elif not seed % 2:
            assert re.fullmatch(answer.text, message.content.strip())
    assert min(ends.values()) > 0
    state = compiler.compile(grammar_of(found), thinking, chat.end_think_id)
    for token in [*thought, *chat.tokenizer.encode("x")]:
        state.note(token)
    assert state.error is not None


def test_a_named_function_alone_is_called_once(make: Callable[..., Any]) -> None:
    for form in FORMS:
        chat, compiler = make(form)
        found = guide(chat._dialect, chat.tokenizer, TOOLS, name="now")
        for seed in range(3):
            ids, complete = draw(compiler, grammar_of(found), seed, end_think_id=chat.end_think_id)
            assert complete
            assert chat.parse(ids, starts_in_thinking=False) == Message(
                "assistant", "", tool_calls=(ToolCall("call_0", "now", "{}"),)
            )


@pytest.mark.parametrize("form", FORMS)
def test_what_the_format_writes_is_allowed(form: str, make: Callable[..., Any]) -> None:
    chat, compiler = make(form)
    calls = [
        ToolCall(
            "call_0", "weather", '{"city": "a \\"b\\"", "days": 3, "unit": "C", "place": {"x": 1.5, "tags": ["t"]}}'
        ),
        ToolCall("call_1", "now", "{}"),
        ToolCall("call_2", "say", '{"text": true}'),
    ]
    message = Message("assistant", "so", None, tuple(calls))
    said = chat.reply(message)
    ids, complete = draw(compiler, grammar_of(guide(chat._dialect, chat.tokenizer, TOOLS)), 0, said)
    assert complete and ids == said[: len(ids)] and len(said) - len(ids) <= 1  # the end needs no token
    assert chat.parse(ids, starts_in_thinking=False) == message


@pytest.mark.parametrize("form", FORMS)
def test_one_call_where_several_are_not_wanted(form: str, make: Callable[..., Any]) -> None:
    chat, compiler = make(form)
    grammar = grammar_of(guide(chat._dialect, chat.tokenizer, TOOLS[1:2], several=False, forced=True))
    ids, complete = draw(compiler, grammar, 0)
    assert complete and len(chat.parse(ids, starts_in_thinking=False).tool_calls) == 1


def test_no_text_ends_its_own_tag(make: Callable[..., Any]) -> None:
    """A model that wants nothing more than to say the closing tag within a text cannot."""
    for form in ("v32", "v32 of text"):
        chat, compiler = make(form)
        found = guide(
            chat._dialect,
            chat.tokenizer,
            [ToolSpec("f", "", {"properties": {"a": {"type": "string"}}, "required": ["a"]})],
            forced=True,
        )
        dialect = chat._dialect.calls
        said = chat._marks.encode(
            f'\n\n{dialect._open}\n{dialect._invoke}f">\n{dialect._parameter}a" string="true">x</y'
        )
        ids, complete = draw(compiler, grammar_of(found), 3, said)
        (call,) = chat.parse(ids, starts_in_thinking=False).tool_calls[:1]
        assert json.loads(call.arguments)["a"].startswith("x</y") if complete else True
        state = compiler.compile(grammar_of(found))
        for token in [*said, *chat._marks.encode(dialect._stop)]:
            state.note(token)
        after = torch.zeros(compiler.vocab_size)
        state.mask_(after)
        allowed = {chat.tokenizer.bytes_of(i) for i in range(compiler.vocab_size) if after[i] == 0}
        assert allowed and all(b"parameter>\n".startswith(one) for one in allowed)


def test_tokens_of_calls_stand_nowhere_else(make: Callable[..., Any]) -> None:
    chat, compiler = make("v31")
    state = compiler.compile(grammar_of(guide(chat._dialect, chat.tokenizer, TOOLS)))
    logits = torch.zeros(compiler.vocab_size)
    state.mask_(logits)
    barred = {i for i in range(compiler.vocab_size) if logits[i] < 0}
    names = "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
    assert barred == {chat.tokenizer.id_of(name) for name in names}


names = st.text("abcxyz_", min_size=1, max_size=4)
leaves = st.sampled_from(
    [
        *({"type": kind} for kind in ("string", "integer", "boolean", "null", ["string", "null"])),
        {"type": "string", "minLength": 1, "maxLength": 3},
        {"enum": ["p", "q q", 3]},
        {"type": "string", "enum": ["u"]},
    ]
)
schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda one: {"type": "array", "items": one}, inner),
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
        st.builds(
            lambda some: {"type": "object", "properties": some, "required": [*some][:1], "additionalProperties": False},
            st.dictionaries(names, inner, max_size=3),
        ),
    ),
    max_leaves=4,
)


@settings(max_examples=16, deadline=None, derandomize=True)
@given(st.dictionaries(names, schemas, max_size=4), st.sampled_from(FORMS), st.integers(0, 99))
def test_arguments_follow_any_schema(make: Callable[..., Any], some: dict[str, Any], form: str, seed: int) -> None:
    chat, compiler = make(form)
    required = sorted(some)[:2]
    tool = ToolSpec("f", "", {"type": "object", "properties": some, "required": required}, strict=True)
    grammar = grammar_of(guide(chat._dialect, chat.tokenizer, [tool], name="f"))
    ids, complete = draw(compiler, grammar, seed, tokens=400)
    (call,) = chat.parse(ids, starts_in_thinking=False).tool_calls or (None,)
    if complete:
        assert call is not None
        schema = arguments_of(tool)
        assert fits(json.loads(call.arguments), schema, schema), (call, tool)


def test_what_cannot_be_guided_is_refused(make: Callable[..., Any], tiny_tokenizer: Tokenizer) -> None:
    chat, compiler = make("v32")
    args = chat._dialect, chat.tokenizer
    with pytest.raises(UsageError, match="not among the tools"):
        guide(*args, TOOLS, name="weathr")
    with pytest.raises(UsageError, match="without tools"):
        guide(*args, [])
    with pytest.raises(UsageError, match="has no tools"):
        guide(ChatFormat(tiny_tokenizer, "v2")._dialect, tiny_tokenizer, TOOLS)
    with pytest.raises(UsageError, match="'array'; an object's schema"):
        guide(*args, [ToolSpec("f", "", {"type": "array"})])
    odd = {"type": "object", "properties": {"a": {}}, "minProperties": 1}
    with pytest.raises(UsageError, match="strict tool 'f' have minProperties"):
        guide(*args, [ToolSpec("f", "", odd, strict=True)])
    guide(*args, [ToolSpec("f", "", odd)])
    unknown = {"type": "object", "properties": {"a": {"type": "integer", "format": "odd", "not": {}}}}
    compiler.compile(grammar_of(guide(*args, [ToolSpec("f", "", unknown)])))
    with pytest.raises(EngineError, match="grammar cannot be used"):
        compiler.compile(grammar_of(guide(*args, [ToolSpec("f", "", unknown, strict=True)])))


def test_no_tag_in_values_whose_schema_says_so(make: Callable[..., Any]) -> None:
    chat, compiler = make("v3")
    for schema in (
        {},
        {"type": "object"},
        {"items": {}},
        {"type": "string", "pattern": "^.{2}$"},
        {"enum": ["<", "a"]},
    ):
        text = json.dumps(without_tags(schema))
        rng = random.Random(0)
        for _ in range(4):
            ids, _ = draw(compiler, Grammar("json_schema", text), rng.randrange(1000), tokens=200)
            assert "<" not in chat.tokenizer.decode(ids)
