"""GRPO: reinforcement learning with verifiable rewards."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from leanseek.sections.training import LoraSettings

Objective = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"]


class GrpoSettings(LoraSettings):
    """Reinforcement learning with verifiable rewards."""

    start: str | None = Field(None, description="model folder to start from, in place of the SFT stage's model")
    cold_start: bool = Field(False, description="with start: fine-tune on worked solutions first, as [sft] has it")
    objective: Objective = Field("dapo", description="what the next five follow: grpo, dr_grpo, dapo, gspo or cispo")
    advantages: Literal["normalised", "centred"] | None = Field(
        None, description="whether they are divided by their group's spread; None: the objective's way"
    )
    ratio: Literal["token", "reply", "weight"] | None = Field(
        None, description="clipped by token, by reply (GSPO), or as a fixed weight (CISPO); None: the objective's way"
    )
    average: Literal["tokens", "replies", "constant"] | None = Field(
        None, description="mean over all tokens, over replies' means, or by max_new_tokens; None: the objective's way"
    )
    clip_low: float | None = Field(
        None, gt=0, description="how far below 1 the probability ratio counts; None: the objective's way (dapo 0.2)"
    )
    clip_high: float | None = Field(
        None, gt=0, description="how far above 1 it counts: clip-higher; None: the objective's way (dapo 0.28)"
    )
    prompts_per_step: int = Field(64, ge=1, description="problems of a step")
    samples_per_prompt: int = Field(8, ge=2, description="replies per problem, the group that is compared")
    max_new_tokens: int = Field(
        64, ge=1, description="longest reply, or all of a conversation after its prompt, in tokens"
    )
    temperature: float = Field(1.0, gt=0, description="of the samples")
    top_p: float = Field(1.0, gt=0, le=1, description="of the samples: the likeliest tokens up to this share; 1: all")
    top_k: int = Field(0, ge=0, description="of the samples: how many of the likeliest tokens; 0: all")
    keep_sampling_mask: bool = Field(
        True, description="with top_p or top_k: learn on the shares among the tokens that could have been drawn"
    )
    drafts: int = Field(0, ge=0, description="tokens that the MTP layer drafts in rollouts, where that pays; 0: none")
    staleness: int = Field(
        0, ge=0, le=64, description="steps that samples may be older than the model that learns; 0: sample, then learn"
    )
    cluster: int = Field(0, ge=0, le=4096, description="rollout workers on a Ray cluster; 0: samples are drawn here")
    cluster_address: str = Field("local", description="of the Ray cluster; auto: this machine's; local: started here")
    refill: int = Field(0, ge=0, le=64, description="further draws of problems for those that taught nothing; 0: none")
    epochs: int = Field(1, ge=1, description="times that a step's samples are learnt from")
    minibatches: int = Field(1, ge=1, description="optimiser steps that a pass over a step's samples is parted into")
    off_policy: float | None = Field(
        None,
        gt=0,
        description="V3.2's delta: bad replies that far from the sampling policy are masked; None: none is, "
        "but with staleness those beyond 0.5",
    )
    kl_weight: float = Field(0.0, ge=0, description="weight of the KL to the SFT model; 0: none")
    most_reward_errors: float = Field(
        0.5, ge=0, le=1, description="share of a step's rewards that may fail (they count as 0) before the run stops"
    )
    format_reward: float = Field(0.0, ge=0, description="bonus for a well-formed reply")
    progress_reward: float = Field(0.0, ge=0, description="weight of how far a world's episode gets, beside winning")
    language: str | None = Field(None, description="language that replies are to think in, as en, ru or zh; None: any")
    language_reward: float = Field(0.1, ge=0, description="weight of the share of words in that language (R1)")
    rubric: dict[str, float] = Field({}, description="check of a reply (as sound, brief) -> its weight in the reward")
    judge: str | None = Field(None, description="URL of a server whose model grades right replies; None: none does")
    judge_model: str | None = Field(None, description="the judge's name there; None: the first that it lists")
    judge_wishes: str = Field(
        "The thinking is short, orderly and easy to follow.", description="what the judge grades by, in words"
    )
    judge_reward: float = Field(0.5, ge=0, description="what its best grade adds to a right reply's reward")
    length_reward: float = Field(
        0.0, ge=0, description="with efforts: what a longest right reply loses at low effort, less above; 0: nothing"
    )
    overlong_tokens: int = Field(
        0, ge=0, description="last tokens of max_new_tokens over which DAPO's penalty grows to 1; 0: no penalty"
    )
    replay_routing: bool = Field(True, description="train on the experts that sampling chose")
    sort_by_length: bool = Field(False, description="share a step among workers longest groups first, evenly")
    development_problems: int = Field(96, ge=1, description="problems per task of the accuracy shown on the way")

    @field_validator("overlong_tokens")
    @classmethod
    def _within_the_reply(cls, tokens: int, info: ValidationInfo) -> int:
        longest = info.data.get("max_new_tokens", tokens)
        if tokens > longest:
            raise ValueError(f"at most max_new_tokens = {longest} is accepted")
        return tokens

    @field_validator("minibatches")
    @classmethod
    def _a_group_each(cls, parts: int, info: ValidationInfo) -> int:
        groups = info.data.get("prompts_per_step", parts)
        if parts > groups:
            raise ValueError(f"at most prompts_per_step = {groups} is accepted, for groups stay whole")
        return parts

    @model_validator(mode="before")
    @classmethod
    def _of_an_earlier_run(cls, values: Any) -> Any:
        """Read the clips that runs had spelt out before objectives had names as what they are now: dapo's own."""
        clips = {"clip_low": 0.2, "clip_high": 0.28}
        if isinstance(values, dict) and "objective" not in values and clips.items() <= values.items():
            return {key: value for key, value in values.items() if key not in clips}
        return values
