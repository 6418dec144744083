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


class DecodeView(Protocol):
    """The part of a cache that the merged decoder works on."""

    def append(
        self, layer: int, latent_SC: Tensor, rows_S: Tensor, positions_S: Tensor, longest: int, level: bool
    ) -> Tensor:
        """Store one new latent for each of the first S rows, and return these rows.

        Args:
            layer: which.
            latent_SC: one per row.
            rows_S: 0 .. S - 1.
            positions_S: where each goes.
            longest: the largest position + 1.
            level: whether all positions are the same.
        Returns:
            [S, longest, C].
        """


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

    def append(
        self, layer: int, latent_SC: Tensor, rows_S: Tensor, positions_S: Tensor, longest: int, level: bool
    ) -> Tensor:
        """Store one new latent for each row, and return the rows; as `DecodeView.append`."""
        self.store[layer].index_put_((rows_S, positions_S), latent_SC)
        return self.store[layer, : latent_SC.shape[0], :longest]
