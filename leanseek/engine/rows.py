"""Rows: the running samples' state as tensors, one row each, the first `count` rows always in use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leanseek.engine.request import Request, SamplingParams
from leanseek.engine.sampler import SamplingRows

# Below this only the most likely tokens are in reach anyway, and dividing logits by less may overflow.
SMALLEST_TEMPERATURE = 1e-5


@dataclass
class Sample:
    """One of a request's n samples while it runs."""

    request: Request
    index: int


class Rows:
    """State of the running samples; a finished row's place is taken by the last one.

    Args:
        capacity: rows.
        context_tokens: longest text of a row.
        moe_layers, experts_per_token: shape of the routing record of a token.
        device: where the tensors are.
    """

    def __init__(
        self, capacity: int, context_tokens: int, moe_layers: int, experts_per_token: int, device: torch.device
    ) -> None:
        def column(dtype: torch.dtype) -> Tensor:
            return torch.zeros(capacity, dtype=dtype, device=device)

        self.capacity = capacity
        self.samples: list[Sample] = []
        self.last = column(torch.int64)  # the newest token, not yet in the cache
        self.position = column(torch.int64)  # tokens in the cache
        self.place = column(torch.int64)  # tokens sampled so far
        self.limit = column(torch.int64)
        self.stops_at_eos = column(torch.bool)
        self.temperature = column(torch.float32)
        self.top_p = column(torch.float32)
        self.min_p = column(torch.float32)
        self.top_k = column(torch.int64)
        self.seed = column(torch.int64)
        # What is kept of each row until it ends. Pages of these are touched only where used.
        self.tokens = torch.empty(capacity, context_tokens, dtype=torch.int64, device=device)
        self.logprobs = torch.empty(capacity, context_tokens, dtype=torch.float32, device=device)
        self.experts = torch.empty(
            capacity, context_tokens, moe_layers, experts_per_token, dtype=torch.int16, device=device
        )
        self.longest = 0
        self.level = True
        self.watched: list[int] = []  # rows with stop texts or stop tokens of their own
        self._sampling: SamplingRows | None = None

    def __len__(self) -> int:
        """Rows in use."""
        return len(self.samples)

    @property
    def free(self) -> int:
        """Rows not in use."""
        return self.capacity - len(self.samples)

    def append(self, samples: list[Sample], prompt_tokens: list[int], limits: list[int], seeds: list[int]) -> None:
        """Put samples into the next free rows, their prompts' last state still to be filled in."""
        start, end = len(self.samples), len(self.samples) + len(samples)
        params = [sample.request.params for sample in samples]
        self.position[start:end] = torch.tensor(prompt_tokens)
        self.place[start:end] = 0
        self.limit[start:end] = torch.tensor(limits)
        self.stops_at_eos[start:end] = torch.tensor([not p.ignore_eos for p in params])
        self.temperature[start:end] = torch.tensor([_temperature(p) for p in params])
        self.top_p[start:end] = torch.tensor([float(p.top_p) for p in params])
        self.min_p[start:end] = torch.tensor([float(p.min_p) for p in params])
        self.top_k[start:end] = torch.tensor([p.top_k for p in params])
        self.seed[start:end] = torch.tensor(seeds)
        self.samples += samples
        self._changed()

    def advance(self) -> None:
        """Count the token that the model has just read into every row's cache."""
        self.position[: len(self)] += 1
        self.longest += 1

    def remove(self, finished: list[int]) -> list[tuple[int, int]]:
        """Free rows; return the moves (from, to) that close the gaps, already made in this object."""
        gone = set(finished)
        kept = len(self.samples) - len(gone)
        holes = sorted(row for row in gone if row < kept)
        movers = [row for row in range(kept, len(self.samples)) if row not in gone]
        moves = list(zip(movers, holes, strict=True))
        if moves:
            sources, targets = torch.tensor(movers), torch.tensor(holes)
            for column in self._columns():
                column[targets] = column[sources]
            width = int(self.place[targets].max())
            for kept_tokens in (self.tokens, self.logprobs):
                kept_tokens[targets, :width] = kept_tokens[sources, :width]
            self.experts[targets, : self.longest] = self.experts[sources, : self.longest]
            for source, target in moves:
                self.samples[target] = self.samples[source]
        del self.samples[kept:]
        self._changed()
        return moves

    def sampling(self, start: int = 0) -> SamplingRows:
        """Return what the rows from `start` on ask for; kept until the set of rows changes."""
        if start:
            return self._sampling_rows(start)
        if self._sampling is None:
            self._sampling = self._sampling_rows(0)
        return self._sampling

    def _sampling_rows(self, start: int) -> SamplingRows:
        part = slice(start, len(self))
        temperature = self.temperature[part]
        cut = (self.top_p[part] < 1) | (self.min_p[part] > 0) | (self.top_k[part] > 0)
        return SamplingRows(
            temperature,
            self.top_p[part],
            self.min_p[part],
            self.top_k[part],
            self.seed[part],
            self.place[part],
            greedy=bool((temperature == 0).all()),
            plain=not bool(cut.any()),
            unit=bool((temperature == 1).all()),
        )

    def _columns(self) -> list[Tensor]:
        return [
            self.last,
            self.position,
            self.place,
            self.limit,
            self.stops_at_eos,
            self.temperature,
            self.top_p,
            self.min_p,
            self.top_k,
            self.seed,
        ]

    def _changed(self) -> None:
        self._sampling = None
        params = [sample.request.params for sample in self.samples]
        self.watched = [row for row, p in enumerate(params) if p.stop or p.stop_token_ids]
        position = self.position[: len(self)]
        if len(self):
            low, high = int(position.min()), int(position.max())
            self.longest, self.level = high, low == high
        else:
            self.longest, self.level = 0, True


def _temperature(params: SamplingParams) -> float:
    return max(float(params.temperature), SMALLEST_TEMPERATURE) if params.temperature else 0.0
