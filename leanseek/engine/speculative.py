"""Speculation: the MTP layer drafts tokens, one call of the model checks them all; the replies stay the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from leanseek.engine.paged_cache import PagedCache
from leanseek.engine.sampler import SamplingRows, sample, uniform
from leanseek.engine.scheduler import Reading, Sample
from leanseek.model.decoder import Decoder
from leanseek.model.experts import Routing
from leanseek.model.segments import Segments
from leanseek.model.transformer import Transformer

# Steps of each kind that are timed before one is preferred, and after how many the other is tried again.
TRIAL_STEPS = 8
STEPS_UNTIL_RETRIAL = 2000
# How much the newest step's speed counts.
NEWEST_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a speculative step gave.

    Args:
        tokens_SJ: the tokens drawn at each place, [S, drafts + 1].
        logprobs_SJ: their log-probabilities.
        counts: per row, how many of them stand: the accepted drafts and the one after.
        experts_SJNK: the routing of the tokens that were read: the newest before, and the drafts; None: not kept.
    """

    tokens_SJ: Tensor
    logprobs_SJ: Tensor
    counts: list[int]
    experts_SJNK: Tensor | None = None


@dataclass(eq=False)
class _Unread:
    """What the MTP layer has not read of a text: hidden states, and the token after each."""

    hidden_TD: Tensor
    next_tokens: list[int]


class Speculation:
    """Drafts and checks for an engine.

    A draft is drawn with the very random number that its place will be drawn with, and counts only if the model
    itself draws the same token there. So tokens are those of plain decoding, greedy or not, and their distribution
    is the model's whatever the drafts are.

    Args:
        model: with an MTP layer.
        cache: of the engine; its last layer is the MTP layer's.
        drafts: tokens drafted at once; from the second on, the MTP layer goes on from its own hidden state.
    Source: DeepSeek-V3 report section 5.4.3; Leviathan et al. 2023 (arXiv 2211.17192) for checking drafts.
    """

    def __init__(self, model: Transformer | Decoder, cache: PagedCache, drafts: int) -> None:
        self.model, self.cache, self.drafts = model, cache, drafts
        self.drafted = self.accepted = 0
        self._unread: dict[Sample, _Unread] = {}

    def knows(self, samples: Sequence[Sample]) -> bool:
        """Whether every sample's text has been followed so far."""
        return all(one in self._unread for one in samples)

    def forget(self, samples: Sequence[Sample]) -> None:
        """Follow these texts no longer: they ended, or went on without."""
        for one in samples:
            self._unread.pop(one, None)

    def read(self, parts: Sequence[tuple[Reading, int, int]], hidden_TD: Tensor, segments: Segments) -> None:
        """Let the MTP layer read pieces of prompts, as far as the token after each is known."""
        tokens: list[int] = []
        kept, lengths, cached, tables = [], [], [], []
        for (reading, start, end), at in zip(parts, segments.starts, strict=True):
            ahead = list(reading.ids[start + 1 : end + 1])
            if ahead:
                kept.append(hidden_TD[at : at + len(ahead)])
                tokens += ahead
                lengths.append(len(ahead))
                cached.append(start)
                tables.append(reading.blocks)
            if end == len(reading.ids):
                for one in reading.samples:
                    self._unread[one] = _Unread(hidden_TD[at + end - start - 1 : at + end - start], [])
        if tokens:
            self.cache.use(tables)
            before = tuple(cached) if any(cached) else None
            packed = Segments(tuple(lengths), cached_lengths=before, device=hidden_TD.device)
            next_T = torch.tensor(tokens, device=hidden_TD.device)
            self.model.mtp(torch.cat(kept), next_T, packed, self.cache)

    def said(self, one: Sample, token: int) -> None:
        """Note the token that was drawn after a prompt."""
        if one in self._unread:
            self._unread[one].next_tokens.append(token)

    def step(
        self,
        samples: Sequence[Sample],
        last_S: Tensor,
        positions: Sequence[int],
        rows: SamplingRows,
        routing: Routing | None = None,
    ) -> Drawn:
        """Draft after every row's newest token, check, and draw.

        Args:
            samples: all of them known.
            last_S: newest tokens, not in the cache yet.
            positions: tokens in the cache, of each.
            rows: what each row asks for.
            routing: where the routing is kept, if wanted.
        """
        drafts_SJ = self._draft(samples, positions, rows)
        count, wide = len(samples), self.drafts + 1
        tokens_SJ = torch.cat((last_S[:, None], drafts_SJ), dim=1)
        segments = Segments((wide,) * count, cached_lengths=tuple(positions), device=last_S.device)
        hidden_TD = self.model(tokens_SJ.reshape(-1), segments, self.cache, routing)
        logits_SJW = self.model.logits(hidden_TD).view(count, wide, -1)
        drawn = [_draw(logits_SJW[:, place], rows, place) for place in range(wide)]
        drawn_SJ = torch.stack([tokens for tokens, _ in drawn], dim=1)
        right_SJ = (drawn_SJ[:, :-1] == drafts_SJ).long().cumprod(dim=1)
        counts = (right_SJ.sum(dim=1) + 1).tolist()
        hidden_SJD = hidden_TD.view(count, wide, -1)
        for row, (one, stands) in enumerate(zip(samples, counts, strict=True)):
            self._unread[one] = _Unread(hidden_SJD[row, :stands], drawn_SJ[row, :stands].tolist())
        self.drafted += count * self.drafts
        self.accepted += sum(counts) - count
        stacked = None if routing is None else routing.stacked()
        experts_SJNK = None if stacked is None else stacked.view(count, wide, *stacked.shape[1:])
        return Drawn(drawn_SJ, torch.stack([logprobs for _, logprobs in drawn], dim=1), counts, experts_SJNK)

    def _draft(self, samples: Sequence[Sample], positions: Sequence[int], rows: SamplingRows) -> Tensor:
        """Return drafts_SJ; the MTP layer reads what it has not read on the way."""
        unread = [self._unread[one] for one in samples]
        lengths = tuple(len(one.next_tokens) for one in unread)
        device = self.cache.store.device
        begins = tuple(position - length for position, length in zip(positions, lengths, strict=True))
        segments = Segments(lengths, cached_lengths=begins, device=device)
        next_T = torch.tensor([token for one in unread for token in one.next_tokens], device=device)
        hidden_TD = self.model.mtp(torch.cat([one.hidden_TD for one in unread]), next_T, segments, self.cache)
        hidden_SD = hidden_TD.index_select(0, segments.last_S)
        drafts: list[Tensor] = []
        for place in range(self.drafts):
            if place:
                ahead = tuple(position + place - 1 for position in positions)
                one_more = Segments((1,) * len(samples), cached_lengths=ahead, device=device)
                hidden_SD = self.model.mtp(hidden_SD, drafts[-1], one_more, self.cache)
            drafts.append(_draw(self.model.logits(hidden_SD), rows, place)[0])
        return torch.stack(drafts, dim=1)


def _draw(logits_SW: Tensor, rows: SamplingRows, place: int) -> tuple[Tensor, Tensor]:
    """Draw the token `place` places after the next one."""
    if rows.greedy:
        return sample(logits_SW, rows)
    ahead = replace(rows, place_S=rows.place_S + place)
    return sample(logits_SW, ahead, uniform(ahead.seed_S, ahead.place_S))


@dataclass
class _Speed:
    steps: int = 0
    tokens_per_s: float = 0.0


@dataclass
class Gain:
    """Whether speculation pays at a batch size, by trying: it changes how soon tokens come, never which."""

    _speeds: dict[tuple[int, bool], _Speed] = field(default_factory=dict)

    def pays(self, rows: int) -> bool:
        """Whether the next step of so many rows is to speculate."""
        size = rows.bit_length()
        with_drafts, without = (self._speeds.setdefault((size, kind), _Speed()) for kind in (True, False))
        if with_drafts.steps < TRIAL_STEPS:
            return True
        if without.steps < TRIAL_STEPS:
            return False
        better = with_drafts.tokens_per_s > without.tokens_per_s
        if (with_drafts.steps + without.steps) % STEPS_UNTIL_RETRIAL == 0:
            return not better
        return better

    def note(self, rows: int, speculated: bool, tokens: int, seconds: float) -> None:
        """Note how fast a step was."""
        speed = self._speeds.setdefault((rows.bit_length(), speculated), _Speed())
        speed.steps += 1
        newest = tokens / max(seconds, 1e-9)
        share = max(NEWEST_SHARE, 1 / speed.steps)
        speed.tokens_per_s += share * (newest - speed.tokens_per_s)
