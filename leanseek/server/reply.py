"""Reply: one reply's tokens as they come, made into thinking, answer and tool calls, stop texts cut out."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from leanseek.engine.request import Event, TopLogprobs
from leanseek.messages import ToolCall
from leanseek.tokens.chat import ChatFormat, Delta, ToolCallDelta
from leanseek.tokens.stream import call_id as numbered
from leanseek.tokens.tokenizer import Tokenizer


class Scored(NamedTuple):
    """A token that was said.

    Args:
        text: what it added; "" where it only begins a character, or is held back for the next one's.
        logprob: in nats.
        token_id: which it was.
        top: the most likely tokens at its place, if asked for.
    """

    text: str
    logprob: float
    token_id: int = -1
    top: TopLogprobs = ()


@dataclass
class Said:
    """What one event added to a reply.

    Args:
        reasoning_content, content: text for the thinking and for the answer.
        reasoning_logprobs, content_logprobs: each token with its log-probability; their texts join to the two above.
        tool_calls: what was added to calls.
    """

    reasoning_content: str = ""
    content: str = ""
    reasoning_logprobs: list[Scored] = field(default_factory=list)
    content_logprobs: list[Scored] = field(default_factory=list)
    tool_calls: list[ToolCallDelta] = field(default_factory=list)

    @property
    def has_logprobs(self) -> bool:
        """Whether any token was let out."""
        return bool(self.reasoning_logprobs or self.content_logprobs)

    @classmethod
    def joined(cls, parts: Sequence[Said]) -> Said:
        """Return what all parts said together."""
        return cls(
            "".join(part.reasoning_content for part in parts),
            "".join(part.content for part in parts),
            [one for part in parts for one in part.reasoning_logprobs],
            [one for part in parts for one in part.content_logprobs],
            [one for part in parts for one in part.tool_calls],
        )


class _Held(NamedTuple):
    """A token that waits until it cannot be part of a stop text."""

    token_id: int
    logprob: float
    text: str
    top: TopLogprobs
    partial: bool  # it ends within a character


class Parser(Protocol):
    """Makes tokens into what they say."""

    def push(self, token_id: int) -> Delta:
        """Return what this token added."""

    def flush(self) -> Delta:
        """Return what was held back, at the end."""


class PlainText:
    """Takes every token for text: for what is no chat.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decoder = tokenizer.incremental()

    def push(self, token_id: int) -> Delta:
        """Return what this token added."""
        return Delta(content=self._decoder.push(token_id))

    def flush(self) -> Delta:
        """Return what was held back, at the end."""
        return Delta(content=self._decoder.flush())


class Reply:
    """Follows one reply. A token is let out when no stop text can begin in it, so none ever shows.

    Stop texts are looked for as the engine does, in thinking and answer alike.

    Args:
        chat: of the model.
        stop: texts that end the reply.
        thinking: whether the reply starts with thinking.
        call_id: a tool call's place -> its id.
        plain: whether it is text alone, no chat.
        tools: whether there is anything to call; if not, what looks like a call is text.
        past_end: whether it goes on after the token that ends replies, which then says nothing (`ignore_eos`).
    """

    def __init__(
        self,
        chat: ChatFormat,
        stop: Sequence[str],
        *,
        thinking: bool,
        call_id: Callable[[int], str] = numbered,
        plain: bool = False,
        tools: bool = True,
        past_end: bool = False,
    ) -> None:
        self.tokens = self.reasoning_tokens = self.cached_tokens = self.calls = 0
        self.finish_reason: str | None = None
        self.stopped_by: str | None = None  # the stop text
        self._tokenizer, self._stop = chat.tokenizer, tuple(stop)
        self._end_think_id = chat.end_think_id
        self._tools, self._plain = tools, plain
        self._says_nothing = self._tokenizer.eos_id if past_end else None
        thinking = thinking and chat.thinks
        self._parser: Parser = (
            PlainText(self._tokenizer) if plain else chat.stream(starts_in_thinking=thinking, call_id=call_id)
        )
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held: list[_Held] = []
        self._thought: list[str] = []
        self._calls: list[ToolCallDelta] = []
        self._arrives_in_thinking = self._leaves_in_thinking = thinking

    def push(self, event: Event) -> Said:
        """Take an event of this reply; return what can be shown now."""
        said = Said()
        if self.finish_reason is not None:
            return said
        self.cached_tokens = self.cached_tokens or event.cached_tokens
        if event.token_id is not None:
            self._take(event.token_id, event.logprob or 0.0, event.top_logprobs or ())
        window = "".join(one.text for one in self._held)
        found = [(at, stop) for stop in self._stop if (at := window.find(stop)) >= 0]
        if found:
            cut, self.stopped_by = min(found)
            self._let_out(cut, said, cut=True)
            self._end(said, "stop")
        elif event.finish_reason is not None:
            self._let_out(len(window), said, last=True)
            self._end(said, event.finish_reason)
        else:
            self._let_out(len(window) - _open_end(window, self._stop), said)
        return said

    def end(self, reason: str) -> Said:
        """End the reply here, whatever the engine does; return what was held back."""
        said = Said()
        if self.finish_reason is None:
            self._let_out(sum(len(one.text) for one in self._held), said, last=True)
            self._end(said, reason)
        return said

    def done(self) -> tuple[str, list[ToolCall]]:
        """Return what it thought, and its calls."""
        return "".join(self._thought), whole_calls(self._calls)

    def _end(self, said: Said, reason: str) -> None:
        self._add(self._parser.flush(), None, said)
        calls = self.calls and reason == "stop" and self.stopped_by is None
        self.finish_reason = "tool_calls" if calls else reason
        if not any(self._thought):  # it might have thought, and did not
            self.reasoning_tokens = 0

    def _take(self, token_id: int, logprob: float, top: TopLogprobs) -> None:
        self.tokens += 1
        ends_thinking = self._arrives_in_thinking and token_id == self._end_think_id
        if ends_thinking:
            self._arrives_in_thinking = False
        self.reasoning_tokens += self._arrives_in_thinking
        # The thinking's bytes and the answer's never make one character.
        ends_text = ends_thinking or token_id == self._tokenizer.eos_id
        text = self._utf8.decode(b"" if ends_text else self._tokenizer.bytes_of(token_id), ends_text)
        self._held.append(_Held(token_id, logprob, text, top, bool(self._utf8.getstate()[0])))

    def _let_out(self, characters: int, said: Said, *, cut: bool = False, last: bool = False) -> None:
        """Let out the tokens within the first `characters`; with `cut`, also the part of the next that is."""
        end = count = 0
        for one in self._held:
            if end + len(one.text) > characters:
                break
            end += len(one.text)
            count += 1
        while not last and count and self._held[count - 1].partial:  # goes with what completes its character
            count -= 1
            end -= len(self._held[count].text)
        for one in self._held[:count]:
            self._say(one, said)
        if not cut:
            del self._held[:count]
            return
        if end < characters:
            rest = self._held[count:]
            kept = "".join(one.text for one in rest)[: characters - end]
            delta = Delta()
            for token in self._tokenizer.encode(kept):
                delta = _merged(delta, self._parser.push(token))
            self._add(delta, next(one for one in rest if one.text), said)
        self._held.clear()

    def _say(self, one: _Held, said: Said) -> None:
        delta = Delta() if one.token_id == self._says_nothing else self._parser.push(one.token_id)
        self._add(delta, one, said)
        if one.token_id == self._end_think_id:
            self._leaves_in_thinking = False

    def _add(self, delta: Delta, one: _Held | None, said: Said) -> None:
        """Note what a token said; without one, what was held back is a part of the last token."""
        if delta.tool_calls and not self._tools:
            text = "".join((call.name or "") + call.arguments for call in delta.tool_calls)
            delta = Delta(delta.reasoning_content, delta.content + text)
        said.reasoning_content += delta.reasoning_content
        self._thought.append(delta.reasoning_content)
        self._calls += delta.tool_calls
        said.content += delta.content
        said.tool_calls += delta.tool_calls
        self.calls += sum(call.id is not None for call in delta.tool_calls)
        if delta.content or delta.tool_calls:
            self._leaves_in_thinking = False
            if self._end_think_id is None:
                self._arrives_in_thinking = False
        if one is None:
            if delta.reasoning_content:
                _append(said.reasoning_logprobs, delta.reasoning_content)
            if delta.content:
                _append(said.content_logprobs, delta.content)
            return
        scored = (one.logprob, one.token_id, one.top)
        if delta.reasoning_content:
            said.reasoning_logprobs.append(Scored(delta.reasoning_content, *scored))
        if delta.content:
            said.content_logprobs.append(Scored(delta.content, *scored))
        if not delta.reasoning_content and not delta.content and not delta.tool_calls and not self.calls:
            # A completion's tokens are all told: clients count them from the end (lm-eval drops the last one).
            if self._plain or not self._tokenizer.is_special(one.token_id):
                (said.reasoning_logprobs if self._leaves_in_thinking else said.content_logprobs).append(
                    Scored("", *scored)
                )


def whole_calls(deltas: Sequence[ToolCallDelta]) -> list[ToolCall]:
    """Return the calls that all deltas together make."""
    calls: dict[int, ToolCall] = {}
    for one in deltas:
        before = calls.get(one.index) or ToolCall(one.id or "", one.name or "", "")
        calls[one.index] = ToolCall(before.id, before.name, before.arguments + one.arguments)
    return [calls[index] for index in sorted(calls)]


def _append(logprobs: list[Scored], text: str) -> None:
    before = logprobs.pop() if logprobs else Scored("", 0.0)
    logprobs.append(before._replace(text=before.text + text))


def _merged(one: Delta, other: Delta) -> Delta:
    return Delta(
        one.reasoning_content + other.reasoning_content,
        one.content + other.content,
        one.tool_calls + other.tool_calls,
    )


def _open_end(text: str, stops: Sequence[str]) -> int:
    """Return how many characters at the end of a text could be the start of a stop text."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:length]):
                longest = length
                break
    return longest
