"""Requests: what a client asks of the engine, and what it gets back. Plain data, no torch."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from leanseek.errors import EngineError

# Rows keep whole numbers in 64 bits, and reply i draws with seed + i.
LARGEST = 1 << 62
MOST_TOP_LOGPROBS = 20

GrammarKind = Literal["json_object", "json_schema", "regex", "lark", "tools"]


@dataclass(frozen=True)
class Grammar:
    """What a reply may be.

    Args:
        kind: "json_object" (any), "json_schema", "regex", "lark" (llguidance's grammars), or "tools": free text until
            `marker` has been said, from there on what the lark grammar `text` allows.
        text: the schema as JSON, the expression, or the grammar.
        marker: the text that begins a tool call, with "tools".
        after_thinking: whether it holds only from the end of the thinking on.
    """

    kind: GrammarKind
    text: str = ""
    marker: str = ""
    after_thinking: bool = False


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
        logprobs: None, or how many of the most likely tokens' log-probabilities to get for each place, beside the
            chosen token's own: 0 to 20.
        prompt_logprobs: the same for the prompt's tokens, of which the first has none.
        presence_penalty, frequency_penalty: what a token's logit loses for having been said in the reply: once, and
            for every time; in [-2, 2].
        repetition_penalty: what a logit is divided by (multiplied, where negative) if the token stands in prompt or
            reply; above 0, 1 changes nothing.
        logit_bias: (token, what its logit gains) pairs.
        grammar: what the reply may be; None: anything.
        supports: whether to get, for each token of the reply, which tokens could have been drawn in its place.
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
    prompt_logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: Grammar | None = None
    supports: bool = False

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
            ("logprobs", _is_count(self.logprobs), f"None or 0 to {MOST_TOP_LOGPROBS}"),
            ("prompt_logprobs", _is_count(self.prompt_logprobs), f"None or 0 to {MOST_TOP_LOGPROBS}"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "between -2 and 2"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "between -2 and 2"),
            ("repetition_penalty", 0 < self.repetition_penalty <= 100, "above 0 and at most 100"),
            (
                "logit_bias",
                all(token >= 0 and -1e4 <= bias <= 1e4 for token, bias in self.logit_bias),
                "pairs of a token and a number between -10,000 and 10,000",
            ),
        )
        for name, fine, accepted in checks:
            if not fine:
                raise EngineError(f"{name} = {getattr(self, name)!r}: {accepted} is accepted")


# What everything that answers prompts takes: texts or token ids; parameters for all, or for each.
Prompts = Sequence[str] | Sequence[Sequence[int]]
Params = SamplingParams | Sequence[SamplingParams]
Progress = Callable[[int], None]


def params_of_each(params: Params, prompts: Prompts) -> list[SamplingParams]:
    """Return every prompt's own parameters."""
    return [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)


def _is_count(value: int | None) -> bool:
    return value is None or 0 <= value <= MOST_TOP_LOGPROBS


# Per place: (token, log-probability in nats) of the most likely tokens, best first.
TopLogprobs = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Request:
    """A prompt and how to answer it.

    Args:
        request_id: the caller's or the engine's name for it.
        prompt_ids: the prompt's tokens.
        params: how to draw.
        scope: requests of different scopes share no cached prefix (DeepSeek's user_id).
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    scope: str = ""


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
        cached_tokens: how much of the prompt was not read anew, since the prefix cache had it.
        top_logprobs: per token, the most likely ones, if asked for.
        prompt_logprobs: per prompt token but the first (None), its log-probability, if asked for.
        prompt_top_logprobs: the same for the most likely ones.
        supports: per token, the ids of those that could have been drawn in its place, ascending: what top-k, top-p
            and min-p left, and what rules (a grammar, a bias) made impossible taken out; the whole vocabulary where
            nothing was cut; at temperature 0 the token alone. The token itself is always among them. If asked for.
        logprobs_within: per token, its log-probability among its `supports`: of softmax(logits / temperature) over
            these alone (0 at temperature 0). `logprobs` are before the cut. If supports are asked for.
    """

    request_id: str
    index: int
    token_ids: list[int]
    text: str
    logprobs: list[float] | None = None
    experts: Any = field(default=None, repr=False, compare=False)
    finish_reason: str = "stop"
    error: str | None = None
    cached_tokens: int = 0
    top_logprobs: list[TopLogprobs] | None = None
    prompt_logprobs: list[float | None] | None = None
    prompt_top_logprobs: list[TopLogprobs | None] | None = None
    supports: list[array[int]] | None = field(default=None, repr=False)
    logprobs_within: list[float] | None = field(default=None, repr=False)


@dataclass(slots=True)
class Event:
    """One token of one reply, or its end; not frozen, since making a frozen one takes three times as long.

    Args:
        request_id, index: which request's which reply.
        token_id: None where the reply ends without a token (cancelled, error).
        logprob: of the token, in nats.
        finish_reason: None while the reply goes on.
        error: what went wrong, with finish_reason "error".
        top_logprobs: the most likely tokens at this place, if asked for.
        cached_tokens: with a reply's first token, how much of the prompt the prefix cache had; else 0.
        prompt_logprobs, prompt_top_logprobs: with a reply's first token, if asked for, as `Output` has them.
    """

    request_id: str
    index: int
    token_id: int | None
    logprob: float | None = None
    finish_reason: str | None = None
    error: str | None = None
    top_logprobs: TopLogprobs | None = None
    cached_tokens: int = 0
    prompt_logprobs: list[float | None] | None = None
    prompt_top_logprobs: list[TopLogprobs | None] | None = None
