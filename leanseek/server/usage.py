"""Usage: what a request took: tokens, joules and money, as each protocol spells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leanseek.server.reply import Reply
from leanseek.server.ticket import Ticket


@dataclass(frozen=True)
class Usage:
    """What one answer took.

    Args:
        prompt_tokens: of all prompts.
        cached_tokens: those of them that were not read anew.
        completion_tokens: of all replies.
        reasoning_tokens: those of them that were thinking.
        joules: the request's share of what the machine drew; None: not counted.
        meter: how the joules were got.
        usd: the request's share of what the machine costs; None: no price is set.
    """

    prompt_tokens: int
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    joules: float | None = None
    meter: str = ""
    usd: float | None = None

    @classmethod
    def of(cls, tickets: Sequence[Ticket], replies: Sequence[Reply]) -> Usage:
        """Count what requests and their replies took.

        Args:
            tickets: of the requests.
            replies: to each of them as many as it asked for, in order.
        """
        cached, at = 0, 0
        for ticket in tickets:
            cached += max(reply.cached_tokens for reply in replies[at : at + ticket.params.n])
            at += ticket.params.n
        shares = [ticket.share for ticket in tickets]
        joules = [share.joules for share in shares if share.joules is not None]
        usd = [share.usd for share in shares if share.usd is not None]
        return cls(
            sum(len(ticket.prompt_ids) for ticket in tickets),
            sum(reply.tokens for reply in replies),
            sum(reply.reasoning_tokens for reply in replies),
            cached,
            sum(joules) if joules else None,
            shares[0].meter if shares else "",
            sum(usd) if usd else None,
        )

    def openai(self) -> dict[str, Any]:
        """Return it in OpenAI's and DeepSeek's fields."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "prompt_cache_hit_tokens": self.cached_tokens,
            "prompt_cache_miss_tokens": self.prompt_tokens - self.cached_tokens,
            **self._cost(),
        }

    def anthropic(self) -> dict[str, Any]:
        """Return it in Anthropic's fields: input_tokens are those that the cache did not have."""
        return {
            "input_tokens": self.prompt_tokens - self.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": self.cached_tokens,
            "output_tokens": self.completion_tokens,
            "output_tokens_details": {"thinking_tokens": self.reasoning_tokens},
            **self._cost(),
        }

    def responses(self) -> dict[str, Any]:
        """Return it in the fields of OpenAI's Responses."""
        return {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": self.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            **self._cost(),
        }

    def _cost(self) -> dict[str, Any]:
        joules = {} if self.joules is None else {"joules": round(self.joules, 6), "joules_meter": self.meter}
        return joules | ({} if self.usd is None else {"usd": round(self.usd, 12)})
