"""Training: what every stage that trains has, its optimiser, and how processes share it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from leanseek.sections.group import Settings


class OptimiserSettings(Settings):
    """Muon for matrices and stacked experts, AdamW for the rest."""

    name: Literal["muon", "adamw"] = Field("muon", description="muon, or adamw for every parameter")
    lr: float = Field(0.02, gt=0, description="peak learning rate of Muon's matrices (of everything under adamw)")
    adamw_lr: float = Field(3e-3, gt=0, description="peak learning rate of embeddings, head, norms and router")
    weight_decay: float = Field(0.0, ge=0, description="share of a weight lost per step, times the learning rate")
    momentum: float = Field(0.95, ge=0, lt=1, description="of Muon")
    beta2: float = Field(0.95, gt=0, lt=1, description="of AdamW")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")


class TrainSettings(Settings):
    """What pretraining, SFT and GRPO share: how long, how large a step, how often saved."""

    steps: int | None = Field(None, ge=1, description="optimiser steps; give this or minutes")
    minutes: float | None = Field(None, gt=0, description="time budget; steps follow from the measured speed")
    batch_sequences: int = Field(32, ge=1, description="windows (pretraining) or conversations (SFT) of a step")
    micro_tokens: int | None = Field(None, ge=1, description="tokens of one forward pass; None: the whole batch")
    most_logits: int | None = Field(
        None, ge=1, description="logits (tokens x vocabulary) in memory at once; None: all of a forward pass"
    )
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="share of steps in the linear warm-up")
    decay_fraction: float = Field(0.3, ge=0, le=1, description="share of steps in V3's cosine decay")
    final_lr_fraction: float = Field(0.1, ge=0, le=1, description="share of the peak learning rate left at the end")
    last_lr_fraction: float | None = Field(
        None, ge=0, le=1, description="share left in the last third of the constant tail (V3: 0.033); None: the same"
    )
    ramp_from: int | None = Field(
        None, ge=1, description="batch_sequences of the first step, growing linearly; None: no ramp (V3: a fifth)"
    )
    ramp_fraction: float = Field(0.03, gt=0, le=1, description="share of steps in which the batch grows (V3: 0.03)")
    skip_spikes: float | None = Field(
        None, gt=1, description="steps whose gradient is that many times its running mean are skipped; None: none are"
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of a running mean of the weights, which the stage ends with (0.999)"
    )
    average_from: float | None = Field(
        None, ge=0, lt=1, description="in place of ema: share of steps after which all weights count alike in the mean"
    )
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(1, ge=1, description="newest checkpoints of a stage that are kept")
    keep_best: bool = Field(False, description="the one of the lowest validation loss is written and kept too")
    write_behind: bool = Field(
        True, description="checkpoints are written while training goes on, from a copy of all that they hold"
    )
    validate_every: int = Field(200, ge=1, description="steps between looks at held-back text or problems")
    balance_rate: float = Field(1e-3, ge=0, description="gamma of the router bias update (V3: 0.001)")
    balance_until: float = Field(1.0, ge=0, le=1, description="share of steps after which gamma is 0 (V3: 0.966)")
    balance_loss: float = Field(1e-4, ge=0, description="alpha of the sequence-wise balance loss (V3: 0.0001)")
    mtp_weight: float = Field(0.3, ge=0, description="lambda of the MTP loss (V3: 0.3, later 0.1); 0: not trained")
    late_mtp_weight: float | None = Field(
        None, ge=0, description="lambda after late_mtp_from (V3: 0.1); None: the same"
    )
    late_mtp_from: float = Field(0.676, ge=0, le=1, description="share of steps before that (V3: 10 of 14.8T tokens)")
    mtp_every: int = Field(1, ge=1, description="the MTP layer learns in every n-th step (V3: 1); it costs a third")
    recompute: bool = Field(
        False, description="blocks are computed anew for the gradient: less memory, a third more work"
    )
    fp8: bool = Field(False, description="products in FP8 as V3 has them, by emulation: the same numbers, slowly")
    optimiser: OptimiserSettings = OptimiserSettings()

    @model_validator(mode="after")
    def _steps_are_known(self) -> Self:
        for name in ("ramp_from", "late_mtp_weight"):
            if getattr(self, name) is not None and self.steps is None:
                raise ValueError(f"{name} needs steps, not minutes: what a step reads must follow from its number")
        return self

    @field_validator("average_from")
    @classmethod
    def _one_mean(cls, first: float | None, info: ValidationInfo) -> float | None:
        if first is not None and info.data.get("ema") is not None:
            raise ValueError("ema and average_from are two ways of one mean: give one of them")
        return first

    @field_validator("ramp_from")
    @classmethod
    def _grows(cls, first: int | None, info: ValidationInfo) -> int | None:
        full = info.data.get("batch_sequences", first)
        if first is not None and full is not None and first > full:
            raise ValueError(f"at most batch_sequences = {full} is accepted, for the batch grows")
        return first


class ExtendSettings(TrainSettings):
    """Context extension: pretraining goes on with longer sequences, positions stretched by YaRN."""

    sequence_tokens: int = Field(512, ge=8, description="tokens of one sequence: the context that is learnt")
    original_tokens: int | None = Field(
        None, ge=8, description="context that positions were learnt in; None: the model's, or data.sequence_tokens"
    )
    factor: float | None = Field(
        None, ge=1, description="YaRN's s; None: sequence_tokens over original_tokens (V3: 40, at 32K and at 128K)"
    )


class LoraSettings(TrainSettings):
    """Training in full, or by low-rank updates."""

    lora_rank: int = Field(0, ge=0, description="rank of low-rank updates; 0: all weights are trained in full")
    lora_alpha: float = Field(32.0, gt=0, description="low-rank updates are multiplied by this over their rank")
    lora_targets: tuple[str, ...] = Field((), description="layers that get them, as q_proj; empty: every Linear")


class ParallelSettings(Settings):
    """How the processes that torchrun started share pretraining; one process alone has all."""

    ranks: int | None = Field(None, ge=1, description="processes that there must be; None: as many as torchrun starts")
    experts: int = Field(1, ge=1, description="ranks that share the routed experts of every layer")
    shards: int = Field(1, ge=1, description="ranks that share all other weights and the optimiser's state")
    pipeline: int = Field(1, ge=1, description="ranks that the layers are spread over, one part after the other")
    schedule: Literal["1f1b", "zbv", "dualpipev"] = Field("1f1b", description="of the pipeline: 1f1b, zbv, dualpipev")
