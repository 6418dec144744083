"""Asked: what a chat request wants, whichever protocol it came in."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from leanseek.engine.request import Grammar
from leanseek.errors import UsageError
from leanseek.messages import Message
from leanseek.server.refusal import ApiError
from leanseek.server.toolbox import Toolbox
from leanseek.server.wire import Drawing
from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.effort import heeded, with_effort

SHORT_CHARACTERS = 4096


@dataclass(frozen=True)
class Asked:
    """A conversation, and how to go on with it.

    Args:
        messages: so far.
        drawing: how to draw.
        model: as the client calls it; None: whatever is served.
        thinks: whether the reply shall start with thinking.
        effort: how much to think, low, high or max, where the model was trained to heed it; None: high.
        max_tokens: longest reply; None: whatever the context leaves.
        toolbox: what may be called.
        form: what the answer must be, without what goes before it; None: anything. Calls may stand in its place.
        goes_on: whether the last message, the assistant's, is to be gone on with (DeepSeek's prefix).
        logprobs: as of the engine.
        scope: whose request it is: others share none of its cache.
        param: the field with the messages, for errors.
    """

    messages: tuple[Message, ...]
    drawing: Drawing = field(default_factory=Drawing)
    model: str | None = None
    thinks: bool = True
    effort: str | None = None
    max_tokens: int | None = None
    toolbox: Toolbox = field(default_factory=Toolbox)
    form: Grammar | None = None
    goes_on: bool = False
    logprobs: int | None = None
    scope: str = ""
    param: str = "messages"

    def begins_in_thinking(self, chat: ChatFormat) -> bool:
        """Whether the reply starts inside thinking; one that goes on with a message starts where that ends."""
        if not self.thinks or not chat.thinks:
            return False
        last = self.messages[-1]
        return not self.goes_on or (last.reasoning_content is not None and not last.content)

    @property
    def short(self) -> bool:
        """Whether it is little text, without tools."""
        texts = (text for one in self.messages for text in (one.content, one.reasoning_content))
        called = any(one.tool_calls for one in self.messages)
        return not called and not self.toolbox.offered and sum(map(len, filter(None, texts))) <= SHORT_CHARACTERS

    @property
    def guided(self) -> bool:
        """Whether a grammar may be needed."""
        return self.form is not None or bool(self.toolbox.offered)

    def prompt(self, chat: ChatFormat) -> list[int]:
        """Return the prompt's ids.

        Raises:
            ApiError: the chat format cannot say this.
        """
        try:
            tools = self.toolbox.offered
            effort = heeded(self.effort, chat.tokenizer.efforts) if self.thinks else None
            messages = with_effort(self.messages, effort)
            if not self.goes_on:
                return chat.prompt(messages, thinking=self.thinks, tools=tools)
            last = self.messages[-1]
            thought = last.reasoning_content if self.thinks and chat.thinks else None
            ids = chat.prompt(messages[:-1], thinking=thought is not None, tools=tools)
            if thought is not None and not last.content:
                return ids + chat.tokenizer.encode(thought)
            return ids + chat.reply(replace(last, reasoning_content=thought))[:-1]
        except UsageError as error:
            raise ApiError(400, str(error), code="invalid_request", param=self.param) from None

    def grammar(self, chat: ChatFormat) -> Grammar | None:
        """Return what the reply must be; None: anything.

        Raises:
            ApiError: tools that cannot be offered, or a form that cannot stand beside them.
        """
        thinking = self.begins_in_thinking(chat)
        if self.form is not None and not self.toolbox.offered:
            return replace(self.form, after_thinking=thinking)
        return self.toolbox.grammar(chat, thinking=thinking, form=self.form)
