"""ChatFormat: messages to token ids and back, in whichever format the model was taught."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from leanseek.errors import ConfigError, UsageError, nearest
from leanseek.messages import Message, ToolCall, ToolSpec
from leanseek.tokens.deepseek import R1, V2, V3, V31, V32, Hybrid
from leanseek.tokens.dialect import Dialect
from leanseek.tokens.dsml import DSML
from leanseek.tokens.guides import Guide, guide
from leanseek.tokens.marks import Marks
from leanseek.tokens.replay import Replays
from leanseek.tokens.stream import ChatStream, Delta, ToolCallDelta, call_id
from leanseek.tokens.template import Template
from leanseek.tokens.tokenizer import ASSISTANT, BOS, CHAT_TEMPLATE, END_THINK, THINK, USER, Tokenizer

__all__ = ["FORMATS", "ChatFormat", "ChatStream", "Delta", "ToolCallDelta", "recognise"]

_NATIVE: dict[str, type[Dialect]] = {one.name: one for one in (Hybrid, V2, V3, R1, V31, V32)}
FORMATS = (*_NATIVE, Template.name)

# Stands for a reply while what follows it is laid out; no template has it.
_REPLY = "7e0d5c1ba94f"


def recognise(tokenizer: Tokenizer) -> str:
    """Return which chat format a model was taught, from its template's text, its tokens and its model_type.

    A DeepSeek template is recognised by how it opens a reply, and then our own code does its work. Any other
    template is used itself. Without one, the tokens tell: DSML means V3.2, thinking tokens the models made here,
    <｜User｜> alone V3, and nothing of it plain text as in V2.

    Args:
        tokenizer: as loaded from the model's folder.
    """
    template, kind = tokenizer.chat_template, tokenizer.model_type or ""
    has = {text for text in (BOS, USER, ASSISTANT, THINK, END_THINK, DSML) if tokenizer.find(text) is not None}
    if template == CHAT_TEMPLATE:
        return Hybrid.name
    if template is not None:
        if BOS not in has or (kind and not kind.startswith("deepseek")):
            return Template.name
        if ASSISTANT in has and ASSISTANT in template:
            if END_THINK not in has or END_THINK not in template:
                return V3.name
            return V31.name if "not thinking" in " ".join(template.split()) else R1.name
        return V2.name if "User:" in template and "Assistant:" in template else Template.name
    if {USER, ASSISTANT, THINK, END_THINK} <= has:
        return V32.name if DSML in has or kind.startswith("deepseek_v32") else Hybrid.name
    return V3.name if {USER, ASSISTANT} <= has else V2.name


class ChatFormat:
    """How a model's conversations are written, as ids: special tokens are put in as ids, text stays text.

    So `</think>` or `<｜User｜>` inside a message never is a token. What a reply says is read back as it was meant:
    `parse(reply(message)) == message`, with these exceptions: tool calls get their ids from `call_id`; half a
    surrogate pair becomes U+FFFD; DSML spells a call's JSON anew (`dsml.TagCalls`); and where a vocabulary has no
    token for a tag, text that looks like the tag is one.

    Args:
        tokenizer: of the model.
        name: one of FORMATS; None: what `recognise` says.
    Raises:
        ConfigError: an unknown name.
        CheckpointError: the vocabulary lacks a token of the format, or the template cannot be used.
    """

    def __init__(self, tokenizer: Tokenizer, name: str | None = None) -> None:
        name = recognise(tokenizer) if name is None else name
        if name not in FORMATS:
            raise ConfigError(f"chat format {name!r}: accepted are {', '.join(FORMATS)}{nearest(name, FORMATS)}")
        self.tokenizer, self.name = tokenizer, name
        self._marks = Marks(tokenizer)
        self._dialect = _NATIVE[name](self._marks) if name in _NATIVE else Template(self._marks, tokenizer)
        # Whether replies can have thinking; and tool calls.
        self.thinks, self.has_tools = self._dialect.thinks, self._dialect.has_tools
        self.think_id, self.end_think_id = tokenizer.find(THINK), tokenizer.find(END_THINK)

    @property
    def native(self) -> bool:
        """Whether our own code writes it; a template is a stranger's program, which may take its time."""
        return self.name in _NATIVE

    @property
    def replays(self) -> Replays | None:
        """How texts of the history were said; None: they are encoded anew."""
        return self._marks.replays

    @replays.setter
    def replays(self, replays: Replays | None) -> None:
        self._marks.replays = replays

    def guide(
        self,
        tools: Sequence[ToolSpec],
        *,
        forced: bool = False,
        name: str | None = None,
        thinking: bool = False,
        several: bool = True,
        answer: str = "",
    ) -> Guide:
        """Return a grammar of calls in this format; arguments as of `guides.guide`.

        Raises:
            UsageError: a format without tools, or a schema that cannot be held.
        """
        self._dialect.check((), tools)
        return guide(
            self._dialect,
            self.tokenizer,
            tools,
            forced=forced,
            name=name,
            thinking=thinking,
            several=several,
            answer=answer,
        )

    @classmethod
    def load(cls, folder: str | Path, name: str | None = None) -> ChatFormat:
        """Return the format of a model folder.

        Args:
            folder: with tokenizer.json and what is beside it.
            name: as of the class.
        """
        return cls(Tokenizer.load(folder), name)

    def prompt(
        self, messages: Sequence[Message], *, thinking: bool = True, tools: Sequence[ToolSpec] = ()
    ) -> list[int]:
        """Return the ids after which the model's reply starts.

        Args:
            messages: the conversation; earlier thinking is left out, as far as the format wants it.
            thinking: whether the reply shall think; without meaning where the model cannot.
            tools: what the model may call.
        Raises:
            UsageError: tools in a format that has none, or what the format cannot say.
        """
        self._dialect.check(messages, tools)
        return self._marks.encode(self._dialect.prompt(messages, thinking=thinking, tools=tools))

    def example(self, messages: Sequence[Message], *, tools: Sequence[ToolSpec] = ()) -> tuple[list[int], list[bool]]:
        """Return a training example: the ids, and which of them the model must learn to produce.

        Only the last assistant turn is learnt, from its first thinking token to EOS.

        Raises:
            UsageError: the last message is not the assistant's.
        """
        if not messages or messages[-1].role != "assistant":
            raise UsageError("a training example must end with an assistant message")
        reply = messages[-1]
        ids = self.prompt(messages[:-1], thinking=reply.reasoning_content is not None, tools=tools)
        learnt = self.reply(reply)
        return ids + learnt, [False] * len(ids) + [True] * len(learnt)

    def reply(self, message: Message) -> list[int]:
        """Return the ids that a model would produce after `prompt` to say this message.

        Raises:
            UsageError: the message has what the format cannot say.
        """
        self._dialect.check([message], ())
        return [*self._marks.encode(self._dialect.reply(message)), self.tokenizer.eos_id]

    def following(
        self, messages: Sequence[Message], *, thinking: bool = True, tools: Sequence[ToolSpec] = ()
    ) -> list[int]:
        """Return the ids between a reply that has ended and the next one: what is said to it, and how that opens.

        A conversation that goes on so keeps every token as it was drawn, earlier thinking too, where `prompt` would
        write the history anew.

        Args:
            messages: results of tools, or a user's.
            thinking: whether the next reply shall think.
            tools: what the model may call.
        Raises:
            UsageError: a format that does not end its replies, or cannot say this.
        """
        calls = tuple(
            ToolCall(m.tool_call_id or call_id(0), m.name or "tool", "{}") for m in messages if m.role == "tool"
        )
        history = [Message("user", "?"), Message("assistant", _REPLY, None, calls), *messages]
        self._dialect.check(history, tools)
        _, _, rest = self._dialect.prompt(history, thinking=thinking, tools=tools).partition(_REPLY)
        _, end, rest = rest.partition(self._marks.eos)
        if not end:
            raise UsageError(f"the chat format {self.name} does not end replies, so a conversation cannot go on in it")
        return self._marks.encode(rest)

    def dialogue(self, messages: Sequence[Message], *, tools: Sequence[ToolSpec] = ()) -> tuple[list[int], list[bool]]:
        """Return a whole conversation as a training example: the ids, and which of them the model must learn to say.

        Every reply is learnt, its thinking too; with one reply it is `example`.

        Raises:
            UsageError: the last message is not the assistant's, or there is none before the first that is.
        """
        places = [i for i, message in enumerate(messages) if message.role == "assistant"]
        if not places or places[-1] != len(messages) - 1:
            raise UsageError("a training example must end with an assistant message")
        ids, learnt = self.example(messages[: places[0] + 1], tools=tools)
        for before, place in itertools.pairwise(places):
            thinking = messages[place].reasoning_content is not None
            said = self.following(messages[before + 1 : place], thinking=thinking, tools=tools)
            reply = self.reply(messages[place])
            ids += said + reply
            learnt += [False] * len(said) + [True] * len(reply)
        return ids, learnt

    def parse(
        self,
        ids: Sequence[int],
        *,
        starts_in_thinking: bool = True,
        call_id: Callable[[int], str] = call_id,
    ) -> Message:
        """Return the message that a reply's ids say; the same as streaming them.

        Any ids will do: a reply that never ends its thinking is all thinking, with an empty answer, and what looks
        like a tool call but is none is content.

        Args:
            ids: the reply's.
            starts_in_thinking: whether the prompt asked for thinking.
            call_id: a tool call's place -> its id.
        """
        stream = self.stream(starts_in_thinking=starts_in_thinking, call_id=call_id)
        deltas = [stream.push(token) for token in ids] + [stream.flush()]
        content = "".join(delta.content for delta in deltas)
        reasoning = "".join(delta.reasoning_content for delta in deltas)
        calls: dict[int, ToolCall] = {}
        for one in (one for delta in deltas for one in delta.tool_calls):
            before = calls.get(one.index) or ToolCall(one.id or "", one.name or "", "")
            calls[one.index] = ToolCall(before.id, before.name, before.arguments + one.arguments)
        return Message("assistant", content, reasoning if stream.thought else None, tuple(calls.values()))

    def stream(self, *, starts_in_thinking: bool = True, call_id: Callable[[int], str] = call_id) -> ChatStream:
        """Return a parser for tokens that arrive one by one; arguments as of `parse`."""
        thinking = starts_in_thinking and self.thinks
        reader = partial(self._dialect.read, thinking=thinking)
        return ChatStream(self.tokenizer, self._marks, reader, self._dialect.live(thinking), call_id)
