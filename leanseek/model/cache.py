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


class ContiguousCache:
    """Rows of fixed capacity; the rows that a call works on are the first S, or those chosen by `use`.

    One tensor holds every layer: [layers, rows, capacity, C]. A row keeps one text's latents.
    """

    def __init__(
        self,
        specs: Sequence[CacheSpec],
        rows: int,
        capacity: int,
        device: torch.device | str = "cpu",
    ) -> None:
        dtype = torch.float32 if specs[0].dtype == "float32" else torch.bfloat16
        # Not cleared: what a row has not written yet is masked. Pages are only touched when used.
        self.store = torch.empty(len(specs), rows, capacity, specs[0].width, dtype=dtype, device=device)
        self._layers = self.store.unbind(0)
        # Unwritten places may hold NaN bit patterns, which survive a product with zero: clear lazily on read.
        self._cleared = 0
        self._rows: Tensor | None = None

    @property
    def capacity(self) -> int:
        """Tokens that a row can hold."""
        return self.store.shape[2]

    def use(self, rows: Tensor | None) -> ContiguousCache:
        """Make the next calls work on these rows (int64, [S]); None: on rows 0 .. S - 1."""
        self._rows = rows
        return self

    def write(self, layer: int, latent_TC: Tensor, segments: Segments) -> None:
        """Store the new tokens' latents at their positions."""
        self.reserve(segments.longest)
        rows = segments.segment_T if self._rows is None else self._rows[segments.segment_T]
        self.store[layer].index_put_((rows, segments.positions_T), latent_TC.to(self.store.dtype))

    def read(self, layer: int, longest: int, segments: Segments) -> Tensor:
        """Return the rows' latents, padded to `longest` positions."""
        if self._rows is None:
            return self.store[layer, : len(segments.lengths), :longest]
        return self.store[layer, :, :longest].index_select(0, self._rows)

    def reserve(self, longest: int) -> None:
        """Make positions up to `longest` readable, written or not."""
        if longest > self._cleared:
            end = min(-(-longest // 64) * 64, self.capacity)
            self.store[:, :, self._cleared : end] = 0
            self._cleared = end

    def append(
        self, layer: int, latent_SC: Tensor, rows_S: Tensor, positions_S: Tensor, longest: int, level: bool
    ) -> Tensor:
        """Store one new latent for each of the first S rows, and return these rows; `reserve` comes first.

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
        store = self._layers[layer]
        kept_SKC = store[: latent_SC.shape[0], :longest]
        if level:
            kept_SKC[:, -1] = latent_SC
        else:
            store.index_put_((rows_S, positions_S), latent_SC)
        return kept_SKC

    def clear_rows(self, rows: Sequence[int]) -> None:
        """Forget what some rows hold: NaN left behind would spoil a shorter text there, which masks but multiplies."""
        self.store[:, list(rows)] = 0

    def copy_rows(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Copy the first `length` positions of some rows onto others, in every layer."""
        self.store[:, list(targets), :length] = self.store[:, list(sources), :length]
