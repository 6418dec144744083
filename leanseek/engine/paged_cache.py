"""PagedCache: the texts' latents in blocks, which need not lie side by side; a text's table says where each is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leanseek.model.cache import CacheSpec
from leanseek.model.segments import Segments

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PagedCache:
    """One tensor of every layer's blocks: [layers, blocks, block_tokens, C].

    With blocks as long as the longest text, a text is one block, and if the rows' blocks are the first ones in order,
    reading is a view and copies nothing: what training's rollouts want. With small ones, texts of any length share
    the room, and beginnings that they have in common: what a server wants; reading then gathers.

    Args:
        specs: what each layer stores.
        blocks: how many there are.
        block_tokens: tokens of one.
        device: where they are.
    """

    def __init__(
        self, specs: Sequence[CacheSpec], blocks: int, block_tokens: int, device: torch.device | str = "cpu"
    ) -> None:
        # Not cleared: pages are only touched when used. What was never written is cleared before it is read, since
        # it may hold NaN bit patterns, which survive a product with zero.
        shape = (len(specs), blocks, block_tokens, specs[0].width)
        self.store = torch.empty(shape, dtype=DTYPES[specs[0].dtype], device=device)
        self.block_tokens = block_tokens
        self._layers = self.store.unbind(0)
        self._cleared = 0  # positions of all blocks
        self._clean = [False] * blocks
        self._tables_SB: Tensor | None = None
        self._in_order_S1 = torch.arange(blocks, device=device)[:, None]

    @staticmethod
    def bytes_per_token(specs: Sequence[CacheSpec]) -> int:
        """Return what a token takes in all layers together."""
        return sum(spec.width * DTYPES[spec.dtype].itemsize for spec in specs)

    def use(self, tables: Sequence[Sequence[int]]) -> None:
        """Make the next calls work on these texts' blocks, row by row.

        Args:
            tables: per row, its blocks in order.
        """
        if self._whole_texts(tables):
            self._tables_SB = None
            return
        width = max(map(len, tables))
        # Short tables are filled up with a block of their own: it is readable, and what is read there is masked.
        filled = [[*table, *[table[-1]] * (width - len(table))] for table in tables]
        self._tables_SB = torch.tensor(filled, device=self.store.device)

    def clear(self, blocks: Sequence[int], *, again: bool = False) -> None:
        """Make small blocks readable before their first use; `again`: although they were, since they hold NaN."""
        fresh = [block for block in blocks if again or not self._clean[block]]
        if fresh:
            self.store[:, fresh] = 0
            for block in fresh:
                self._clean[block] = True

    def reserve(self, longest: int) -> None:
        """Make positions up to `longest` of every block readable: for blocks that are whole texts."""
        if longest > self._cleared:
            end = min(-(-longest // 64) * 64, self.block_tokens)
            self.store[:, :, self._cleared : end] = 0
            self._cleared = end

    def write(self, layer: int, latent_TC: Tensor, segments: Segments) -> None:
        """Store the new tokens' latents at their positions."""
        self._put(layer, latent_TC, segments.segment_T, segments.positions_T)

    def read(self, layer: int, longest: int, segments: Segments) -> Tensor:
        """Return the rows' latents, padded to `longest` positions."""
        return self._rows(layer, len(segments.lengths), longest)

    def pages(self, texts: int) -> Tensor:
        """Return the blocks of the texts in use, as `model.cache.PagedView.pages`."""
        if self._tables_SB is None:
            return self._in_order_S1[:texts]
        return self._tables_SB

    def copy(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Copy the first `length` positions of some blocks onto others, in every layer."""
        self.store[:, list(targets), :length] = self.store[:, list(sources), :length]

    def payload(self, block: int, tokens: int) -> bytes:
        """Return a block's first latents as bytes, every layer's."""
        held = self.store[:, block, :tokens].contiguous().cpu()
        data: bytes = held.view(torch.uint8).numpy().tobytes()
        return data

    def restore(self, block: int, tokens: int, data: bytes) -> bool:
        """Put what `payload` gave into a block; False, and nothing is changed, where it does not fit."""
        target = self.store[:, block, :tokens]
        if len(data) != target.numel() * target.element_size():
            return False
        found = torch.frombuffer(bytearray(data), dtype=self.store.dtype).view(target.shape)
        if not bool(torch.isfinite(found).all()):
            return False
        self.clear([block])
        target.copy_(found)
        return True

    def _whole_texts(self, tables: Sequence[Sequence[int]]) -> bool:
        return all(len(table) == 1 and table[0] == row for row, table in enumerate(tables))

    def _put(self, layer: int, latent_TC: Tensor, row_T: Tensor, position_T: Tensor) -> None:
        store = self._layers[layer]
        if self._tables_SB is None:
            store.index_put_((row_T, position_T), latent_TC.to(store.dtype))
            return
        block_T = self._tables_SB[row_T, position_T // self.block_tokens]
        store.index_put_((block_T, position_T % self.block_tokens), latent_TC.to(store.dtype))

    def _rows(self, layer: int, count: int, longest: int) -> Tensor:
        store = self._layers[layer]
        if self._tables_SB is None:
            return store[:count, :longest]
        blocks = -(-longest // self.block_tokens)
        table_SB = self._tables_SB[:count, :blocks]
        if table_SB.shape[1] == 1:
            return store[:, :longest].index_select(0, table_SB[:, 0])
        gathered = store.index_select(0, table_SB.reshape(-1)).view(count, -1, store.shape[2])
        return gathered[:, :longest]
