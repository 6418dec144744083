"""Runner: calls the model on what the scheduler chose, and keeps the cache's tables in step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leanseek.engine.blocks import Blocks
from leanseek.engine.paged_cache import PagedCache
from leanseek.engine.rows import Rows
from leanseek.engine.scheduler import Copy, Reading, Sample
from leanseek.engine.speculative import Drawn, Speculation
from leanseek.model.cache import CacheSpec
from leanseek.model.decoder import Decoder
from leanseek.model.experts import Routing
from leanseek.model.segments import Segments
from leanseek.model.transformer import Transformer


class Runner:
    """The only part of the engine that computes hidden states: by the native decoder where it suits, else by the model.

    Args:
        model: its weights are read as they are at each call.
        specs: what each layer stores; the MTP layer's last, if it drafts.
        blocks: how the cache is cut.
        whole_texts: whether a block is a whole text; the rows then lie side by side.
        drafts: tokens that the MTP layer drafts at once; 0: none.
        record_experts: whether the routing is kept.
    """

    def __init__(
        self,
        model: Transformer,
        specs: Sequence[CacheSpec],
        blocks: Blocks,
        *,
        whole_texts: bool,
        drafts: int,
        record_experts: bool,
    ) -> None:
        self.model, self.whole_texts, self.record_experts = model, whole_texts, record_experts
        self.cache = PagedCache(specs, blocks.count, blocks.tokens, model.device)
        self.forward: Transformer | Decoder = Decoder(model) if Decoder.suits(model) else model
        self.speculation = Speculation(self.forward, self.cache, drafts) if drafts else None
        self._stale = True  # whether the tables in use are not the rows'

    def copy(self, copies: Sequence[Copy]) -> None:
        """Carry copies out, as if all at once: none reads what another writes."""
        if copies:
            targets = [copy.target for copy in copies]
            if not self.whole_texts:
                self.cache.clear(targets)
            self.cache.copy([copy.source for copy in copies], targets, max(copy.tokens for copy in copies))

    def read(self, parts: Sequence[tuple[Reading, int, int]]) -> tuple[Tensor, Segments, Routing | None]:
        """Read pieces of prompts.

        Args:
            parts: texts, and from which token to which each is read.
        Returns:
            Hidden states of the pieces, how they are packed, and the routing if it is kept.
        """
        device = self.model.device
        tokens = [token for reading, start, end in parts for token in reading.ids[start:end]]
        begun = any(start for _, start, _ in parts)
        segments = Segments(
            tuple(end - start for _, start, end in parts),
            cached_lengths=tuple(start for _, start, _ in parts) if begun else None,
            device=device,
        )
        if self.whole_texts:
            self.cache.reserve(segments.longest)
        else:
            self.cache.clear([block for reading, _, _ in parts for block in reading.blocks])
        self.cache.use([reading.blocks for reading, _, _ in parts])
        self._stale = True
        routing = Routing() if self.record_experts else None
        hidden_TD = self.forward(torch.tensor(tokens, device=device), segments, self.cache, routing)
        if self.speculation is not None:
            self.speculation.read(parts, hidden_TD, segments)
        return hidden_TD, segments, routing

    def decode(self, rows: Rows) -> Tensor:
        """Read every row's newest token; return the logits of the next, [S, W]."""
        count = len(rows)
        last_S, position_S, longest = rows.last[:count], rows.position[:count], rows.longest + 1
        routing = Routing() if self.record_experts else None
        self._use(rows.samples, longest)
        segments = Segments.decode(position_S, longest, rows.level)
        logits_SW = self.forward.decode(last_S, segments, self.cache, routing)
        rows.advance(None if routing is None else routing.experts)
        return logits_SW

    def speculate(self, rows: Rows) -> Drawn:
        """Draft after every row's newest token, check, and draw; `rows` stay as they are."""
        speculation, count = self.speculation, len(rows)
        assert speculation is not None, "callers look"
        self._use(rows.samples, rows.longest + speculation.drafts + 1)
        positions = rows.position[:count].tolist()
        routing = Routing() if self.record_experts else None
        return speculation.step(rows.samples, rows.last[:count], positions, rows.sampling(), routing)

    def changed(self, samples: Sequence[Sample]) -> None:
        """Note that rows came, went, or got blocks."""
        self._stale = True
        if not self.whole_texts:
            self.cache.clear([one.blocks[-1] for one in samples])

    def _use(self, samples: Sequence[Sample], longest: int) -> None:
        if self._stale:
            self.cache.use([one.blocks for one in samples])
            self._stale = False
        if self.whole_texts:
            self.cache.reserve(longest)
