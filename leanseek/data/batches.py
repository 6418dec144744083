"""Batch: what one training step sees; and the source of pretraining batches with an exact position."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from leanseek.errors import DataError
from leanseek.model.segments import Segments

IGNORED = -100


@dataclass(frozen=True, eq=False)
class Batch:
    """Packed tokens with what each must predict.

    Args:
        tokens_T: inputs; int64.
        targets_T: the token after each, or IGNORED where nothing is learnt.
        second_targets_T: the token after that (for MTP), or IGNORED.
        next_tokens_T: the token after each as MTP's input (its target where there is one, else any).
        segments: which tokens belong together.
        mtp: whether the MTP layer learns from it too.
        mtp_weight: lambda for this batch; None: the objective's.
        mtp_share: of a part: its share of the whole's second targets, over its share of the targets, so that parts
            add up to the whole in the MTP loss too.
    """

    tokens_T: Tensor
    targets_T: Tensor
    second_targets_T: Tensor
    next_tokens_T: Tensor
    segments: Segments
    mtp: bool = True
    mtp_weight: float | None = None
    mtp_share: float = 1.0

    @cached_property
    def learnt(self) -> int:
        """How many tokens have a target."""
        return int((self.targets_T != IGNORED).sum())

    @cached_property
    def learnt_second(self) -> int:
        """How many tokens have a second target."""
        return int((self.second_targets_T != IGNORED).sum())

    @property
    def metrics(self) -> Mapping[str, float]:
        """Nothing: how these batches come about needs no figures."""
        return {}

    def pieces(self, count: int, tokens: int | None) -> list[tuple[Batch, float]]:
        """Return about `count` parts of whole segments, or more, so that each has about `tokens` tokens at most.

        Parts are cut where a segment ends, nearest to an even share. Each comes with its share of the batch's
        targets, so that the parts' mean losses, weighted by it, sum to the batch's mean loss. (The balance term
        takes the same share.)
        """
        size = -(-self.segments.tokens // count)
        if tokens is not None:
            size = min(size, tokens)
        if size >= self.segments.tokens:
            return [(self, 1.0)]
        return [self.part(first, last) for first, last in self.segments.chunks(size)]

    def part(self, first: int, last: int) -> tuple[Batch, float]:
        """Return the segments from `first` up to before `last`, with their share of the batch's targets."""
        start = self.segments.starts[first]
        end = self.segments.starts[last - 1] + self.segments.lengths[last - 1]
        rows = [t[start:end] for t in (self.tokens_T, self.targets_T, self.second_targets_T, self.next_tokens_T)]
        lengths = Segments(self.segments.lengths[first:last], device=self.segments.device)
        part = Batch(*rows, lengths, self.mtp, self.mtp_weight, self.mtp_share)
        share = part.learnt / max(self.learnt, 1)
        if self.mtp and share:
            part = replace(part, mtp_share=self.mtp_share * part.learnt_second / max(self.learnt_second, 1) / share)
        return part, share

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device."""
        if self.tokens_T.device == torch.device(device):
            return self
        moved = [t.to(device) for t in (self.tokens_T, self.targets_T, self.second_targets_T, self.next_tokens_T)]
        segments = Segments(self.segments.lengths, self.segments.prefixes, device=device)
        return Batch(*moved, segments, self.mtp, self.mtp_weight, self.mtp_share)


class Tokens(Protocol):
    """One long row of tokens: a tensor, or `shards.Shards`."""

    def __len__(self) -> int:
        """Tokens."""

    def __getitem__(self, at: Tensor) -> Tensor:
        """Return the tokens at these places, in the same shape."""


class TokenStream:
    """Shuffled fixed-length windows over one long row of tokens, documents packed end to end.

    As in V3, attention may cross documents inside a window (each starts with BOS), unless they are masked.

    Args:
        tokens: the corpus; [tokens].
        sequence_tokens: inputs of one window.
        batch_sequences: windows of one batch.
        seed: of the order; every pass over the data has its own.
        bos_id: token that begins a document: MTP's target is IGNORED where it would lie in another document;
            None: the tokens are one document.
        masked: whether each document of a window is a segment of its own.
    Raises:
        DataError: fewer tokens than one batch needs.
    """

    def __init__(
        self,
        tokens: Tokens,
        sequence_tokens: int,
        batch_sequences: int,
        seed: int,
        bos_id: int | None = None,
        *,
        masked: bool = False,
    ) -> None:
        self.tokens, self.length, self.rows, self.seed = tokens, sequence_tokens, batch_sequences, seed
        self.bos_id, self.masked = bos_id, masked
        self.windows = (len(tokens) - 2) // sequence_tokens
        if self.windows < batch_sequences:
            raise DataError(
                f"the corpus has {len(tokens)} tokens; one batch of {batch_sequences} x {sequence_tokens} needs "
                f"{batch_sequences * sequence_tokens + 2}: give more text, or lower pretrain.batch_sequences"
            )
        self.batches_per_pass = self.windows // batch_sequences
        self._order: tuple[int, Tensor] | None = None

    def batch(self, step: int) -> Batch:
        """Return the batch of a step; the same step always gives the same batch."""
        return self.take(step * self.rows, self.rows)

    def take(self, first: int, count: int) -> Batch:
        """Return `count` windows from a place in the order of all passes; the same place always gives the same.

        A pass is a whole number of batches of `batch_sequences`; a batch of another size may lie in two passes.
        """
        return window_batch(self.read(range(first, first + count)), self.bos_id, self.masked)

    def read(self, places: Iterable[int]) -> Tensor:
        """Return the windows at places in the order of all passes, with the two tokens after each; [n, length + 2]."""
        per_pass = self.batches_per_pass * self.rows
        chosen = [int(self._pass(place // per_pass)[place % per_pass]) for place in places]
        return self._windows(torch.tensor(chosen, dtype=torch.int64))

    def validation(self, rows: int) -> list[Batch]:
        """Return every window once, in order, `rows` to a batch; the last batch may be smaller."""
        parts = torch.arange(self.windows).split(rows)
        return [window_batch(self._windows(part), self.bos_id, self.masked) for part in parts]

    def _pass(self, epoch: int) -> Tensor:
        """Return the order of a pass's windows."""
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._order = (epoch, torch.randperm(self.windows, generator=generator))
        return self._order[1]

    def _windows(self, chosen: Tensor) -> Tensor:
        at = (chosen * self.length)[:, None] + torch.arange(self.length + 2)
        return self.tokens[at].long()


def window_batch(rows: Tensor, bos_id: int | None, masked: bool) -> Batch:
    """Make a batch of windows; its targets are the tokens one and two further on.

    Args:
        rows: [windows, length + 2].
        bos_id: as `TokenStream`.
        masked: as `TokenStream`.
    """
    count, length = rows.shape[0], rows.shape[1] - 2
    inputs, targets, second = rows[:, :-2].reshape(-1), rows[:, 1:-1].reshape(-1), rows[:, 2:].reshape(-1)
    following, lengths = targets, (length,) * count
    if bos_id is not None:
        second = second.masked_fill((targets == bos_id) | (second == bos_id), IGNORED)
    if masked and bos_id is not None:
        starts = (inputs == bos_id) | (torch.arange(count * length) % length == 0)
        at = starts.nonzero().squeeze(1)
        lengths = tuple(torch.diff(at, append=torch.tensor([count * length])).tolist())
        # What comes after a document's end is another one's beginning, which nothing here tells.
        targets = targets.masked_fill(targets == bos_id, IGNORED)
    return Batch(inputs, targets, second, following, Segments(lengths))


def packed_examples(examples: list[tuple[list[int], list[bool]]]) -> Batch:
    """Pack conversations, one segment each, with loss only where an example says so.

    Args:
        examples: (token ids, whether the token at that place must be learnt).
    """
    tokens: list[int] = []
    targets: list[int] = []
    second: list[int] = []
    following: list[int] = []
    for ids, learnt in examples:
        wanted = [token if keep else IGNORED for token, keep in zip(ids, learnt, strict=True)]
        tokens += ids[:-1]
        targets += wanted[1:]
        second += [*wanted[2:], IGNORED]
        following += ids[1:]
    lengths = tuple(len(ids) - 1 for ids, _ in examples)
    return Batch(
        torch.tensor(tokens), torch.tensor(targets), torch.tensor(second), torch.tensor(following), Segments(lengths)
    )
