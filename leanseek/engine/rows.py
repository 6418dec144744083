"""Rows: the running samples' state as tensors, one row each, the first `count` rows always in use."""

from __future__ import annotations

import torch
from torch import Tensor

from leanseek.engine.request import SamplingParams
from leanseek.engine.sampler import SamplingRows, uniform
from leanseek.engine.scheduler import Sample

# Below this only the most likely tokens are in reach anyway, and dividing logits by less may overflow.
SMALLEST_TEMPERATURE = 1e-5
# Places that random numbers are made for at once: a dozen small operations cost as much for 16 as for one.
AHEAD = 16


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
        self.capacity = capacity
        self.samples: list[Sample] = []
        # A column of each table is a row's state; the names are views.
        self._whole = torch.zeros(6, capacity, dtype=torch.int64, device=device)
        self._real = torch.zeros(3, capacity, dtype=torch.float32, device=device)
        self.last = self._whole[0]  # the newest token, not yet in the cache
        self.position = self._whole[1]  # tokens in the cache
        self.place = self._whole[2]  # tokens sampled so far
        self.limit = self._whole[3]
        self.top_k = self._whole[4]
        self.seed = self._whole[5]
        self.temperature, self.top_p, self.min_p = self._real
        self.stops_at_eos = torch.zeros(capacity, dtype=torch.bool, device=device)
        # What is kept of each row until it ends. Pages of these are touched only where used.
        self.tokens = torch.empty(capacity, context_tokens, dtype=torch.int64, device=device)
        self.logprobs = torch.empty(capacity, context_tokens, dtype=torch.float32, device=device)
        self.experts = torch.empty(
            capacity, context_tokens, moe_layers, experts_per_token, dtype=torch.int16, device=device
        )
        self.longest = 0
        self.level = True
        self.watched: list[int] = []  # rows with stop texts or stop tokens of their own
        self.ruled: list[int] = []  # rows whose logits are changed, or of which more is told than the token
        self.supported: list[int] = []  # rows of which it is noted what could have been drawn
        self.any_stops_at_eos = False
        self.until_limit = 0  # tokens that every row may still get, at least
        self._watching = False
        self._sampling: SamplingRows | None = None
        self._draws: Tensor | None = None
        self._drawn = 0
        # Of the steps since rows last came or went: tokens and log-probabilities, and the routing of each layer.
        self._sampled: list[tuple[Tensor, Tensor]] = []
        self._routed: list[list[Tensor]] = []

    def __len__(self) -> int:
        """Rows in use."""
        return len(self.samples)

    @property
    def free(self) -> int:
        """Rows not in use."""
        return self.capacity - len(self.samples)

    def append(self, samples: list[Sample], lengths: list[int], limits: list[int]) -> None:
        """Put samples into the next free rows, their next token still to be filled in.

        Args:
            samples: their texts are in the cache.
            lengths: tokens of each text: prompt, and what was said before the sample had to wait.
            limits: longest reply of each.
        """
        self.settle()
        start, end = len(self.samples), len(self.samples) + len(samples)
        params = [sample.request.params for sample in samples]
        self.position[start:end] = torch.tensor(lengths)
        self.place[start:end] = torch.tensor([len(sample.said) for sample in samples])
        self.limit[start:end] = torch.tensor(limits)
        self.stops_at_eos[start:end] = torch.tensor([not p.ignore_eos for p in params])
        self.temperature[start:end] = torch.tensor([_temperature(p) for p in params])
        self.top_p[start:end] = torch.tensor([float(p.top_p) for p in params])
        self.min_p[start:end] = torch.tensor([float(p.min_p) for p in params])
        self.top_k[start:end] = torch.tensor([p.top_k for p in params])
        self.seed[start:end] = torch.tensor([sample.seed for sample in samples])
        for row, sample in enumerate(samples, start):
            if sample.said:
                self.tokens[row, : len(sample.said)] = torch.tensor(sample.said)
                self.logprobs[row, : len(sample.said)] = torch.tensor(sample.said_logprobs)
                sample.said, sample.said_logprobs = [], []
        self.samples += samples
        self._watching = self._watching or any(p.stop or p.stop_token_ids for p in params)
        self._changed()

    def advance(self, experts: list[Tensor] | None = None) -> None:
        """Count the token that the model has just read into every row's cache.

        Args:
            experts: per MoE layer, the routing used for it, [S, K]; None: it is not kept.
        """
        self.position[: len(self)] += 1
        self.longest += 1
        if experts is not None:
            self._routed.append(experts)

    def take(self, start: int, tokens_S: Tensor, logprobs_S: Tensor) -> None:
        """Note the newest token of each row from `start` on (0, or where the newest rows begin)."""
        end = len(self)
        if start:
            at = torch.arange(start, end, device=tokens_S.device), self.place[start:end]
            self.tokens[at], self.logprobs[at] = tokens_S, logprobs_S
        else:
            self._sampled.append((tokens_S, logprobs_S))
        self.last[start:end] = tokens_S
        self.place[start:end] += 1
        self.until_limit -= 1

    def take_one(self, row: int, token: int, logprob: float) -> None:
        """Note one row's newest token, and that the one before is in the cache.

        Call `settle` before the first and `recount` after the last.
        """
        place = int(self.place[row])
        self.tokens[row, place], self.logprobs[row, place] = token, logprob
        self.last[row] = token
        self.place[row] += 1
        self.position[row] += 1

    def note_experts(self, experts_SJNK: Tensor) -> None:
        """Note the routing of the next J tokens of each row's text; those that do not come to stand are noted anew."""
        ahead_J = torch.arange(experts_SJNK.shape[1], device=experts_SJNK.device)
        rows_S1 = torch.arange(len(self), device=experts_SJNK.device)[:, None]
        self.experts[rows_S1, self.position[: len(self), None] + ahead_J] = experts_SJNK.to(torch.int16)

    def recount(self) -> None:
        """Bring what is known of all rows together up to date."""
        self._changed()

    def settle(self) -> None:
        """Put what the last steps gave into the table; whoever reads the table calls this first."""
        steps, count = len(self._sampled), len(self)
        row = torch.arange(count, device=self.place.device)[:, None]
        if steps:
            at = row, self.place[:count, None] + torch.arange(-steps, 0, device=self.place.device)
            self.tokens[at] = torch.stack([tokens_S for tokens_S, _ in self._sampled], dim=1)
            self.logprobs[at] = torch.stack([logprobs_S for _, logprobs_S in self._sampled], dim=1)
            self._sampled.clear()
        if steps := len(self._routed):
            at = row, self.position[:count, None] + torch.arange(-steps, 0, device=self.place.device)
            stacked = torch.stack([experts_SK for layers in self._routed for experts_SK in layers], dim=1)
            self.experts[at] = stacked.view(count, steps, *self.experts.shape[2:]).to(torch.int16)
            self._routed.clear()

    def remove(self, finished: list[int]) -> list[tuple[int, int]]:
        """Free rows; return the moves (from, to) that close the gaps, already made in this object."""
        self.settle()
        gone = set(finished)
        kept = len(self.samples) - len(gone)
        holes = sorted(row for row in gone if row < kept)
        movers = [row for row in range(kept, len(self.samples)) if row not in gone]
        moves = list(zip(movers, holes, strict=True))
        if moves:
            sources, targets = torch.tensor(movers), torch.tensor(holes)
            for table in (self._whole, self._real, self.stops_at_eos):
                table[..., targets] = table[..., sources]
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

    def draws(self) -> Tensor:
        """Return the random numbers of every row's next token; call it once a token."""
        if self._draws is None or self._drawn == AHEAD:
            count = len(self)
            ahead = torch.arange(AHEAD, device=self.place.device)[:, None]
            self._draws, self._drawn = uniform(self.seed[:count], self.place[:count] + ahead), 0
        self._drawn += 1
        return self._draws[self._drawn - 1]

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

    def _changed(self) -> None:
        count = len(self)
        self._sampling = self._draws = None
        self.longest, self.level, self.until_limit, self.any_stops_at_eos, self.watched = 0, True, 0, False, []
        self.ruled = [row for row, s in enumerate(self.samples) if s.rule is not None or s.request.params.logprobs]
        self.supported = [row for row, s in enumerate(self.samples) if s.request.params.supports]
        if count:
            position = self.position[:count]
            low, high = int(position.min()), int(position.max())
            self.longest, self.level = high, low == high
            self.until_limit = int((self.limit[:count] - self.place[:count]).min())
            self.any_stops_at_eos = bool(self.stops_at_eos[:count].any())
            if self._watching:
                params = [sample.request.params for sample in self.samples]
                self.watched = [row for row, p in enumerate(params) if p.stop or p.stop_token_ids]
        else:
            self._watching = False


def _temperature(params: SamplingParams) -> float:
    return max(float(params.temperature), SMALLEST_TEMPERATURE) if params.temperature else 0.0
