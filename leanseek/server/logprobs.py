"""Log-probabilities: a reply's tokens with their chances, as OpenAI's chats and responses list them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from leanseek.server.reply import Scored

# What OpenAI writes for a token that has no chance at all; JSON has no infinity.
LEAST_LOGPROB = -9999.0

BytesOf = Callable[[int], bytes]


def no_bytes(token_id: int) -> bytes:
    """Return nothing: for answers that show no tokens."""
    return b""


def entries(scored: Sequence[Scored], bytes_of: BytesOf) -> list[dict[str, Any]]:
    """Return the entry of each token.

    Args:
        scored: the tokens.
        bytes_of: gives a token's bytes, for the likeliest ones.
    """
    return [
        {
            **_entry(one.text, one.text.encode(), one.logprob),
            "top_logprobs": [_top(bytes_of(token), logprob) for token, logprob in one.top],
        }
        for one in scored
    ]


def _top(data: bytes, logprob: float) -> dict[str, Any]:
    return _entry(data.decode("utf-8", "replace"), data, logprob)


def _entry(text: str, data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": max(logprob, LEAST_LOGPROB), "bytes": list(data)}
