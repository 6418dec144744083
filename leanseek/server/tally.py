"""Tally: what each step of the engine did, for the metrics and for those who pay; one thread owns it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from leanseek.engine.request import Event
from leanseek.server.bill import Bill
from leanseek.server.metrics import Metrics
from leanseek.server.ticket import Ticket

# How much the newest interval between two finished requests counts.
NEWEST_SHARE = 0.1


class Tally:
    """Counts for a bridge.

    Args:
        bill: divides what steps cost.
        metrics: where it is counted.
    """

    def __init__(self, bill: Bill, metrics: Metrics) -> None:
        self.interval_s = 0.0  # between two finished requests, lately
        self._bill, self._metrics = bill, metrics
        self._finished_s = 0.0  # when the last one was

    def began(self, ticket: Ticket) -> None:
        """Count a request that the engine took."""
        self._metrics.prompt_tokens.add(len(ticket.prompt_ids))

    def step(self, said: Mapping[Ticket, Sequence[Event]], read: Sequence[Ticket]) -> None:
        """Count a step.

        Args:
            said: what each request got.
            read: whose it was if nobody got anything: a part of some prompts was read.
        """
        weights = {one: float(len(events)) for one, events in said.items()} or dict.fromkeys(read, 1.0)
        self._bill.divide({id(one): (one.share, weight) for one, weight in weights.items()})
        metrics, now_s = self._metrics, time.monotonic()
        metrics.steps.add()
        metrics.joules.add(self._bill.joules - metrics.joules.total)
        metrics.busy_s.add(self._bill.busy_s - metrics.busy_s.total)
        tokens = 0
        for ticket, events in said.items():
            cached = 0
            for event in events:
                before_s = ticket.last_s.get(event.index)
                if before_s is None:
                    metrics.first_token_s.note(now_s - ticket.began_s)
                elif before_s != now_s:  # of this very step
                    metrics.between_s.note(now_s - before_s)
                ticket.last_s[event.index] = now_s
                tokens += event.token_id is not None
                cached = max(cached, event.cached_tokens)
                if event.finish_reason is not None:
                    metrics.replies.add(reason=event.finish_reason)
            if cached:
                metrics.cached_tokens.add(cached)
        metrics.completion_tokens.add(tokens)

    def finished(self, ticket: Ticket) -> None:
        """Count a request that was answered."""
        now_s = time.monotonic()
        self._metrics.request_s.note(now_s - ticket.began_s)
        # Time without work in between is nobody's.
        interval_s = now_s - max(self._finished_s, ticket.began_s)
        self.interval_s += (NEWEST_SHARE if self._finished_s else 1.0) * (interval_s - self.interval_s)
        self._finished_s = now_s
