"""Reply: one reply's tokens turned into text as they come, thinking and answer apart, stop texts cut out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from leanseek.engine.request import Event
from leanseek.tokens.chat import ChatFormat


@dataclass
class Said:
    """What one event added to a reply.

    Args:
        reasoning_content, content: text for the thinking and for the answer.
        reasoning_logprobs, content_logprobs: each token's text and log-probability in nats; the
            texts join to the two above. A token that only begins a character has the text "".
    """

    reasoning_content: str = ""
    content: str = ""
    reasoning_logprobs: list[tuple[str, float]] = field(default_factory=list)
    content_logprobs: list[tuple[str, float]] = field(default_factory=list)

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
        )


@dataclass(frozen=True)
class _Held:
    """A token that waits until it cannot be part of a stop text."""

    token_id: int
    logprob: float
    text: str


class Reply:
    """Follows one reply. A token is let out when no stop text can begin in it, so none ever shows.

    Stop texts are looked for as the engine does, in thinking and answer alike.

    Args:
        chat: of the model.
        stop: texts that end the reply.
        thinking: whether the reply starts with thinking.
    """

    def __init__(self, chat: ChatFormat, stop: Sequence[str], *, thinking: bool) -> None:
        self.tokens = self.reasoning_tokens = 0
        self.finish_reason: str | None = None
        self._chat, self._stop = chat, tuple(stop)
        self._stream = chat.stream(starts_in_thinking=thinking)
        self._decoder = chat.tokenizer.incremental()
        self._held: list[_Held] = []
        self._arrives_in_thinking = self._leaves_in_thinking = thinking

    def push(self, event: Event) -> Said:
        """Take an event of this reply; return the text that can be shown now."""
        said = Said()
        if self.finish_reason is not None:
            return said
        if event.token_id is not None:
            self._take(event.token_id, event.logprob or 0.0)
        window = "".join(one.text for one in self._held)
        cut = min((at for at in map(window.find, self._stop) if at >= 0), default=None)
        if cut is not None:
            self.finish_reason = "stop"
            self._let_out(cut, said, cut=True)
        elif event.finish_reason is not None:
            self.finish_reason = event.finish_reason
            self._let_out(len(window), said)
            self._flush(said, event.logprob or 0.0)
        else:
            self._let_out(len(window) - _open_end(window, self._stop), said)
        return said

    def _take(self, token_id: int, logprob: float) -> None:
        self.tokens += 1
        ends_thinking = self._arrives_in_thinking and token_id == self._chat.end_think_id
        if ends_thinking:
            self._arrives_in_thinking = False
        self.reasoning_tokens += self._arrives_in_thinking
        # The thinking's bytes and the answer's never make one character.
        ends_text = ends_thinking or token_id == self._chat.tokenizer.eos_id
        text = self._decoder.flush() if ends_text else self._decoder.push(token_id)
        self._held.append(_Held(token_id, logprob, text))

    def _let_out(self, characters: int, said: Said, *, cut: bool = False) -> None:
        """Let out the tokens within the first `characters`; with `cut`, also the part of the next that is."""
        end = count = 0
        for one in self._held:
            if end + len(one.text) > characters:
                break
            end += len(one.text)
            count += 1
            self._say(one, said)
        if cut:
            if end < characters:
                self._say(self._held[count], said, keep=characters - end)
            self._held.clear()
        else:
            del self._held[:count]

    def _say(self, one: _Held, said: Said, keep: int | None = None) -> None:
        """Split a token's text into thinking and answer; `keep` leaves out what follows its first characters."""
        thinking = self._leaves_in_thinking
        delta = self._stream.push(one.token_id)
        if one.token_id == self._chat.end_think_id:
            self._leaves_in_thinking = False
        text = delta.reasoning_content if thinking else delta.content
        if keep is not None:
            # The thinking's last line break is held back by the stream: it is not part of `text`.
            gone = len(one.text) - keep - (thinking and one.text.endswith("\n"))
            text = text[: len(text) - gone]
            text = text.removesuffix("\n") if thinking else text
        self._add(text, thinking, said)
        if text or not self._chat.tokenizer.is_special(one.token_id):
            (said.reasoning_logprobs if thinking else said.content_logprobs).append((text, one.logprob))

    def _flush(self, said: Said, logprob: float) -> None:
        """Say what the stream held back, as a part of the last token."""
        delta = self._stream.flush()
        thinking = self._leaves_in_thinking
        text = delta.reasoning_content if thinking else delta.content
        self._add(text, thinking, said)
        logprobs = said.reasoning_logprobs if thinking else said.content_logprobs
        if text:
            before, logprob = logprobs.pop() if logprobs else ("", logprob)
            logprobs.append((before + text, logprob))

    def _add(self, text: str, thinking: bool, said: Said) -> None:
        if thinking:
            said.reasoning_content += text
        else:
            said.content += text


def _open_end(text: str, stops: Sequence[str]) -> int:
    """Return how many characters at the end of a text could be the start of a stop text."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:length]):
                longest = length
                break
    return longest
