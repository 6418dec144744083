"""ChatFormat: messages to token ids and back, in R1's form, thinking and answer kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leanseek.errors import UsageError
from leanseek.messages import Message
from leanseek.tokens.tokenizer import ASSISTANT, END_THINK, THINK, USER, IncrementalDecoder, Tokenizer


@dataclass(frozen=True)
class Delta:
    """Text that one token added: to the thinking, or to the answer."""

    reasoning_content: str = ""
    content: str = ""


class ChatFormat:
    """The conversation format: BOS system <｜User｜> question <｜Assistant｜><think> thinking </think> answer EOS.

    Special tokens are put in as ids, so that their text inside a message stays plain text.

    Args:
        tokenizer: of the model.
    Source: DeepSeek-R1's chat template (thinking starts in the prompt), V3.1's for no thinking.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._user, self._assistant = tokenizer.id_of(USER), tokenizer.id_of(ASSISTANT)
        self.think_id, self.end_think_id = tokenizer.id_of(THINK), tokenizer.id_of(END_THINK)
        self._newline = tokenizer.encode("\n")

    def prompt(self, messages: Sequence[Message], *, thinking: bool = True) -> list[int]:
        """Return the ids after which the model's reply starts.

        Args:
            messages: the conversation; earlier thinking is left out.
            thinking: whether the reply starts with thinking.
        """
        opening = [self.think_id, *self._newline] if thinking else [self.end_think_id]
        return [*self._history(messages), self._assistant, *opening]

    def example(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Return a training example: the ids, and which of them the model must learn to produce.

        Only the last assistant turn is learnt, from its first thinking token to EOS.

        Raises:
            UsageError: the last message is not the assistant's.
        """
        if not messages or messages[-1].role != "assistant":
            raise UsageError("a training example must end with an assistant message")
        reply = messages[-1]
        ids = self.prompt(messages[:-1], thinking=reply.reasoning_content is not None)
        learnt = self.reply(reply)
        return ids + learnt, [False] * len(ids) + [True] * len(learnt)

    def reply(self, message: Message) -> list[int]:
        """Return the ids that a model would produce after `prompt` to say this message."""
        ids: list[int] = []
        if message.reasoning_content is not None:
            ids += [*self.tokenizer.encode(message.reasoning_content + "\n"), self.end_think_id]
        return [*ids, *self.tokenizer.encode(message.content), self.tokenizer.eos_id]

    def parse(self, ids: Sequence[int], *, starts_in_thinking: bool = True) -> Message:
        """Return the message that a reply's ids say; the same as streaming them.

        A reply that never ends its thinking is all thinking, with an empty answer.
        """
        stream = self.stream(starts_in_thinking=starts_in_thinking)
        deltas = [stream.push(token) for token in ids] + [stream.flush()]
        content = "".join(delta.content for delta in deltas)
        reasoning = "".join(delta.reasoning_content for delta in deltas)
        return Message("assistant", content, reasoning if starts_in_thinking else None)

    def stream(self, *, starts_in_thinking: bool = True) -> ChatStream:
        """Return a parser for tokens that arrive one by one."""
        return ChatStream(self, starts_in_thinking)

    def _history(self, messages: Sequence[Message]) -> list[int]:
        ids = [self.tokenizer.bos_id]
        for message in messages:
            text = self.tokenizer.encode(message.content)
            if message.role == "system":
                ids += text
            elif message.role == "user":
                ids += [self._user, *text]
            else:
                ids += [self._assistant, self.end_think_id, *text, self.tokenizer.eos_id]
        return ids


class ChatStream:
    """Splits a reply's tokens into thinking and answer; only the first end-of-thinking token switches."""

    def __init__(self, chat: ChatFormat, starts_in_thinking: bool) -> None:
        self._chat = chat
        self._thinking = starts_in_thinking
        self._ended = False
        self._decoder: IncrementalDecoder = chat.tokenizer.incremental()
        self._newline = ""  # the thinking's last line break belongs to the format: held until more follows

    def push(self, token_id: int) -> Delta:
        """Return the text that this token added."""
        if self._ended:
            return Delta()
        if token_id == self._chat.tokenizer.eos_id:
            self._ended = True
            return self._close()
        if token_id == self._chat.end_think_id and self._thinking:
            delta = self._close()
            self._thinking = False
            return delta
        return self._say(self._decoder.push(token_id))

    def flush(self) -> Delta:
        """Return what was held back, at the end of a reply."""
        return Delta() if self._ended else self._close()

    def _say(self, text: str) -> Delta:
        if not self._thinking:
            return Delta(content=text)
        if not text:
            return Delta()
        text = self._newline + text
        self._newline = "\n" if text.endswith("\n") else ""
        return Delta(reasoning_content=text.removesuffix("\n"))

    def _close(self) -> Delta:
        delta = self._say(self._decoder.flush())
        self._newline = ""
        return delta
