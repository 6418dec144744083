"""DSML: V3.2's tool calls, a tag for each call and each argument; values go in and out without loss."""

from __future__ import annotations

from collections.abc import Sequence

from leanseek.errors import UsageError
from leanseek.messages import ToolCall
from leanseek.tokens.arguments import checked_name, is_json, is_name, items, quote, value_of
from leanseek.tokens.marks import Marks, plain
from leanseek.tokens.stream import Output, Reading, Source

DSML = "｜DSML｜"


class TagCalls:
    r"""Calls as `invoke` tags with a `parameter` tag for each argument, in a `function_calls` block.

    A string is written as it is (string="true"), any other value as JSON. A string that would end its own tag, which
    only a vocabulary without a DSML token allows, is written as JSON too, with `<` as \u003c. A name of a parameter
    with quotes or angle brackets is written with JSON's escapes, and a backslash in one is read as such.

    DSML carries values, not JSON text: arguments are read back as `{"key": value, ...}`, strings spelt without
    needless escapes, other values as they were.

    Args:
        marks: of the vocabulary.
    Source: DeepSeek-V3.2's encoding/encoding_dsv32.py.
    """

    def __init__(self, marks: Marks) -> None:
        d = marks.find(DSML)
        self._open, self._close = f"<{d}function_calls>", f"</{d}function_calls>"
        self._invoke, self._invoke_end = f'<{d}invoke name="', f"</{d}invoke>"
        self._parameter, self._parameter_end = f'<{d}parameter name="', f"</{d}parameter>"
        self._start, self._stop = f"<{d}", f"</{d}"
        self.openers: tuple[str, ...] = (f"\n\n{self._open}", self._open)
        self.live = marks.within([d])
        self._marks = marks

    def pattern(self) -> str:
        """Return what a call looks like, for the list of tools."""
        lines = [
            self._open,
            f'{self._invoke}NAME">',
            f'{self._parameter}PARAMETER" string="true|false">VALUE{self._parameter_end}',
            self._invoke_end,
            self._close,
        ]
        return "\n".join(lines)

    def render(self, calls: Sequence[ToolCall]) -> str:
        """Return calls as marked text.

        Raises:
            UsageError: a call's arguments are not a JSON object.
        """
        return "\n".join([f"\n\n{self._open}", *map(self._written, calls), self._close])

    def _written(self, call: ToolCall) -> str:
        pairs = items(call.arguments if call.arguments.strip() else "{}")
        if pairs is None:
            raise UsageError(
                f"arguments of the tool call {call.name!r} are {call.arguments[:80]!r}; this chat format can only say "
                f"a JSON object"
            )
        lines = "\n".join(self._line(key, value) for key, value in pairs)
        return f'{self._invoke}{checked_name(call.name)}">\n{lines}\n{self._invoke_end}'

    def _line(self, key: str, value: str) -> str:
        kind, said = "false", value
        if value.startswith('"'):
            text = str(value_of(value))
            if text == plain(text) and self._stop not in text:
                kind, said = "true", text
        if kind == "false":
            said = plain(said)
            if self._stop in said:
                said = said.replace("<", "\\u003c")
        return f'{self._parameter}{_attribute(key)}" string="{kind}">{said}{self._parameter_end}'

    def read(self, source: Source, out: Output, opener: str) -> Reading[None]:
        """A call that breaks off is left with unfinished JSON, so that nobody runs it; the rest is content."""
        source.remember()
        place = yield from source.either((self._invoke, self._close), space=True)
        given_back = opener
        if not place:
            out.content(opener)
        while place == self._invoke:
            whole = yield from self._call(source, out, given_back)
            if not whole:
                return
            source.remember()
            given_back = ""
            place = yield from source.either((self._invoke, self._close), space=True)

    def _call(self, source: Source, out: Output, given_back: str) -> Reading[bool]:
        """Read one call behind its first tag's beginning; return whether it was whole."""
        parts: list[str] = []
        stop = yield from source.until(('">', self._start, self._stop), parts.append)
        name, count = "".join(parts), 0
        good = stop == '">' and is_name(name)
        while good:
            place = yield from source.either((self._parameter, self._invoke_end), space=True)
            if place == self._invoke_end:
                if not count:
                    out.call(name)
                out.arguments("}" if count else "{}")
                return True
            key, kind = (yield from self._head(source)) if place else ("", "")
            if not kind:
                break
            if not count:
                out.call(name)
            out.arguments(f"{', ' if count else '{'}{quote(key)}: ")
            count += 1
            good = yield from self._value(source, out, kind)
        if not count:
            out.content(given_back + source.remembered())
        return False

    def _head(self, source: Source) -> Reading[tuple[str, str]]:
        """Read a parameter's name and kind; the kind is "" where the tag is broken."""
        parts: list[str] = []
        stop = yield from source.until(('" string="', ">", self._start, self._stop), parts.append)
        if stop != '" string="':
            return "", ""
        kind = yield from source.either(('true">', 'false">'))
        return _key(self._marks.text("".join(parts))), kind[:4]

    def _value(self, source: Source, out: Output, kind: str) -> Reading[bool]:
        """Say a parameter's value as JSON: a string as it comes, others when they are whole."""
        stops = (self._parameter_end, self._stop)
        if kind == "true":
            out.arguments('"')
            stop = yield from source.until(stops, lambda text: out.arguments(quote(self._marks.text(text))[1:-1]))
            if stop == self._parameter_end:
                out.arguments('"')
        else:
            parts: list[str] = []
            stop = yield from source.until(stops, parts.append)
            text = self._marks.text("".join(parts))
            out.arguments(_json(text) if stop == self._parameter_end else text)
        return stop == self._parameter_end


def _json(text: str) -> str:
    """Return a value's JSON; a model that forgot the quotes meant a string."""
    if not is_json(text):
        return quote(text)
    text = text.strip()
    return quote(str(value_of(text))) if text.startswith('"') else text


def _attribute(key: str) -> str:
    if key == plain(key) and key.isprintable() and not set(key) & set('"<>\\'):
        return key
    return quote(key)[1:-1].replace('\\"', "\\u0022").replace("<", "\\u003c").replace(">", "\\u003e")


def _key(attribute: str) -> str:
    if "\\" not in attribute:
        return attribute
    try:
        return str(value_of(f'"{attribute}"'))
    except ValueError:
        return attribute
