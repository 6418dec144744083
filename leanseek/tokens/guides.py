"""Guide: the grammar of a chat format's tool calls, so that a model cannot write one that is malformed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leanseek.errors import UsageError
from leanseek.messages import ToolCall, ToolSpec
from leanseek.tokens.arguments import checked_name, joined, quote
from leanseek.tokens.dialect import Dialect
from leanseek.tokens.dsml import DSML, TagCalls
from leanseek.tokens.marks import plain
from leanseek.tokens.schemas import Raw, Value, alternatives, arguments_of, json_term, parameters_of, without_tags
from leanseek.tokens.tokenizer import Tokenizer
from leanseek.tokens.toolcalls import TaggedCalls

# Stand for what a call says while its form is looked at: what a format writes is what its grammar allows.
_NAME, _TEXT = "⟪name⟫", "⟪text⟫"
_OBJECT = joined([("⟪key⟫", "0")])
# Where any parameter may be given.
_ANY_KEY = "⟪any⟫"
_KEY_RULE = "KEY: /[A-Za-z_][A-Za-z0-9_]{0,63}/"


@dataclass(frozen=True)
class Guide:
    """What a reply with tool calls may be.

    Args:
        marker: what begins a call, tokens by their names: from there on the grammar holds. "" where it holds from
            the start, or from the end of the thinking.
        text: the grammar, in llguidance's form of Lark; it goes on behind the marker.
    """

    marker: str
    text: str


def guide(
    dialect: Dialect,
    tokenizer: Tokenizer,
    tools: Sequence[ToolSpec],
    *,
    forced: bool = False,
    name: str | None = None,
    thinking: bool = False,
    several: bool = True,
    answer: str = "",
) -> Guide:
    """Return the grammar of calls of some functions, as the format writes and reads them.

    Arguments follow each function's schema; keywords that are not known are passed over unless the tool is strict.

    Args:
        dialect: the chat format.
        tokenizer: of the model.
        tools: the functions.
        forced: whether the reply must be a call: the grammar then holds from the start.
        name: the one function that must be called, once.
        thinking: whether a forced reply thinks first.
        several: whether one reply may have more than one call.
        answer: what a reply without calls must be, as a rule's terms; "": anything. A reply is then either of the two,
            and the grammar holds from the start.
    Raises:
        UsageError: no tools, a format without them, a name that is not among them, or parameters that are not an
            object's schema.
    """
    if name is not None:
        tools, forced, several = [tool for tool in tools if tool.name == name][:1], True, False
        if not tools:
            raise UsageError(f"tool_choice names the function {name[:80]!r}, which is not among the tools")
    if not tools:
        raise UsageError("calls cannot be guided without tools")
    if not dialect.has_tools:
        raise UsageError(f"the chat format {dialect.name} has no tools; v3, r1, v31, v32 and template have")
    writer = _Writer(dialect, tokenizer)
    if not forced and not answer:
        rest = writer.opening.split(writer.marker, 1)[1]
        return Guide(writer.named(writer.marker), writer.grammar(writer.terms(rest), tools, several=several))
    lead = f"({writer.terms(dialect.after_end)})? " if thinking and dialect.after_end else ""
    first = lead + writer.terms(writer.opening)
    return Guide("", writer.grammar(first, tools, several=several, answer="" if forced else answer))


class _Writer:
    """Writes one grammar in the form of one format."""

    def __init__(self, dialect: Dialect, tokenizer: Tokenizer) -> None:
        self._marks, self._calls, self._tokenizer = dialect.marks, dialect.calls, tokenizer
        self._ids = {mark: i for i, mark in dialect.marks.of_id.items()}
        self._rules: list[str] = []
        self._texts: dict[str, str] = {}
        self._tags = isinstance(self._calls, TagCalls)
        call = ToolCall("", _NAME, "{}" if self._tags else _OBJECT)
        # What stands before the first name, between name and arguments, between two calls, and behind the last one.
        self.opening, one, other = self._calls.render([call, call]).split(_NAME)
        self._head, self._between = one.split("\n\n" if self._tags else _OBJECT, 1)
        self._end = other[len(self._head) :].removeprefix("\n\n" if self._tags else _OBJECT)
        self._head += "\n" if self._tags else ""  # each parameter brings the end of its line
        # How early a call can be told: before that a mistake would still be possible, behind it none is.
        self.marker = min(self._calls.openers, key=len)
        dsml = dialect.marks.find(DSML)
        if self._tags:
            self.marker = self.marker[: self.marker.index(dsml) + len(dsml)]
        self._stop = f"</{dsml}"
        # Where tags are no tokens, they must not stand in a value.
        self._of_tokens = bool(dialect.marks.within([self._end]))

    def grammar(self, first: str, tools: Sequence[ToolSpec], *, several: bool, answer: str = "") -> str:
        """Return the grammar of calls behind some terms, or else of an answer."""
        for i, tool in enumerate(tools):
            name = checked_name(tool.name)
            name = quote(name)[1:-1] if isinstance(self._calls, TaggedCalls) else name
            self._rules.append(f"call_{i}: {self.terms(name + self._head)} {self._arguments(f'call_{i}', tool)}")
        more = f"({self.terms(self._between)} call)* " if several else ""
        start = f"start: {first} call {more}{self.terms(self._end)}" + (f" | {answer}" if answer else "")
        call = f"call: {' | '.join(f'call_{i}' for i in range(len(tools)))}"
        return "\n".join([start, call, *self._rules]) + "\n"

    def terms(self, marked: str) -> str:
        """Return marked text as the terms of a rule."""
        found, text = list[str](), ""
        for character in marked + "\0":
            if character in self._ids or character == "\0":
                found += [json.dumps(text, ensure_ascii=False)] if text else []
                found += [f"<[{self._ids[character]}]>"] if character != "\0" else []
                text = ""
            else:
                text += character
        return " ".join(found)

    def named(self, marked: str) -> str:
        """Return marked text with its tokens' names."""
        ids = self._ids
        return "".join(self._tokenizer.decode([ids[c]], skip_special=False) if c in ids else c for c in marked)

    def _arguments(self, rule: str, tool: ToolSpec) -> str:
        if not self._tags:
            return self._json(arguments_of(tool), tool.strict)
        parameters = parameters_of(tool)
        if parameters is None:
            self._rules.append(f"{rule}_any: {self._line(_ANY_KEY, True, tool.strict)}")
            self._rules += [_KEY_RULE] if _KEY_RULE not in self._rules else []
            return f'"\\n"? {rule}_any*'
        terms = [] if any(required for *_, required in parameters) else ['"\\n"?']
        for place, (key, schema, required) in enumerate(parameters):
            self._rules.append(f"{rule}_{place}: {self._line(key, schema, tool.strict)}")
            terms.append(f"{rule}_{place}" if required else f"{rule}_{place}?")
        return " ".join(terms)

    def _line(self, key: str, schema: Any, strict: bool) -> str:
        """Return a parameter's line: a string as it is, any other value as JSON."""
        call = self._calls.render([ToolCall("", _NAME, joined([(key, quote(_TEXT))]))]).split(_NAME, 1)[1]
        as_text, tail = call[len(self._head) :].removesuffix(self._end).rsplit(_TEXT, 1)
        as_json = as_text.removesuffix('true">') + 'false">'
        # The closing tag's first token, or its whole beginning, ends a text.
        rest = self.terms(tail.removeprefix("</" if self._of_tokens else self._stop))
        ways = []
        for way in alternatives(schema):
            if isinstance(way, Raw) and not self._of_tokens and way.times != "*":
                way = Value(way.schema)  # how long a text is and where its tag begins cannot be told at once
            if isinstance(way, Raw):
                ways.append(f"{self._until_key(as_text)} {self._text(way)} {rest}")
            elif isinstance(way, Value):
                ways.append(f"{self._until_key(as_json)} {self._json(way.schema, strict)} {self.terms(tail)}")
            elif self._stop not in way:
                ways.append(self.terms(as_text + plain(way) + tail))
            else:
                ways.append(self.terms(as_json + quote(way).replace("<", "\\u003c") + tail))
        return " | ".join(ways)

    def _until_key(self, marked: str) -> str:
        """Return a tag's terms, with any name in place of the one that stands for it."""
        return " KEY ".join(self.terms(part) for part in marked.split(_ANY_KEY))

    def _text(self, way: Raw) -> str:
        """Return the term for a text up to where its closing tag begins."""
        if self._of_tokens:
            return self._rule("TEXT", "", f"/(?s:.{way.times})<\\//")
        return self._rule("text", "[lazy]", f"/(?s:.*){self._stop.replace('/', chr(92) + '/')}/")

    def _rule(self, stem: str, option: str, body: str) -> str:
        """Return the name of a rule that is written once."""
        if body not in self._texts:
            # Terminals have capitals; a name of letters alone is fine for both.
            self._texts[body] = stem + ("X" if stem.isupper() else "x") * len(self._texts)
            self._rules.append(f"{self._texts[body]}{option}: {body}")
        return self._texts[body]

    def _json(self, schema: Any, strict: bool) -> str:
        schema = {} if schema is True else dict(schema)
        schema = schema if self._of_tokens else without_tags(schema)
        kept = {key: value for key, value in schema.items() if key not in ("$schema", "$id")}
        return json_term(kept, lenient=not strict)
