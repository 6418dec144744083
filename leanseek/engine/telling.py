"""Telling: what requests ask of logits beyond a token: rules before the draw, likeliest tokens, a prompt's chances."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from leanseek.engine.request import TopLogprobs
from leanseek.engine.rows import Rows
from leanseek.engine.rules import top_logprobs
from leanseek.engine.scheduler import Reading
from leanseek.model.decoder import Decoder
from leanseek.model.segments import Segments
from leanseek.model.transformer import Transformer


def adjusted(logits_SW: Tensor, rows: Rows, start: int) -> Tensor:
    """Let the rules of the rows from `start` on change their logits, and keep the likeliest tokens that are asked for.

    Args:
        logits_SW: of these rows.
        rows: some of which are ruled.
        start: the first.
    Returns:
        The logits to draw from; float32.
    """
    logits_SW = logits_SW.float()
    ruled = [row for row in rows.ruled if row >= start]
    for row in ruled:
        if (rule := rows.samples[row].rule) is not None:
            rule.adjust(logits_SW[row - start])
    counts: list[int | None] = [None] * (len(rows) - start)
    for row in ruled:
        counts[row - start] = rows.samples[row].request.params.logprobs or None
    if any(counts):
        found = top_logprobs(logits_SW, rows.temperature[start : len(rows)], counts)
        for row, tops in enumerate(found, start):
            if tops is not None:
                rows.samples[row].top_logprobs.append(tops)
    return logits_SW


def note_supports(rows: Rows, start: int, tokens_S: Tensor, kept_SW: Tensor | None) -> None:
    """Note what could have been drawn, for the rows from `start` on that ask.

    Args:
        rows: some of which are supported.
        start: the first.
        tokens_S: what was drawn.
        kept_SW: as `sampler.sample_within` returns it.
    """
    cold_S = rows.temperature[start : len(rows)] == 0
    for row in rows.supported:
        if row < start:
            continue
        one, at = rows.samples[row], row - start
        if kept_SW is None or bool(cold_S[at]):
            one.supports.append(array("i", [int(tokens_S[at])]))
            one.logprobs_within.append(0.0)
            continue
        kept_W = kept_SW[at]
        ids = kept_W.nonzero().squeeze(1)
        one.supports.append(array("i", ids.int().cpu().numpy().tobytes()))
        one.logprobs_within.append(float(kept_W[tokens_S[at]].log() - kept_W.sum().log()))


def noted(rows: Rows, start: int) -> dict[int, str]:
    """Tell the rules of the rows from `start` on what was drawn; return why some replies end with it.

    Returns:
        row -> "stop", or what is wrong.
    """
    ends: dict[int, str] = {}
    for row in rows.ruled:
        rule = rows.samples[row].rule
        if row < start or rule is None:
            continue
        rule.note(int(rows.last[row]))
        if rule.error is not None:
            ends[row] = rule.error
        elif rule.ended:
            ends[row] = "stop"
    return ends


def tell_prompts(
    model: Transformer | Decoder, parts: Sequence[tuple[Reading, int, int]], hidden_TD: Tensor, segments: Segments
) -> None:
    """Give samples that ask for them the log-probabilities of their prompt's tokens, as far as it was just read.

    Args:
        model: for its head.
        parts: texts, and from which token to which each was read.
        hidden_TD: of these tokens.
        segments: how they are packed.
    """
    for (reading, start, end), at in zip(parts, segments.starts, strict=True):
        one = reading.samples[0]
        asked = one.request.params.prompt_logprobs
        following = one.request.prompt_ids[start + 1 : end + 1]
        if asked is None or one.said:
            continue
        if one.prompt_logprobs is None:
            one.prompt_logprobs, one.prompt_top_logprobs = [None], [None]
        assert one.prompt_top_logprobs is not None
        if not following:
            continue
        logprobs_TW = torch.log_softmax(model.logits(hidden_TD[at : at + len(following)]).float(), dim=-1)
        chosen_T1 = torch.tensor(following, device=logprobs_TW.device)[:, None]
        one.prompt_logprobs += logprobs_TW.gather(1, chosen_T1).squeeze(1).tolist()
        best = logprobs_TW.topk(min(asked, logprobs_TW.shape[1]), dim=-1)
        tops: list[TopLogprobs] = [
            tuple(zip(tokens, values, strict=True))
            for tokens, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        one.prompt_top_logprobs += tops
