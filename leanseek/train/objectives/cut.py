"""Cut: how a step's groups are parted, into optimiser steps, and each step's among workers and forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar


@dataclass(frozen=True)
class Cut:
    """How groups are parted.

    Args:
        epochs: times that every group is learnt from.
        minibatches: optimiser steps of an epoch.
        by_length: the longest groups are dealt first, each to the smallest part; else parts are runs in order.
        by_reply: whether a part weighs as many replies, or reply tokens, as it has: what the loss is averaged over.
    """

    epochs: int = 1
    minibatches: int = 1
    by_length: bool = False
    by_reply: bool = False


class Sized(Protocol):
    """Anything that cannot be parted, and how large it is."""

    @property
    def tokens(self) -> int:
        """Tokens that the model reads."""


Item = TypeVar("Item", bound=Sized)


def share_out(items: Sequence[Item], count: int, tokens: int | None, *, by_length: bool = False) -> list[list[Item]]:
    """Return about `count` parts, or more, so that each has about `tokens` tokens at most; none of nothing.

    Args:
        items: what is shared.
        count: parts that are wanted, of about equal size.
        tokens: largest size of a part; None: any. One item may be larger.
        by_length: longest first, each to the part that has the least; else cut where an item ends, nearest to an
            even share.
    """
    if not items:
        return []
    total = sum(item.tokens for item in items)
    size = -(-total // count)
    if tokens is not None:
        size = min(size, tokens)
    if by_length:
        return _evenly(items, min(len(items), max(count, -(-total // size))))
    parts: list[list[Item]] = [[]]
    done = 0
    for item in items:
        if done + item.tokens / 2 > size * len(parts) and parts[-1]:
            parts.append([])
        parts[-1].append(item)
        done += item.tokens
    return parts


def _evenly(items: Sequence[Item], count: int) -> list[list[Item]]:
    """Deal the longest first, each to the part with the fewest tokens: the largest part is at most 4/3 of the best.

    Source: Graham 1969, "Bounds on multiprocessing timing anomalies".
    """
    parts: list[list[Item]] = [[] for _ in range(count)]
    sizes = [0] * count
    for item in sorted(items, key=lambda item: -item.tokens):
        least = sizes.index(min(sizes))
        parts[least].append(item)
        sizes[least] += item.tokens
    return parts
