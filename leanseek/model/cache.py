"""The latent cache: what a layer stores per token, the view that attention needs, and a contiguous one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from leanseek.model.segments import Segments


@dataclass(frozen=True)
class CacheSpec:
    """What one layer stores.

    Args:
        name: what is stored.
        width: numbers per entry.
        dtype: "float32" or "bfloat16".
        tokens_per_entry: tokens that one entry stands for (1 for a latent per token).
        window: None, or how many of the latest tokens are kept.
    """

    name: str
    width: int
    dtype: str
    tokens_per_entry: int = 1
    window: int | None = None


class CacheView(Protocol):
    """The part of a cache that one forward call reads and writes; segments are its rows."""

    def write(self, layer: int, latent_TC: Tensor, segments: Segments) -> None:
        """Store the new tokens' latents (after norm and rope) at their positions."""

    def read(self, layer: int, longest: int, segments: Segments) -> Tensor:
        """Return the segments' latents from position 0 on, padded: [S, longest, C]."""


class PagedView(CacheView, Protocol):
    """A cache as the compiled library sees it: texts' latents in pages of one tensor.

    Attributes:
        store: [layers, pages, tokens of a page, C].
    """

    store: Tensor

    def pages(self, texts: int) -> Tensor:
        """Return the pages of each of the next call's texts, in the order of its tokens: int64, [S, pages of one]."""


class ContiguousCache:
    """The plainest cache: rows of fixed capacity, one text each; a call works on the first S.

    One tensor holds every layer: [layers, rows, capacity, C].
    """

    def __init__(
        self,
        specs: Sequence[CacheSpec],
        rows: int,
        capacity: int,
        device: torch.device | str = "cpu",
    ) -> None:
        dtype = torch.float32 if specs[0].dtype == "float32" else torch.bfloat16
        self.store = torch.zeros(len(specs), rows, capacity, specs[0].width, dtype=dtype, device=device)

    def write(self, layer: int, latent_TC: Tensor, segments: Segments) -> None:
        """Store the new tokens' latents at their positions."""
        at = segments.segment_T, segments.positions_T
        self.store[layer].index_put_(at, latent_TC.to(self.store.dtype))

    def read(self, layer: int, longest: int, segments: Segments) -> Tensor:
        """Return the rows' latents, padded to `longest` positions."""
        return self.store[layer, : len(segments.lengths), :longest]

    def pages(self, texts: int) -> Tensor:
        """Return each text's row: it is one page."""
        return torch.arange(texts, device=self.store.device)[:, None]
