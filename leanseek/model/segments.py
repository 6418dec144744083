"""Segments: which packed tokens belong together, at which positions, and what they may look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from leanseek.errors import UsageError
from leanseek.model.count import causal_pairs


@dataclass(frozen=True)
class AttentionGroup:
    """Segments of similar length, laid side by side for one padded attention call.

    Args:
        queries_SQ: packed index of each query; padding repeats the segment's last token. Where causal order says it
            all, the prefix's tokens come first here too, and what they find is dropped.
        keys_SK: packed index of each key (the prefix's tokens, then the segment's own).
        visible_SQK: which keys a query may see; None where plain causal order says it all.
    """

    queries_SQ: Tensor
    keys_SK: Tensor
    visible_SQK: Tensor | None


@dataclass(frozen=True, eq=False)
class Segments:
    """The shape of a packed batch: T tokens of S segments, one after the other.

    A segment may name another as its prefix: it then continues it, sees its tokens and counts
    positions from its end. That is how the samples of a group share one prompt. With a cache, a
    segment continues what `cached_lengths` says is stored.

    Args:
        lengths: tokens of each segment; their sum is T.
        prefixes: per segment, the earlier segment that it continues, or -1; None: nobody continues.
        cached_lengths: per segment, tokens that the cache already holds; None: no cache is read.
    """

    lengths: tuple[int, ...]
    prefixes: tuple[int, ...] | None = None
    cached_lengths: tuple[int, ...] | None = None
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        """Refuse shapes that no batch can have."""
        if any(length < 1 for length in self.lengths):
            raise UsageError(f"a segment needs at least one token; got lengths {self.lengths}")
        for name, values in (("prefixes", self.prefixes), ("cached_lengths", self.cached_lengths)):
            if values is not None and len(values) != len(self.lengths):
                raise UsageError(f"{name} has {len(values)} entries for {len(self.lengths)} segments")
        if self.prefixes is not None:
            for segment, prefix in enumerate(self.prefixes):
                if prefix >= segment or (prefix >= 0 and self.prefixes[prefix] >= 0):
                    raise UsageError(f"segment {segment} continues {prefix}: it must be earlier and continue nobody")
            if self.cached_lengths is not None:
                raise UsageError("prefixes and cached_lengths cannot be used together")

    @classmethod
    def single(cls, length: int, device: torch.device | str = "cpu") -> Segments:
        """Return one segment of `length` tokens."""
        return cls((length,), device=device)

    @classmethod
    def packed(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> Segments:
        """Return segments of these lengths, each on its own."""
        return cls(tuple(lengths), device=device)

    @classmethod
    def decode(cls, positions_S: Tensor, longest: int, level: bool) -> Segments:
        """Return one new token per cached text, without a Python number per text.

        Args:
            positions_S: position of each new token (= tokens cached before it); int64.
            longest: the largest position + 1.
            level: whether all positions are the same.
        """
        count = positions_S.shape[0]
        segments = object.__new__(cls)  # there is nothing to check
        # cached_property keeps its value here; these are what it would compute from real lengths.
        segments.__dict__.update(
            lengths=(1,) * count,
            prefixes=None,
            cached_lengths=(longest - 1,) * count,
            device=positions_S.device,
            positions_T=positions_S,
            first_positions_S=positions_S,
            tokens=count,
            longest=longest,
            level=level,
        )
        return segments

    @cached_property
    def longest(self) -> int:
        """The largest position + 1."""
        return max(a + b for a, b in zip(self.first_positions, self.lengths, strict=True))

    @cached_property
    def level(self) -> bool:
        """Whether all segments start at the same position."""
        return len(set(self.first_positions)) == 1

    @cached_property
    def tokens(self) -> int:
        """Packed tokens T."""
        return sum(self.lengths)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Packed index of each segment's first token."""
        starts, at = [], 0
        for length in self.lengths:
            starts.append(at)
            at += length
        return tuple(starts)

    @cached_property
    def pairs(self) -> int:
        """How many (token, visible token) pairs attention multiplies."""
        return causal_pairs(self.lengths, self.first_positions)

    def chunks(self, tokens: int) -> list[tuple[int, int]]:
        """Cut the segments into runs [first, last) of about `tokens` tokens: each ends nearest to its share."""
        runs, first = [], 0
        for segment, (start, length) in enumerate(zip(self.starts, self.lengths, strict=True)):
            # The run is over once its end is nearer to the next multiple of the size than the next segment's.
            if start + length / 2 > tokens * (len(runs) + 1) and segment > first:
                runs.append((first, segment))
                first = segment
        return [*runs, (first, len(self.lengths))]

    @cached_property
    def first_positions(self) -> tuple[int, ...]:
        """Position of each segment's first token."""
        if self.cached_lengths is not None:
            return self.cached_lengths
        if self.prefixes is not None:
            return tuple(self.lengths[p] if p >= 0 else 0 for p in self.prefixes)
        return (0,) * len(self.lengths)

    @cached_property
    def segment_T(self) -> Tensor:
        """Segment of each token; int64."""
        lengths = torch.tensor(self.lengths, device=self.device)
        return torch.repeat_interleave(torch.arange(len(self.lengths), device=self.device), lengths)

    @cached_property
    def positions_T(self) -> Tensor:
        """Position of each token in its own text; int64."""
        shift = torch.tensor(self.first_positions, device=self.device) - torch.tensor(self.starts, device=self.device)
        return torch.arange(self.tokens, device=self.device) + shift[self.segment_T]

    @cached_property
    def last_S(self) -> Tensor:
        """Packed index of each segment's last token; int64."""
        return torch.tensor(self.starts, device=self.device) + torch.tensor(self.lengths, device=self.device) - 1

    @cached_property
    def uniform(self) -> int | None:
        """The common length where all segments are as long and nobody continues anybody, else None."""
        same = len(set(self.lengths)) == 1 and self.prefixes is None
        return self.lengths[0] if same else None

    @cached_property
    def spans_S4(self) -> Tensor:
        """Each segment's first token and length, and those of its prefix, or noughts; int64."""
        prefixes = self.prefixes or (-1,) * len(self.lengths)
        before = [(self.starts[p], self.lengths[p]) if p >= 0 else (0, 0) for p in prefixes]
        own = zip(self.starts, self.lengths, strict=True)
        return torch.tensor([(*one, *more) for one, more in zip(own, before, strict=True)], device=self.device)

    @cached_property
    def first_positions_S(self) -> Tensor:
        """Position of each segment's first token; int64."""
        return torch.tensor(self.first_positions, device=self.device)

    @cached_property
    def groups(self) -> tuple[AttentionGroup, ...]:
        """Segments sorted by length and cut into groups whose padding stays small."""
        return tuple(self._group(members) for members in self._members)

    @cached_property
    def places_T(self) -> Tensor:
        """Where each token's query stands in the groups' padded outputs, one after the other; int64."""
        places = torch.empty(self.tokens, dtype=torch.int64)
        lengths, starts = torch.tensor(self.lengths), torch.tensor(self.starts)
        offset = 0
        for members in self._members:
            chosen = torch.tensor(members)
            before = torch.tensor(self.first_positions)[chosen][:, None]
            causal = self._is_causal(members)
            query = torch.arange(int(lengths[chosen].max()))
            width = self._span(members) if causal else len(query)
            real = query < lengths[chosen][:, None]
            tokens = (starts[chosen][:, None] + query)[real]
            place = torch.arange(len(members))[:, None] * width + query + (before if causal else 0)
            places[tokens] = (offset + place)[real]
            offset += len(members) * width
        return places.to(self.device)

    def hidden_SMK(self, queries: int, longest: int, heads: int) -> Tensor | None:
        """Return which cached keys each query may not see, the heads folded into the queries.

        Args:
            queries: longest number of new tokens of a segment.
            longest: longest number of keys.
            heads: H.
        Returns:
            [S, queries * heads, longest] (or [S, 1, longest] for one query each); None where all see all.
        """
        key = (queries, longest, heads)
        if key not in self._hidden:
            first = self.first_positions_S[:, None]
            if queries == 1 and self.level:
                self._hidden[key] = None
            else:
                last_SQ = first + torch.arange(queries, device=self.device)
                hidden = torch.arange(longest, device=self.device) > last_SQ[:, :, None]
                self._hidden[key] = hidden if queries == 1 else hidden.repeat_interleave(heads, dim=1)
        return self._hidden[key]

    def visible_SQK(self) -> Tensor:
        """Return which cached keys each query may see, [S, queries, longest]; padded queries see what the last does."""
        last_SQ = self.first_positions_S[:, None] + torch.arange(max(self.lengths), device=self.device)
        return torch.arange(self.longest, device=self.device) <= last_SQ[:, :, None]

    @cached_property
    def _hidden(self) -> dict[tuple[int, int, int], Tensor | None]:
        return {}

    @cached_property
    def _members(self) -> list[list[int]]:
        # Those that continue another stand apart: beside a long prompt, short replies would be padded to its queries.
        spans = sorted(
            (self.prefixes is not None and self.prefixes[s] >= 0, self.first_positions[s] + self.lengths[s], s)
            for s in range(len(self.lengths))
        )
        cut: list[list[int]] = []
        longest_allowed, continuing = -1, False
        for continues, span, segment in spans:
            if span > longest_allowed or continues != continuing:
                cut.append([])
                continuing = continues
                # A group spans lengths up to a quarter more than its shortest, and 16 tokens at least,
                # so padding costs little and short texts still share one call.
                longest_allowed = max(span + 16, span * 5 // 4)
            cut[-1].append(segment)
        return cut

    def _span(self, members: list[int]) -> int:
        """Return the most keys of some segments."""
        return max(self.first_positions[s] + self.lengths[s] for s in members)

    def _is_causal(self, members: list[int]) -> bool:
        """Whether prefixes are queries again, so that causal order alone says who sees what.

        It is half a square then, where queries of their own segment alone need a mask and all pairs: less work where
        prefixes are shorter than what follows them.
        """
        return self._span(members) < 2 * max(self.lengths[s] for s in members)

    def _group(self, members: list[int]) -> AttentionGroup:
        chosen = torch.tensor(members)
        lengths = torch.tensor(self.lengths)[chosen]
        starts = torch.tensor(self.starts)[chosen]
        before = torch.tensor(self.first_positions)[chosen]
        prefixes = torch.tensor(self.prefixes)[chosen] if self.prefixes is not None else torch.full_like(chosen, -1)
        prefix_starts = torch.tensor(self.starts)[prefixes.clamp(min=0)]
        key = torch.arange(self._span(members))
        own = (key - before[:, None]).clamp(min=0)
        keys_SK = torch.where(
            key < before[:, None],
            prefix_starts[:, None] + key,
            starts[:, None] + torch.minimum(own, lengths[:, None] - 1),
        )
        if self._is_causal(members):
            queries_SQ, visible = keys_SK, None
        else:
            query = torch.arange(int(lengths.max()))
            queries_SQ = starts[:, None] + torch.minimum(query, lengths[:, None] - 1)
            visible = (key <= (before[:, None] + query)[:, :, None]).unsqueeze(1)
        return AttentionGroup(
            queries_SQ.to(self.device),
            keys_SK.to(self.device),
            None if visible is None else visible.to(self.device),
        )
