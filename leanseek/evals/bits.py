"""Bits per byte: how well a model predicts text, comparable between tokenizers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from leanseek.data.batches import IGNORED, Batch, packed_examples
from leanseek.errors import DataError
from leanseek.model.transformer import Transformer
from leanseek.tokens.tokenizer import Tokenizer
from leanseek.train.objectives.next_token import mean_loss


def bits_per_byte(model: Transformer, batches: Sequence[Batch], utf8_bytes: int) -> float:
    """Return the bits that a model needs per byte of the text that the batches' targets spell.

    Args:
        model: read only.
        batches: made by `text_batches`, or any whose targets are each token of a text once.
        utf8_bytes: length of that text.
    """
    tokens = sum(int((batch.targets_T != IGNORED).sum()) for batch in batches)
    return mean_loss(model, list(batches)) * tokens / math.log(2) / utf8_bytes


def text_batches(
    tokenizer: Tokenizer, texts: Iterable[str], *, window_tokens: int = 512, batch_tokens: int = 8192
) -> tuple[list[Batch], int]:
    """Cut texts into batches in which each token is a target once; return them and the texts' bytes.

    Each text starts with BOS and stands alone. A text longer than a window is cut, and the part after a
    cut sees nothing before it but the last token.

    Args:
        tokenizer: the model's.
        texts: empty ones are passed over.
        window_tokens: longest segment.
        batch_tokens: a batch is closed once it has as many.
    Raises:
        DataError: there is no text.
    """
    batches: list[Batch] = []
    parts: list[tuple[list[int], list[bool]]] = []
    utf8_bytes = held = 0
    for text in texts:
        utf8_bytes += len(text.encode())
        ids = [*tokenizer.beginning, *tokenizer.encode(text)]
        for start in range(0, len(ids) - 1, window_tokens):
            part = ids[start : start + window_tokens + 1]
            parts.append((part, [True] * len(part)))
            held += len(part)
            if held >= batch_tokens:
                batches.append(packed_examples(parts))
                parts, held = [], 0
    if parts:
        batches.append(packed_examples(parts))
    if not batches:
        raise DataError("there is no text to measure bits per byte on: at least one document is needed")
    return batches, utf8_bytes
