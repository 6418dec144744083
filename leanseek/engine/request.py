"""Requests: what a client asks of the engine, and what it gets back. Plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from leanseek.errors import EngineError

# Rows keep whole numbers in 64 bits, and reply i draws with seed + i.
LARGEST = 1 << 62


@dataclass(frozen=True)
class SamplingParams:
    """How a reply is drawn.

    Args:
        max_tokens: longest reply.
        temperature: 0 takes the most likely token.
        top_p: smallest set of tokens whose share reaches this is kept; in (0, 1].
        top_k: how many tokens are kept; 0 keeps all.
        min_p: tokens below this share of the most likely one's are dropped; in [0, 1].
        n: replies to draw; their prompt is prefilled once.
        seed: of the draws; None takes a fresh one from the engine. Reply i draws with seed + i.
        stop: texts that end a reply; they are not part of it.
        stop_token_ids: tokens that end a reply.
        ignore_eos: whether to go on after the end-of-sentence token.
        logprobs: None, or 0 to get the chosen tokens' log-probabilities.
    Raises:
        EngineError: a value out of its range.
    """

    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    n: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        checks = (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature <= 100, "between 0 and 100"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", 0 <= self.top_k < LARGEST, "0 or more, below 2^62"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("n", self.n >= 1, "at least 1"),
            ("seed", self.seed is None or abs(self.seed) < LARGEST, "None or a whole number below 2^62 in size"),
            ("stop", all(self.stop), "texts that are not empty"),
            ("logprobs", self.logprobs in (None, 0), "None or 0"),
        )
        for name, fine, accepted in checks:
            if not fine:
                raise EngineError(f"{name} = {getattr(self, name)!r}: {accepted} is accepted")


@dataclass(frozen=True)
class Request:
    """A prompt and how to answer it.

    Args:
        request_id: the caller's or the engine's name for it.
        prompt_ids: the prompt's tokens.
        params: how to draw.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams


@dataclass(frozen=True)
class Output:
    """One finished reply.

    Args:
        request_id, index: which request's which reply.
        token_ids: the reply, the ending token included; with "error", up to the broken token.
        text: decoded, special tokens and what a stop text cut off left out; "" without a tokenizer.
        logprobs: per token, its log-probability in nats, if asked for.
        experts: the routing used for the prompt and the reply's tokens but the last,
            [tokens, MoE layers, K] int16, if the engine records it.
        finish_reason: "stop", "length", "cancelled" or "error".
        error: what went wrong, with "error".
    """

    request_id: str
    index: int
    token_ids: list[int]
    text: str
    logprobs: list[float] | None = None
    experts: Any = field(default=None, repr=False, compare=False)
    finish_reason: str = "stop"
    error: str | None = None


@dataclass(frozen=True)
class Event:
    """One token of one reply, or its end.

    Args:
        request_id, index: which request's which reply.
        token_id: None where the reply ends without a token (cancelled, error).
        logprob: of the token, in nats.
        finish_reason: None while the reply goes on.
        error: what went wrong, with finish_reason "error".
    """

    request_id: str
    index: int
    token_id: int | None
    logprob: float | None = None
    finish_reason: str | None = None
    error: str | None = None
