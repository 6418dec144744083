"""Template: the chat format of any other model (Qwen3, Llama, the distilled R1s), through its own Jinja template."""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from leanseek.errors import CheckpointError, UsageError
from leanseek.messages import Message, ToolCall, ToolSpec
from leanseek.tokens.arguments import checked_name
from leanseek.tokens.dialect import Dialect, as_function
from leanseek.tokens.dsml import DSML, TagCalls
from leanseek.tokens.marks import Marks, plain
from leanseek.tokens.sandbox import Sandbox
from leanseek.tokens.tokenizer import Tokenizer
from leanseek.tokens.toolcalls import CallSyntax, NoCalls, TaggedCalls, TokenCalls

# Words that a template may compare with, as in `type == "string"`, are shown to it; they cannot be a token.
_WORD = re.compile(r"[A-Za-z0-9_]{1,64}")
_KEY_DIGITS = 6
_PART = 12  # digits of a number by which a piece of it is known


class Template(Dialect):
    """A model's own template: it lays out a conversation, and never sees what is said in it.

    In place of each text the template gets a number that nobody can guess, with the text's own white space around it;
    the texts are put in afterwards, as plain text. So whatever a text holds, no token comes of it.

    Thinking is read between <think> and </think> where the template knows of it; tool calls where they are of a kind
    that is known here: Qwen's, DeepSeek's or DSML.

    Args:
        marks: of the vocabulary.
        tokenizer: brings the template.
    Raises:
        CheckpointError: there is no template, or it cannot be used.
    """

    name = "template"
    after_think, before_end, after_end = "\n", "\n", "\n\n"

    def __init__(self, marks: Marks, tokenizer: Tokenizer) -> None:
        source = tokenizer.chat_template
        if source is None:
            raise CheckpointError("the tokenizer has no chat_template; give another chat format by name")
        self._source = source
        self.thinks = "think>" in source
        self._syntax = _syntax_of(source, marks)
        self.has_tools = self._syntax is not None and "tools" in source
        super().__init__(marks)
        self._names = {
            "bos_token": _text_of(tokenizer, tokenizer.bos_id),
            "eos_token": _text_of(tokenizer, tokenizer.eos_id),
        }
        self._sandbox = Sandbox(source, {"tojson": self._to_json})
        self._texts = _Texts()
        self._lock = threading.Lock()
        if self.thinks:
            try:
                probe = self._laid_out([Message("user", "a")], True, ())
            except UsageError as error:
                raise CheckpointError(str(error)) from None
            self.opens_thinking = probe.rstrip().endswith(self.think)

    def prompt(self, messages: Sequence[Message], *, thinking: bool, tools: Sequence[ToolSpec]) -> str:
        text = self._laid_out(messages, thinking, tools)
        if self.thinks and not thinking and text.rstrip().endswith(self.think):
            # A template that always opens thinking: close it, as Qwen3's does.
            text = f"{text.rstrip()}\n\n{self.end_think}\n\n"
        return text

    def answer(self, message: Message) -> str:
        if not message.tool_calls:
            return plain(message.content)
        apart = "\n" if message.content and isinstance(self.calls, TaggedCalls) else ""
        return plain(message.content) + apart + self.calls.render(message.tool_calls)

    def _call_syntax(self) -> CallSyntax:
        return self._syntax or NoCalls()

    def _thinking_marks(self) -> tuple[str, str]:
        return self.marks.find("<think>"), self.marks.find("</think>")

    def _laid_out(self, messages: Sequence[Message], thinking: bool, tools: Sequence[ToolSpec]) -> str:
        """Return the template's layout as marked text, with what is said put in."""
        with self._lock:
            self._texts = texts = _Texts()
            laid_out = self._sandbox.render(
                {
                    "messages": [_as_json(message, texts) for message in messages],
                    "tools": [{"type": "function", "function": texts.hide(as_function(one))} for one in tools] or None,
                    "add_generation_prompt": True,
                    "enable_thinking": thinking,
                    "thinking": thinking,
                    **self._names,
                }
            )
        return texts.put_in(laid_out, self.marks)

    def _to_json(self, value: Any, **options: Any) -> str:
        """The filter `tojson`: JSON of what is said, not of the numbers; itself a text like others."""
        known = {key: options[key] for key in ("indent", "separators", "sort_keys") if options.get(key) is not None}
        if not isinstance(known.get("indent", 0), int) or abs(known.get("indent", 0)) > 16:
            raise ValueError("an indent is a number up to 16")
        if isinstance(value, _Arguments):
            return self._texts.hide_text(value.text)
        return self._texts.hide_text(self._sandbox.dumps(self._shown(value), **known))

    def _shown(self, value: Any) -> Any:
        self._sandbox.step()
        if isinstance(value, str):
            return self._texts.found(value)
        if isinstance(value, Mapping):
            return {self._texts.found(str(key)): self._shown(one) for key, one in value.items()}
        return [self._shown(one) for one in value] if isinstance(value, list | tuple) else value


class _Arguments(dict[str, Any]):
    """A call's arguments, as templates expect them; `text` is their JSON as it was said."""

    text = ""


class _Texts:
    """What is said in one conversation, and the number that stands for each text."""

    def __init__(self) -> None:
        # Digits only: a template that changes case does not change them.
        self._secret = f"{secrets.randbelow(10**38):038d}"
        self._pattern = re.compile(rf"{self._secret}(\d{{{_KEY_DIGITS}}})")
        self._all: list[str] = []
        self._numbers: dict[str, str] = {}

    def hide_text(self, text: str) -> str:
        """Return what stands for a text: the same for the same one; nothing for nothing."""
        core = text.strip()
        if not core:
            return text
        if core not in self._numbers:
            if len(self._all) == 10**_KEY_DIGITS:
                raise UsageError(f"a conversation of more than {10**_KEY_DIGITS:,} texts cannot be laid out")
            self._numbers[core] = f"{self._secret}{len(self._all):0{_KEY_DIGITS}d}"
            self._all.append(core)
        start = text.index(core)
        return text[:start] + self._numbers[core] + text[start + len(core) :]

    def hide(self, value: Any) -> Any:
        """Return a JSON value with its texts hidden, all but plain words."""
        if isinstance(value, str):
            return value if _WORD.fullmatch(value) else self.hide_text(value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(one) for key, one in value.items()}
        return [self.hide(one) for one in value] if isinstance(value, list | tuple) else value

    def found(self, text: str) -> str:
        """Return a text with what is said in place of numbers."""
        return self._pattern.sub(lambda match: self._all[int(match[1])], text)

    def put_in(self, laid_out: str, marks: Marks) -> str:
        """Return marked text: the layout with its tokens, and in it what is said, as plain text."""
        pieces = self._pattern.split(laid_out)
        said = [plain(self._all[int(number)]) for number in pieces[1::2]]
        text = "".join(marks.trust(layout) + one for layout, one in zip(pieces[::2], [*said, ""], strict=True))
        if any(self._secret[i : i + _PART] in text for i in range(len(self._secret) - _PART + 1)):
            raise UsageError("the model's chat template cuts texts apart, which leanseek cannot follow")
        return text


def _as_json(message: Message, texts: _Texts) -> dict[str, Any]:
    """Return a message as templates expect it, its texts hidden."""
    values: dict[str, Any] = {"role": message.role, "content": texts.hide_text(message.content)}
    if message.reasoning_content is not None:
        values["reasoning_content"] = texts.hide_text(message.reasoning_content)
    if message.tool_calls:
        values["tool_calls"] = [_call(call, texts) for call in message.tool_calls]
    for key in ("tool_call_id", "name"):
        if (value := getattr(message, key)) is not None:
            values[key] = texts.hide(value)
    return values


def _call(call: ToolCall, texts: _Texts) -> dict[str, Any]:
    arguments: Any = texts.hide_text(call.arguments)
    try:
        value = json.loads(call.arguments)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        arguments = _Arguments(texts.hide(value))
        arguments.text = call.arguments
    function = {"name": texts.hide(checked_name(call.name)), "arguments": arguments}
    return {"id": texts.hide(call.id), "type": "function", "function": function}


def _syntax_of(source: str, marks: Marks) -> CallSyntax | None:
    """Return how a model writes tool calls, as its template shows; None for a way not known here."""
    if "<tool_call>" in source and "<function=" not in source:
        return TaggedCalls(marks)
    if DSML in source:
        return TagCalls(marks)
    if "<｜tool▁call▁begin｜>" in source:
        return TokenCalls(marks, fenced="```json" in source)
    return None


def _text_of(tokenizer: Tokenizer, token_id: int | None) -> str:
    return "" if token_id is None else tokenizer.decode([token_id], skip_special=False)
