"""Data: where text comes from, and the tokenizer that is learnt from it."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from leanseek.sections.group import Settings


class DataSettings(Settings):
    """Where text comes from."""

    sources: tuple[str, ...] = Field((), description="folders or files of .txt/.jsonl; empty: the embedded corpus")
    shards: tuple[str, ...] = Field((), description="folders that leanseek data made, in place of sources")
    weights: tuple[float, ...] = Field((), description="how often each of them is drawn; empty: by their tokens")
    mask_documents: bool = Field(False, description="tokens of a window see their own document only (V3: all of it)")
    documents: int = Field(40_000, ge=1, description="documents that the embedded corpus generates")
    dialogues: float = Field(
        0.0, ge=0, le=1, description="embedded corpus: conversations, mostly hasty ones, for each of its documents"
    )
    sequence_tokens: int = Field(128, ge=8, description="tokens of one training sequence")
    validation_fraction: float = Field(0.02, gt=0, lt=0.5, description="share of documents kept for validation")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.sources and self.shards:
            raise ValueError("give sources or shards, not both")
        if self.weights and (len(self.weights) != len(self.shards) or min(self.weights) <= 0):
            raise ValueError(f"weights: {len(self.shards)} numbers above 0 are needed, one for each of shards")
        return self


class TokenizerSettings(Settings):
    """The byte-level BPE tokenizer."""

    vocab_size: int | None = Field(None, ge=300, description="tokens, special ones included; None: the model's")
    training_documents: int = Field(20_000, ge=1, description="documents that the vocabulary is learnt from")
