"""Tuning: a file of one's own, learnt from as conversations (sft) or as pairs (dpo)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from leanseek.sections.training import LoraSettings


class TuneSettings(LoraSettings):
    """Training on a file of one's own."""

    data: str | None = Field(None, description="your own .jsonl file, learnt from (docs/guides/fine-tuning.md)")
    passes: float = Field(3.0, gt=0, description="data: times that it is read, without steps and minutes")
    held_out: float = Field(0.05, ge=0, lt=1, description="data: share kept aside to measure by; 0: none")
    longest: int | None = Field(None, ge=8, description="data: most tokens of a line; None: the model's context")
    too_long: Literal["refuse", "cut"] = Field("refuse", description="data: longer ones are refused, or lose their end")


class SftSettings(TuneSettings):
    """Cold start: supervised fine-tuning on worked solutions, or on conversations of one's own."""

    traces_per_environment: int = Field(500, ge=1, description="worked solutions per task")
    traces: str | None = Field(
        None, description="stage of kind traces, or .jsonl file, learnt from in place of worked solutions"
    )
    hasty: float = Field(0.0, ge=0, le=1, description="chance after each line that a trace stops thinking and answers")
    enough: float | None = Field(None, gt=0, le=1, description="accuracy on unseen training problems that ends SFT")
    development_problems: int = Field(96, ge=1, description="problems per task that this accuracy is measured on")


class DpoSettings(TuneSettings):
    """Preference optimisation on pairs of one's own: a better reply against a worse one."""

    beta: float = Field(0.1, gt=0, description="how dear it is to leave the model that the stage starts from")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="chance that a pair is the wrong way round")
