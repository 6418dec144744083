"""Job: requests under way for one client, and their replies told whole or as a stream, in any protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from leanseek.engine.request import Event
from leanseek.errors import LeanseekError
from leanseek.server.refusal import ApiError, as_api_error
from leanseek.server.reply import Reply, Said
from leanseek.server.ticket import StoppingError, Ticket, merged
from leanseek.server.usage import Usage

# DeepSeek's word for a reply that the server had to end.
CUT_OFF = "insufficient_system_resource"


UsageSoFar = Callable[[], Usage]


class Answer(Protocol):
    """How a protocol tells replies; frames are whole events of a stream."""

    def whole(self, said: Sequence[Said], replies: Sequence[Reply], usage: Usage) -> Any:
        """Return the answer to a request that does not stream."""

    def opening(self, usage: Usage) -> Iterable[bytes]:
        """Yield what a stream begins with."""

    def piece(self, index: int, said: Said, usage: UsageSoFar) -> Iterable[bytes]:
        """Yield what a reply has said; `usage` gives what the request took until now."""

    def ending(self, index: int, reply: Reply) -> Iterable[bytes]:
        """Yield that a reply has ended."""

    def closing(self, replies: Sequence[Reply], usage: Usage) -> Iterable[bytes]:
        """Yield what a stream ends with."""

    def failure(self, error: ApiError) -> Iterable[bytes]:
        """Yield that the stream failed; its status line is gone already."""

    def first(self, index: int, event: Event) -> None:
        """Take a reply's first event, before it is said."""


class Job:
    """Follows one client's requests to their end.

    Args:
        tickets: of the requests.
        replies: to each of them as many as it asked for, in order.
        answer: how they are told.
        noted: is given the token counts, for the access log.
        ended: is given each reply that ends.
    """

    def __init__(
        self,
        tickets: Sequence[Ticket],
        replies: Sequence[Reply],
        answer: Answer,
        noted: dict[str, Any],
        ended: Callable[[Reply], None] = lambda reply: None,
    ) -> None:
        self.tickets, self.replies, self.answer = list(tickets), list(replies), answer
        self._noted, self._ended = noted, ended
        self._first = [0]
        for ticket in tickets:
            self._first.append(self._first[-1] + ticket.params.n)

    async def whole(self) -> Any:
        """Wait for all replies and return them as one object."""
        parts: list[list[Said]] = [[] for _ in self.replies]
        async for batch in self._said():
            for index, said in batch:
                parts[index].append(said)
        return self.answer.whole([Said.joined(part) for part in parts], self.replies, self.usage())

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the events of a stream, those that are there at once together."""
        answer = self.answer
        yield b"".join(answer.opening(Usage(sum(len(ticket.prompt_ids) for ticket in self.tickets))))
        try:
            async for batch in self._said():
                if told := b"".join(self._told(batch)):
                    yield told
        except LeanseekError as error:
            yield b"".join(answer.failure(as_api_error(error)))
            return
        yield b"".join(answer.closing(self.replies, self.usage()))

    def _told(self, batch: Iterable[tuple[int, Said]]) -> Iterator[bytes]:
        for index, said in batch:
            yield from self.answer.piece(index, said, self.usage)
            if self.replies[index].finish_reason is not None:
                yield from self.answer.ending(index, self.replies[index])

    def usage(self) -> Usage:
        """Return what it has taken so far."""
        usage = Usage.of(self.tickets, self.replies)
        self._noted |= {
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
        }
        return usage

    def close(self) -> None:
        """Cancel what is left; may be called again."""
        self.usage()
        for ticket in self.tickets:
            ticket.close()

    async def _said(self) -> AsyncIterator[Iterable[tuple[int, Said]]]:
        """Yield what replies say, each with its reply's place, as much at once as is there."""
        try:
            async for place, events in merged(self.tickets):
                yield self._pushed(self._first[place], events)
        except StoppingError:
            if not any(reply.tokens for reply in self.replies):
                raise
            yield [(i, reply.end(CUT_OFF)) for i, reply in enumerate(self.replies) if reply.finish_reason is None]

    def _pushed(self, first: int, events: Iterable[Event]) -> Iterator[tuple[int, Said]]:
        """Yield what events of one ticket add, each while its reply stands there; nothing of a reply after its end."""
        for event in events:
            index = first + event.index
            reply = self.replies[index]
            if reply.finish_reason is None:
                if not reply.tokens:
                    self.answer.first(index, event)
                said = reply.push(event)
                if reply.finish_reason is not None:
                    self._ended(reply)
                yield index, said
