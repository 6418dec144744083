"""Tool calls whose arguments are JSON: DeepSeek's token-marked ones (V3, R1, V3.1) and Qwen's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from leanseek.messages import ToolCall
from leanseek.tokens.arguments import checked_name, is_name, items, quote, value_of
from leanseek.tokens.marks import Marks, plain
from leanseek.tokens.stream import Output, Reading, Source, Trimmed


class CallSyntax(Protocol):
    """How a format writes tool calls."""

    openers: tuple[str, ...]
    live: frozenset[str]

    def render(self, calls: Sequence[ToolCall]) -> str:
        """Return calls as marked text."""

    def read(self, source: Source, out: Output, opener: str) -> Reading[None]:
        """Read what follows an opener. Whatever is not a call is said as content."""


class NoCalls:
    """Of a format without tool calls: nothing opens one."""

    openers: tuple[str, ...] = ()
    live: frozenset[str] = frozenset()

    def render(self, calls: Sequence[ToolCall]) -> str:
        """Return nothing: the format has refused calls before."""
        assert not calls
        return ""

    def read(self, source: Source, out: Output, opener: str) -> Reading[None]:
        """Read nothing."""
        yield from ()


class TokenCalls:
    """Calls between special tokens, so that any text can be an argument.

    Args:
        marks: of the vocabulary.
        fenced: V3's and R1's form, with a type and a code fence; else V3.1's.
    Raises:
        CheckpointError: the vocabulary lacks a token for them.
    """

    def __init__(self, marks: Marks, *, fenced: bool) -> None:
        self._fenced = fenced
        self._begin, self._end = marks.need("<｜tool▁calls▁begin｜>"), marks.need("<｜tool▁calls▁end｜>")
        self._call, self._call_end = marks.need("<｜tool▁call▁begin｜>"), marks.need("<｜tool▁call▁end｜>")
        self._sep = marks.need("<｜tool▁sep｜>")
        self.openers: tuple[str, ...] = (self._begin,)
        self.live = marks.within([self._begin, self._end, self._call, self._call_end, self._sep])

    def pattern(self) -> str:
        """Return what a call looks like, for the list of tools."""
        return self._written([("NAME", "ARGUMENTS")])

    def render(self, calls: Sequence[ToolCall]) -> str:
        """Return calls as marked text."""
        return self._written([(checked_name(call.name), plain(call.arguments)) for call in calls])

    def _written(self, calls: Sequence[tuple[str, str]]) -> str:
        if self._fenced:
            each = [
                f"{self._call}function{self._sep}{name}\n```json\n{arguments}\n```{self._call_end}"
                for name, arguments in calls
            ]
            return self._begin + "\n".join(each) + self._end
        each = [f"{self._call}{name}{self._sep}{arguments}{self._call_end}" for name, arguments in calls]
        return self._begin + "".join(each) + self._end

    def read(self, source: Source, out: Output, opener: str) -> Reading[None]:
        """A call that breaks off keeps the arguments that came; a missing end mark is forgiven."""
        given_back = opener
        source.remember()
        place = yield from source.either((self._call, self._end), space=True)
        if not place:
            out.content(opener)
        while place == self._call:
            name = yield from self._name(source)
            if not is_name(name):
                out.content(given_back + source.remembered())
                return
            out.call(name)
            say = Trimmed(out.arguments, "\n```" if self._fenced else "")
            place = yield from source.until((self._call_end, self._call, self._end), say)
            say.close()
            source.remember()
            given_back = place if place == self._call else ""
            if place == self._call_end:
                place = yield from source.either((self._call, self._end), space=True)

    def _name(self, source: Source) -> Reading[str]:
        """Read as far as the arguments; return the name, "" if there is none."""
        stops = (self._sep, self._call_end, self._call, self._end)
        parts: list[str] = []
        if (yield from source.until(stops, parts.append)) != self._sep:
            return ""
        if self._fenced:
            parts.clear()
            if (yield from source.until(("\n", *stops), parts.append)) != "\n":
                return ""
            yield from source.either(("```json\n", "```\n"))
        return "".join(parts).strip()


class TaggedCalls:
    """Qwen's calls: an object with name and arguments between <tool_call> tags, whole or not at all.

    Args:
        marks: of the vocabulary; where it has no tokens for the tags, they are plain text.
    Source: Qwen2.5's and Qwen3's chat templates.
    """

    def __init__(self, marks: Marks) -> None:
        self._open, self._close = marks.find("<tool_call>"), marks.find("</tool_call>")
        self._are_text = len(self._open) > 1
        self.openers: tuple[str, ...] = (f"\n{self._open}", self._open)
        self.live = marks.within([self._open, self._close])
        self._marks = marks

    def render(self, calls: Sequence[ToolCall]) -> str:
        """Return calls as marked text."""
        return "\n".join(f"{self._open}\n{self._object(call)}\n{self._close}" for call in calls)

    def _object(self, call: ToolCall) -> str:
        arguments = plain(call.arguments)
        if items(arguments) is None or arguments != arguments.strip() or (self._are_text and "<" in arguments):
            # As a string, any text can be said, and no tag can stand in it.
            arguments = quote(arguments).replace("<", "\\u003c")
        return f'{{"name": {quote(checked_name(call.name))}, "arguments": {arguments}}}'

    def read(self, source: Source, out: Output, opener: str) -> Reading[None]:
        """Read a call as far as its closing tag; what is none is content as it was written."""
        stop = opener
        while stop.endswith(self._open):
            opener, parts = stop, list[str]()
            stop = yield from source.until((self._close, self._open), parts.append)
            body = "".join(parts)
            call = _call_in(self._marks.text(body)) if stop == self._close else None
            if call is not None:
                out.call(call[0])
                out.arguments(call[1])
            else:
                out.content(opener + body + (stop if stop == self._close else ""))


def _call_in(text: str) -> tuple[str, str] | None:
    """Return a call's name and arguments, or None if the text is none."""
    values = dict(items(text) or ())
    written, arguments = values.get("name", ""), values.get("arguments", "{}")
    name = str(value_of(written)) if written.startswith('"') else ""
    if not is_name(name):
        return None
    return name, plain(str(value_of(arguments))) if arguments.startswith('"') else arguments
