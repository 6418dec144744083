"""Dialect: what every chat format is made of: a prompt, a reply, and how a reply is read."""

from __future__ import annotations

from collections.abc import Sequence

from leanseek.errors import UsageError
from leanseek.messages import Message, ToolSpec
from leanseek.tokens.arguments import checked_name, dumps
from leanseek.tokens.marks import Marks, plain
from leanseek.tokens.stream import Output, Reading, Source, Trimmed
from leanseek.tokens.toolcalls import CallSyntax, NoCalls


class Dialect:
    """One chat format over one vocabulary, in marked text.

    Args:
        marks: of the vocabulary.
    Raises:
        CheckpointError: the vocabulary lacks a token of the format.
    """

    name = ""
    thinks = True  # whether a reply can have thinking
    has_tools = True
    # What the format puts around thinking and before the answer; none of it is part of either.
    after_think = before_end = after_end = before_answer = ""
    # Whether the prompt opens the thinking, so that the reply begins inside it.
    opens_thinking = True

    def __init__(self, marks: Marks) -> None:
        self.marks = marks
        self.think, self.end_think = self._thinking_marks() if self.thinks else ("", "")
        self.calls: CallSyntax = self._call_syntax() if self.has_tools else NoCalls()

    def prompt(self, messages: Sequence[Message], *, thinking: bool, tools: Sequence[ToolSpec]) -> str:
        """Return the marked text after which a reply starts."""
        raise NotImplementedError

    def reply(self, message: Message) -> str:
        """Return what a model would produce after `prompt`, without the token that ends it."""
        said = ""
        if message.reasoning_content is not None:
            if not self.thinks:
                raise UsageError(f"the chat format {self.name} has no thinking, but the message has reasoning_content")
            if not self.opens_thinking:
                said += self.think + self.after_think
            said += plain(message.reasoning_content) + self.before_end + self.end_think + self.after_end
        return said + self.before_answer + self.answer(message)

    def answer(self, message: Message) -> str:
        """Return an assistant message's content and tool calls."""
        return plain(message.content) + (self.calls.render(message.tool_calls) if message.tool_calls else "")

    def live(self, thinking: bool) -> frozenset[str]:
        """Return the marks that mean something where a reply starts."""
        if not thinking:
            return self.calls.live
        return self.marks.within([self.end_think]) if self.opens_thinking else self._awaited()

    def read(self, source: Source, out: Output, *, thinking: bool) -> Reading[None]:
        """Understand a reply; with `thinking`, one that may think."""
        if thinking and not self.opens_thinking:
            thinking = bool((yield from source.either((self.think,), space=True)))
            source.live = self.marks.within([self.end_think]) if thinking else self.calls.live
            if thinking and self.after_think:
                yield from source.either((self.after_think,))
        if thinking:
            out.reasoning("")
            say = Trimmed(out.reasoning, self.before_end)
            yield from source.until((self.end_think,), say)
            say.close()
            source.live = self.calls.live
            if self.after_end:
                yield from source.either((self.after_end,))
        if self.before_answer:
            yield from source.either((self.before_answer,))
        while opener := (yield from source.until(self.calls.openers, out.content)):
            yield from self.calls.read(source, out, opener)

    def check(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> None:
        """Refuse tools where the format has none.

        Raises:
            UsageError: tools, calls or results in a format without them.
        """
        if not self.has_tools and (tools or any(m.role == "tool" or m.tool_calls for m in messages)):
            raise UsageError(f"the chat format {self.name} has no tools; v3, r1, v31, v32 and template have")

    def _awaited(self) -> frozenset[str]:
        return self.marks.within([self.think]) | self.calls.live

    def _thinking_marks(self) -> tuple[str, str]:
        return self.marks.need("<think>"), self.marks.need("</think>")

    def _call_syntax(self) -> CallSyntax:
        raise NotImplementedError


def as_function(tool: ToolSpec) -> dict[str, object]:
    """Return a tool as the JSON object that OpenAI's protocol and the models' own lists have."""
    checked_name(tool.name)
    strict = {"strict": True} if tool.strict else {}
    return {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters), **strict}


def tool_list(tools: Sequence[ToolSpec], pattern: str, details: str) -> str:
    """Return the section of a system prompt that lists tools, in words of our own.

    Args:
        tools: at least one.
        pattern: what a call looks like, marked text.
        details: what the pattern's capitals stand for.
    """
    each = "".join(
        f"\n### {plain(one.name)}\nDescription: {plain(one.description)}\n\n"
        f"Parameters: {plain(dumps(as_function(one)['parameters']))}\n"
        for one in tools
    )
    return f"\n\n## Tools\nThese functions can be called:\n{each}\nA call is written like this:\n{pattern}\n{details}"
