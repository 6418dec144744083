"""Service: what is served, and how requests of every protocol are handed to the engine."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from leanseek.engine.engine import Engine
from leanseek.engine.request import SamplingParams
from leanseek.errors import EngineError, UsageError
from leanseek.server.asked import Asked
from leanseek.server.bridge import Bridge
from leanseek.server.completions import CompletionRequest
from leanseek.server.defaults import SamplingDefaults
from leanseek.server.job import Answer, Job
from leanseek.server.memory import Memory
from leanseek.server.refusal import ApiError
from leanseek.server.reply import Reply
from leanseek.server.ticket import Ticket
from leanseek.tokens.chat import ChatFormat

# DeepSeek's names, so that its clients need no change. All mean the one model; deepseek-chat means it without
# thinking (`openai.NOT_THINKING`).
ALIASES = ("deepseek-flash", "deepseek-v4-flash", "deepseek-v4-pro", "deepseek-chat", "deepseek-reasoner")


@dataclass(frozen=True)
class Served:
    """What is served.

    Args:
        name: the model's id in requests and answers.
        fingerprint: changes with the weights and the program (OpenAI's system_fingerprint).
        defaults: how the model wants to be sampled.
        created: seconds since 1970.
        aliases: further names that requests may call it.
    """

    name: str
    fingerprint: str = "fp_unknown"
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    created: int = field(default_factory=lambda: int(time.time()))
    aliases: tuple[str, ...] = ALIASES

    @property
    def names(self) -> tuple[str, ...]:
        """All names, the model's own first."""
        return tuple(dict.fromkeys((self.name, *self.aliases)))

    def check(self, name: str | None, also: str | None = None) -> str:
        """Return the name that an answer bears.

        Args:
            name: what a request calls the model; None: its own name.
            also: names that begin so are accepted too.
        Raises:
            ApiError: no model of that name is served.
        """
        if name is None or name in self.names or (also is not None and name.startswith(also)):
            return name or self.name
        aliases = f" (also as {', '.join(self.names[1:])})" if self.names[1:] else ""
        message = f"model {name!r:.200} is not served here; have {self.name!r}{aliases}"
        raise ApiError(404, message, code="model_not_found", param="model")


class Service:
    """Makes jobs of requests.

    Args:
        bridge: to the engine.
        served: what is served.
    """

    def __init__(self, bridge: Bridge, served: Served) -> None:
        self.bridge, self.served, self.memory = bridge, served, Memory()

    @property
    def engine(self) -> Engine:
        """The engine, once it is loaded."""
        return self.bridge.engine

    @property
    def chat(self) -> ChatFormat:
        """How the model's conversations are written."""
        chat = self.engine.chat
        if chat is None:
            raise ApiError(500, "the model has no tokenizer")
        return chat

    async def prompt_ids(self, asked: Asked) -> list[int]:
        """Return a conversation's prompt.

        Raises:
            ApiError: the chat format cannot say it.
        """
        asked = replace(asked, messages=self.memory.restore(asked.messages))
        chat = self.chat
        try:
            if asked.short and chat.native:  # handing it over would take longer
                return asked.prompt(chat)
            # In a thread: the text may be megabytes, and other requests' tokens must not wait for it.
            return await asyncio.to_thread(asked.prompt, chat)
        except (RecursionError, UsageError) as error:
            raise ApiError(400, f"{asked.param}: {error}", code="invalid_request", param=asked.param) from None

    async def converse(self, asked: Asked, answer: Answer, noted: dict[str, Any], call_id: str = "call_") -> Job:
        """Hand a chat request to the engine.

        Args:
            asked: what it wants.
            answer: how its replies are told.
            noted: gets the token counts.
            call_id: what the ids of tool calls begin with.
        Raises:
            ApiError: it cannot be served.
        """
        chat = self.chat
        self.bridge.make_room()
        prompt_ids = await self.prompt_ids(asked)
        room_tokens = self.room(prompt_ids, asked.param)
        thinking = asked.begins_in_thinking(chat)
        grammar = await asyncio.to_thread(asked.grammar, chat) if asked.guided else None
        params = asked.drawing.params(
            self.served.defaults,
            max_tokens=min(asked.max_tokens or room_tokens, room_tokens),
            # DeepSeek's own server takes penalties in thinking mode, and they change nothing.
            penalties=not thinking,
            logprobs=asked.logprobs,
            grammar=grammar,
        )
        await self.prepare(params, prompt_ids)

        def name(index: int) -> str:
            return call_id + secrets.token_hex(12)

        replies = [
            Reply(
                chat,
                params.stop,
                thinking=thinking,
                call_id=name,
                tools=bool(asked.toolbox.offered),
                past_end=params.ignore_eos,
            )
            for _ in range(params.n)
        ]
        ticket = self.bridge.submit(prompt_ids, params, asked.scope)
        return Job([ticket], replies, answer, noted, lambda reply: self.memory.remember(*reply.done()))

    async def complete(
        self, request: CompletionRequest, make: Callable[[Sequence[Sequence[int]]], Answer], noted: dict[str, Any]
    ) -> Job:
        """Hand a text completion to the engine.

        Args:
            request: what is asked.
            make: gives what tells the replies, of the prompts' tokens.
            noted: gets the token counts.
        Raises:
            ApiError: it cannot be served.
        """
        request.check()
        chat = self.chat
        self.bridge.make_room(len(request.prompt))
        prompts = await asyncio.to_thread(request.prompt_ids, chat.tokenizer)
        each = [
            request.params(self.served.defaults, room_tokens=self.room(ids, "prompt", of_text=True)) for ids in prompts
        ]
        for ids, params in zip(prompts, each, strict=True):
            await self.prepare(params, ids)
        replies = [Reply(chat, one.stop, thinking=False, plain=True) for one in each for _ in range(one.n)]
        tickets: list[Ticket] = []
        try:
            for ids, params in zip(prompts, each, strict=True):
                tickets.append(self.bridge.submit(ids, params, request.scope))
        except BaseException:
            for ticket in tickets:
                ticket.close()
            raise
        for ticket in tickets:
            ticket.siblings = tickets
        return Job(tickets, replies, make(prompts), noted)

    def room(self, prompt_ids: Sequence[int], param: str, *, of_text: bool = False) -> int:
        """Return how many tokens the context leaves for a reply.

        Raises:
            ApiError: none.
        """
        most = self.engine.max_context_tokens
        if len(prompt_ids) >= most:
            raise ApiError(
                400,
                f"the {'prompt' if of_text else 'conversation'} has {len(prompt_ids)} tokens; the model's context of "
                f"{most} leaves no room for a reply",
                code="context_length_exceeded",
                param=param,
            )
        return most - len(prompt_ids)

    async def prepare(self, params: SamplingParams, prompt_ids: Sequence[int]) -> None:
        """Find out now what the engine would refuse, and have new grammars ready before it sees them.

        Raises:
            ApiError: it would refuse it.
        """
        most = self.engine.config.vocab_size
        outside = next((token for token in prompt_ids if not 0 <= token < most), None)
        if outside is not None:
            message = f"the prompt has the token {outside}; the vocabulary has {most}"
            raise ApiError(400, message, code="invalid_request", param="prompt")
        if not prompt_ids:
            raise ApiError(400, "the prompt is empty: at least one token is needed", code="invalid_request")
        outside = next((token for token, _ in params.logit_bias if token >= most), None)
        if outside is not None:
            message = f"logit_bias has the token {outside}; the vocabulary has {most}"
            raise ApiError(422, message, code="invalid_parameter", param="logit_bias")
        if params.grammar is not None:
            try:
                await asyncio.to_thread(self.engine.compile, params.grammar)
            except EngineError as error:
                raise ApiError(400, str(error), code="invalid_grammar") from None
