"""DeepSeek's chat formats: V2, V3, R1, V3.1, V3.2, and that of the models made here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from leanseek.messages import Message, ToolSpec
from leanseek.tokens.dialect import Dialect, tool_list
from leanseek.tokens.dsml import TagCalls
from leanseek.tokens.marks import CUT, Marks, plain
from leanseek.tokens.tokenizer import ASSISTANT, USER
from leanseek.tokens.toolcalls import CallSyntax, TokenCalls


class V2(Dialect):
    """Plain text: system, `User: ...`, `Assistant: ...`; no thinking, no tools.

    Also for models without a format: it needs no special token but the end.

    Source: DeepSeek-V2-Chat's tokenizer_config.json.
    """

    name = "v2"
    thinks = has_tools = False
    before_answer = " "

    def prompt(self, messages: Sequence[Message], *, thinking: bool, tools: Sequence[ToolSpec]) -> str:
        text = self.marks.bos
        for message in messages:
            content = plain(message.content)
            if message.role == "system":
                text += f"{content}\n\n"
            elif message.role == "user":
                text += f"User: {content}\n\n"
            else:
                text += f"Assistant: {content}{self.marks.eos}"
        return text + "Assistant:"


class V3(Dialect):
    """System, <｜User｜>question, <｜Assistant｜>answer; calls with a code fence, results between output tokens.

    Source: DeepSeek-V3's and DeepSeek-R1's tokenizer_config.json.
    """

    name = "v3"
    thinks = False
    fenced = True
    closed = ""  # what stands before an answer that is history

    def __init__(self, marks: Marks) -> None:
        self._user, self._assistant = marks.need(USER), marks.need(ASSISTANT)
        self._result, self._result_end = marks.need("<｜tool▁output▁begin｜>"), marks.need("<｜tool▁output▁end｜>")
        self._results, self._results_end = marks.need("<｜tool▁outputs▁begin｜>"), marks.need("<｜tool▁outputs▁end｜>")
        super().__init__(marks)

    def _call_syntax(self) -> CallSyntax:
        return TokenCalls(self.marks, fenced=self.fenced)

    def prompt(self, messages: Sequence[Message], *, thinking: bool, tools: Sequence[ToolSpec]) -> str:
        text = self.marks.bos + self._system(messages, tools)
        before = ""
        for message in self._turns(messages):
            text += self._turn(message, before)
            before = message.role
        if before == "tool":
            return text + self._end_of_results() + (self._opening(thinking) if thinking else "")
        return text + self._assistant + self._opening(thinking)

    def _system(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> str:
        text = "\n\n".join(plain(message.content) for message in messages if message.role == "system")
        return text + self._tools(tools)

    def _turns(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return the messages that are turns: the system's stand in front of them."""
        return [message for message in messages if message.role != "system"]

    def _tools(self, tools: Sequence[ToolSpec]) -> str:
        if not tools:
            return ""
        assert isinstance(self.calls, TokenCalls)
        apart = "one call on each line" if self.fenced else "with nothing between two calls"
        details = f"NAME is one of these functions, ARGUMENTS a JSON object of its parameters; {apart}."
        return tool_list(tools, self.calls.pattern(), details)

    def _turn(self, message: Message, before: str) -> str:
        """Return one turn; `before` is whose turn was before it."""
        content = plain(message.content)
        if message.role == "system":
            return CUT + content + CUT
        if message.role == "tool":
            return self._one_result(content, first=before != "tool")
        closing = self._end_of_results() if before == "tool" else ""
        if message.role == "user":
            return f"{closing}{self._user}{content}"
        start = closing if before == "tool" else self._assistant + self.closed
        return start + self.answer(message) + self.marks.eos

    def _one_result(self, content: str, *, first: bool) -> str:
        return f"{self._results if first else chr(10)}{self._result}{content}{self._result_end}"

    def _end_of_results(self) -> str:
        return self._results_end

    def _opening(self, thinking: bool) -> str:
        return ""


class R1(V3):
    """As V3, but thinking comes first; it is left out of history. No thinking is an empty one in the prompt.

    After a tool's result the prompt opens thinking too, where DeepSeek's template leaves it to the model.

    Source: DeepSeek-R1's tokenizer_config.json since February 2025.
    """

    name = "r1"
    thinks = True
    before_end, after_end = "\n", "\n\n"

    def _opening(self, thinking: bool) -> str:
        return f"{self.think}\n" if thinking else f"{self.think}\n\n{self.end_think}\n\n"


class V31(V3):
    """Thinks or not, as the prompt's end says; calls one behind the other, results each between two tokens.

    DeepSeek's template has tools without thinking only; with thinking, a tool's result is followed by <think>.

    Source: DeepSeek-V3.1's tokenizer_config.json.
    """

    name = "v31"
    thinks = True
    fenced = False

    def __init__(self, marks: Marks) -> None:
        super().__init__(marks)
        self.closed = self.end_think

    def _opening(self, thinking: bool) -> str:
        return self.think if thinking else self.end_think

    def _one_result(self, content: str, *, first: bool) -> str:
        return f"{self._result}{content}{self._result_end}"

    def _end_of_results(self) -> str:
        return ""


class Hybrid(V31):
    """Of the models made here: V3.1's, with R1's line break after <think>; a system message stays in its place.

    A tool loop keeps its thinking, as V3.2's does: what led to a call is still there when its result is read.

    Source: DeepSeek-R1's chat template (thinking starts in the prompt), V3.1's for no thinking and for tools.
    """

    name = "leanseek"
    before_end = "\n"

    def _system(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> str:
        leading = messages[: _leading(messages)]
        return "".join(plain(message.content) + CUT for message in leading) + self._tools(tools)

    def _turns(self, messages: Sequence[Message]) -> Sequence[Message]:
        last = max((i for i, message in enumerate(messages) if message.role == "user"), default=len(messages))
        return [
            one if one.tool_calls and i > last else replace(one, reasoning_content=None)
            for i, one in enumerate(messages)
            if i >= _leading(messages)
        ]

    def _turn(self, message: Message, before: str) -> str:
        if message.role != "assistant" or message.reasoning_content is None:
            return super()._turn(message, before)
        start = "" if before == "tool" else self._assistant
        return start + self._opening(True) + self.reply(message) + self.marks.eos

    def _opening(self, thinking: bool) -> str:
        return f"{self.think}\n" if thinking else self.end_think


def _leading(messages: Sequence[Message]) -> int:
    """Return how many system messages begin a conversation."""
    return next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))


class V32(Dialect):
    """DSML calls; the turn of a user or a tool ends with <think> or </think>, and a tool loop keeps its thinking.

    Thinking before the last user message is left out. Source: DeepSeek-V3.2's encoding/encoding_dsv32.py.
    """

    name = "v32"

    def __init__(self, marks: Marks) -> None:
        self._user, self._assistant = marks.need(USER), marks.need(ASSISTANT)
        super().__init__(marks)

    def _call_syntax(self) -> CallSyntax:
        return TagCalls(self.marks)

    def prompt(self, messages: Sequence[Message], *, thinking: bool, tools: Sequence[ToolSpec]) -> str:
        last = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
        systems = [plain(message.content) for message in messages if message.role == "system"]
        text = self.marks.bos + "\n\n".join(systems) + self._tools(tools)
        turns = [(i, message) for i, message in enumerate(messages) if message.role != "system"]
        before = ""
        for place, (i, message) in enumerate(turns):
            after = turns[place + 1][1].role if place + 1 < len(turns) else ""
            opening = self.think if thinking and i >= last else self.end_think
            content = plain(message.content)
            if message.role == "user":
                text += f"{self._user}{content}{self._assistant}{opening}"
            elif message.role == "tool":
                text += "\n\n<function_results>" if before != "tool" else ""
                text += f"\n<result>{content}</result>"
                text += f"\n</function_results>\n\n{opening}" if after != "tool" else ""
            else:
                if before not in ("user", "tool"):
                    text += f"{self._assistant}{opening}"
                kept = plain(message.reasoning_content or "") + self.end_think if opening == self.think else ""
                text += kept + self.answer(message) + self.marks.eos
            before = message.role
        if before not in ("user", "tool"):
            text += f"{self._assistant}{self.think if thinking else self.end_think}"
        return text

    def _tools(self, tools: Sequence[ToolSpec]) -> str:
        if not tools:
            return ""
        assert isinstance(self.calls, TagCalls)
        details = (
            'NAME is one of these functions. Each parameter has a line: a string as it is with string="true", any '
            'other value as JSON with string="false". The results follow in a function_results block.'
        )
        return tool_list(tools, self.calls.pattern(), details)
