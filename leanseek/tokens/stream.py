"""ChatStream: a reply's tokens into thinking, answer and tool calls as they come; every format is read by it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from leanseek.tokens.marks import Marks
from leanseek.tokens.tokenizer import Tokenizer

T = TypeVar("T")
# A reader is straight-line code that yields wherever it must wait for more of the reply.
Reading = Generator[None, None, T]
Reader = Callable[["Source", "Output"], Reading[None]]


@dataclass(frozen=True)
class ToolCallDelta:
    """What was added to one tool call.

    Args:
        index: which call of the reply, from 0.
        id, name: in a call's first delta; None in its later ones.
        arguments: a further piece of its JSON text.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Delta(NamedTuple):
    """What one token added: to the thinking, to the answer, or to tool calls."""

    reasoning_content: str = ""
    content: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


NOTHING = Delta()


def call_id(index: int) -> str:
    """Return the id of a reply's tool call where nobody gives another."""
    return f"call_{index}"


class Output:
    """Collects what a reader has understood.

    Args:
        marks: turn marked text back into text.
        call_id: index of a call -> its id.
    """

    def __init__(self, marks: Marks, call_id: Callable[[int], str]) -> None:
        self._marks, self._call_id = marks, call_id
        self._calls = 0
        self.thought = False
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._tools: list[ToolCallDelta] = []

    def reasoning(self, text: str) -> None:
        """Add to the thinking; "" says that there is some."""
        self.thought = True
        self._reasoning.append(self._marks.text(text))

    def content(self, text: str) -> None:
        """Add to the answer."""
        self._content.append(self._marks.text(text))

    def call(self, name: str) -> None:
        """Begin a tool call."""
        self._tools.append(ToolCallDelta(self._calls, self._call_id(self._calls), name))
        self._calls += 1

    def arguments(self, text: str) -> None:
        """Add to the arguments of the call begun last."""
        text = self._marks.text(text)
        if text:
            self._tools.append(ToolCallDelta(self._calls - 1, arguments=text))

    def take(self) -> Delta:
        """Return what was added since the last time."""
        if not (self._reasoning or self._content or self._tools):
            return NOTHING
        tools = tuple(self._merged()) if self._tools else ()
        delta = Delta("".join(self._reasoning), "".join(self._content), tools)
        self._reasoning.clear()
        self._content.clear()
        self._tools.clear()
        return delta

    def _merged(self) -> Iterable[ToolCallDelta]:
        """Yield one delta for each call."""
        merged: dict[int, ToolCallDelta] = {}
        for one in self._tools:
            first = merged.get(one.index, one)
            added = "" if first is one else one.arguments
            merged[one.index] = ToolCallDelta(one.index, first.id, first.name, first.arguments + added)
        return merged.values()


class Source:
    """A reply's marked text as it arrives.

    Args:
        live: marks that mean something to the reader at first; it may change them. Others are read as text.
    """

    def __init__(self, live: frozenset[str]) -> None:
        self.live = live
        self._text = ""
        self._ended = False
        self._taken: list[str] | None = None

    def feed(self, text: str) -> None:
        """Add what has arrived."""
        self._text += text

    def end(self) -> None:
        """Say that nothing more will arrive."""
        self._ended = True

    def until(self, stops: Sequence[str], say: Callable[[str], None]) -> Reading[str]:
        """Hand on text as far as the first of some stops; return that one, or "" at the end of the reply.

        Args:
            stops: the earliest counts, of two at one place the longer.
            say: gets the text before it piece by piece, nothing held back that cannot begin a stop.
        """
        while True:
            found = [(at, -len(stop), stop) for stop in stops if (at := self._text.find(stop)) >= 0]
            held = 0 if self._ended else _open_end(self._text, stops)
            free = len(self._text) - held  # from here on a stop may have begun, or a longer one
            if found and min(found)[0] < free:
                at, _, stop = min(found)
                say(self._take(at))
                self._take(len(stop))
                return stop
            say(self._take(free))
            if self._ended:
                return ""
            yield

    def either(self, choices: Sequence[str], *, space: bool = False) -> Reading[str]:
        """Take what stands here if it is one of some texts; return which, or "" and take nothing.

        Args:
            choices: none the beginning of another.
            space: whether whitespace before it is taken with it.
        """
        while True:
            rest = self._text.lstrip() if space else self._text
            for choice in choices:
                if rest.startswith(choice):
                    self._take(len(self._text) - len(rest) + len(choice))
                    return choice
            if self._ended or not any(choice.startswith(rest) for choice in choices):
                return ""
            yield

    def remember(self) -> None:
        """Keep what is taken from here on, for `remembered`."""
        self._taken = []

    def remembered(self) -> str:
        """Return all that was taken since `remember`."""
        return "".join(self._taken or ())

    def _take(self, count: int) -> str:
        taken, self._text = self._text[:count], self._text[count:]
        if self._taken is not None:
            self._taken.append(taken)
        return taken


class Trimmed:
    """Hands text on, but for one ending that belongs to the format.

    Args:
        say: gets the text.
        ending: is held back until more follows.
    """

    def __init__(self, say: Callable[[str], None], ending: str) -> None:
        self._say, self._ending, self._held = say, ending, ""

    def __call__(self, text: str) -> None:
        """Take a piece."""
        if not text:
            return
        text = self._held + text
        held = next(n for n in range(len(self._ending), -1, -1) if text.endswith(self._ending[:n]))
        self._held = text[len(text) - held :]
        self._say(text[: len(text) - held])

    def close(self) -> None:
        """Say what was held back, unless it is the ending."""
        if self._held != self._ending:
            self._say(self._held)
        self._held = ""


class ChatStream:
    """Follows one reply, token by token.

    Args:
        tokenizer, marks: of the model.
        reader: understands the format.
        live: marks that the reader knows.
        call_id: gives tool calls their ids.
    """

    def __init__(
        self, tokenizer: Tokenizer, marks: Marks, reader: Reader, live: frozenset[str], call_id: Callable[[int], str]
    ) -> None:
        self._marks, self._eos = marks.of_id, tokenizer.eos_id
        self._decoder = tokenizer.incremental()
        self._source, self._output = Source(live), Output(marks, call_id)
        self._reading = reader(self._source, self._output)
        self._ended = False
        next(self._reading, None)

    @property
    def thought(self) -> bool:
        """Whether the reply has had thinking so far, be it empty."""
        return self._output.thought

    def push(self, token_id: int) -> Delta:
        """Return what this token added."""
        if self._ended:
            return Delta()
        if token_id == self._eos:
            return self.flush()
        mark = self._marks.get(token_id, "")
        # A mark that means nothing here is a token like any other: a character may go on behind it.
        if mark and mark in self._source.live:
            self._source.feed(self._decoder.flush() + mark)
        else:
            self._source.feed(self._decoder.push(token_id))
        next(self._reading, None)
        return self._output.take()

    def flush(self) -> Delta:
        """Return what was held back, at the end of a reply."""
        if self._ended:
            return Delta()
        self._ended = True
        self._source.feed(self._decoder.flush())
        self._source.end()
        next(self._reading, None)
        return self._output.take()


def _open_end(text: str, stops: Sequence[str]) -> int:
    """Return how many characters at the end of a text could be the start of a stop."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:length]):
                longest = length
                break
    return longest
