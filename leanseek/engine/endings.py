"""Endings: whether and why a reply ends with its newest token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from leanseek.engine.request import SamplingParams
from leanseek.engine.rows import Rows
from leanseek.engine.telling import noted
from leanseek.tokens.tokenizer import Tokenizer

NOT_FINITE = "the model's output is not a finite number: the weights or the input are broken"


class Listener:
    """Waits for a stop text in one reply, token by token: what a token costs does not grow with the reply.

    Args:
        tokenizer: of the reply.
        stops: at least one; none empty.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._decoder, self._stops = tokenizer.incremental(), stops
        self._overlap = max(map(len, stops)) - 1  # as much of what was said can be the beginning of a stop text
        self._tail = ""

    def hears(self, token_id: int) -> bool:
        """Take the reply's next token; return whether a stop text is there now."""
        text = self._tail + self._decoder.push(token_id)
        self._tail = text[max(len(text) - self._overlap, 0) :]
        return any(stop in text for stop in self._stops)


class Endings:
    """Looks for ends.

    Args:
        rows: of the engine.
        eos_token_ids: the model's.
        tokenizer: for stop texts; None: none are looked for.
    Attributes:
        wrong: of the newest step: row -> what is wrong with a reply that failed otherwise than by its numbers.
    """

    def __init__(self, rows: Rows, eos_token_ids: Sequence[int], tokenizer: Tokenizer | None) -> None:
        self._rows, self._tokenizer = rows, tokenizer
        self._ids = frozenset(eos_token_ids)
        self._ends = torch.tensor(list(eos_token_ids), device=rows.last.device)
        self.wrong: dict[int, str] = {}

    def of_step(self, start: int, logprobs_S: Tensor) -> dict[int, str]:
        """Return why rows from `start` on end with the token that each has just got: "stop", "length" or "error"."""
        rows, end = self._rows, len(self._rows)
        reasons: dict[int, str] = {}
        self.wrong.clear()
        if rows.until_limit <= 0:
            for row in (rows.place[start:end] >= rows.limit[start:end]).nonzero().squeeze(1).tolist():
                reasons[start + row] = "length"
        if rows.any_stops_at_eos:
            last = rows.last[start:end]
            ends = last == self._ends if self._ends.numel() == 1 else torch.isin(last, self._ends)
            for row in (ends & rows.stops_at_eos[start:end]).nonzero().squeeze(1).tolist():
                reasons[start + row] = "stop"
        if not math.isfinite(float(logprobs_S.sum())):
            for row in (~torch.isfinite(logprobs_S)).nonzero().squeeze(1).tolist():
                reasons[start + row] = "error"
        for row, end_reason in noted(rows, start).items() if rows.ruled else ():
            if reasons.get(row) != "error":
                reasons[row] = "stop" if end_reason == "stop" else "error"
                self.wrong[row] = end_reason
        for row in rows.watched:
            unsettled = row >= start and reasons.get(row) in (None, "length")
            if unsettled and self._stopped(row, rows.samples[row].request.params):
                reasons[row] = "stop"
        return reasons

    def of_token(self, row: int, token: int, logprob: float) -> str | None:
        """Return why a row's reply ends with a token that is noted in the rows already, or None."""
        rows = self._rows
        if not math.isfinite(logprob):
            return "error"
        params = rows.samples[row].request.params
        if token in self._ids and not params.ignore_eos:
            return "stop"
        if row in rows.watched and self._stopped(row, params):
            return "stop"
        return "length" if int(rows.place[row]) >= int(rows.limit[row]) else None

    def why(self, row: int) -> str:
        """Return what is wrong with a row that failed."""
        return self.wrong.get(row, NOT_FINITE)

    def _stopped(self, row: int, params: SamplingParams) -> bool:
        rows = self._rows
        if int(rows.last[row]) in params.stop_token_ids:
            return True
        if not params.stop or self._tokenizer is None:
            return False
        one = rows.samples[row]
        if one.listener is None:
            one.listener = Listener(self._tokenizer, params.stop)
        heard: bool = one.listener.hears(int(rows.last[row]))
        return heard
