"""Acceptance: how often the MTP layer's draft is the token that the model itself says next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from leanseek.evals.proportion import Proportion
from leanseek.model.segments import Segments
from leanseek.model.transformer import Transformer

# Tokens of one forward call: enough to keep the processor busy, little enough to bound memory.
CALL_TOKENS = 8192

Reply = tuple[Sequence[int], Sequence[int]]


@torch.inference_mode()
def acceptance(model: Transformer, replies: Sequence[Reply]) -> Proportion | None:
    """Return the share of reply tokens that the MTP layer would have drafted right; None without such a layer.

    A reply's first token has no draft: the MTP layer needs the hidden state of one token and the token after it.

    Args:
        model: read only.
        replies: (prompt ids, reply ids), the replies decoded greedily by this model, so that each
            token is the model's own choice.
    Source: DeepSeek-V3 report section 5.4.3 (85 to 90% at its size).
    """
    if model.mtp_layer is None:
        return None
    right = count = 0
    for chunk in _chunks(replies):
        tokens_T = torch.tensor([token for prompt, reply in chunk for token in (*prompt, *reply)], device=model.device)
        segments = Segments.packed([len(prompt) + len(reply) for prompt, reply in chunk], model.device)
        next_T = torch.cat([tokens_T[1:], tokens_T[:1]])
        places = [
            start + len(prompt) + i
            for start, (prompt, reply) in zip(segments.starts, chunk, strict=True)
            for i in range(1, len(reply))
        ]
        if not places:
            continue
        said_N = torch.tensor(places, device=model.device)
        hidden_TD = model(tokens_T, segments)
        drafts_ND = model.mtp(hidden_TD, next_T, segments)[said_N - 2]
        right += int((model.logits(drafts_ND).argmax(dim=-1) == tokens_T[said_N]).sum())
        count += len(places)
    return Proportion.of(right, count)


def _chunks(replies: Sequence[Reply]) -> Iterator[list[Reply]]:
    """Cut replies into lists of about CALL_TOKENS tokens."""
    chunk: list[Reply] = []
    held = 0
    for prompt, reply in replies:
        chunk.append((prompt, reply))
        held += len(prompt) + len(reply)
        if held >= CALL_TOKENS:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk
