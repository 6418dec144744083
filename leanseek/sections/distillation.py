"""Distillation: replies drawn from a teacher, and a student that learns all that the teacher says."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from leanseek.sections.group import Settings
from leanseek.sections.training import TrainSettings


class TracesSettings(Settings):
    """Replies drawn from a teacher and kept where they are right: rejection sampling, and data for distillation."""

    teacher: str | None = Field(
        None, description="who replies: a stage, a model folder or the URL of a server; None: the stage before"
    )
    model: str | None = Field(None, description="at a URL: the model's name there; None: the first that it lists")
    licence: str = Field("", description="at a URL: what its terms say of training on its replies, to be recorded")
    problems: int = Field(500, ge=1, description="training problems per task, each another one")
    samples: int = Field(4, ge=1, description="replies per problem")
    keep: int = Field(1, ge=1, description="most replies of a problem that are kept, the shortest right ones")
    sound: bool = Field(False, description="only those whose thinking the task's audit finds right line by line")
    easiest: float = Field(
        1.0, gt=0, le=1, description="problems that a larger share of the replies solves are left out"
    )
    max_new_tokens: int = Field(64, ge=1, description="longest reply, in tokens")
    temperature: float = Field(1.0, ge=0, description="of the replies")
    at_once: int = Field(8, ge=1, le=256, description="at a URL: requests that are under way together")


class DistillSettings(TrainSettings):
    """A student learns all of a teacher's next-token distribution, on given replies or on its own."""

    teachers: tuple[str, ...] = Field((), description="stages or model folders; a stage teaches the tasks it had")
    method: Literal["logits", "on_policy"] = Field(
        "on_policy", description="logits: KL from teacher to student on given replies; on_policy: back, on its own"
    )
    traces: str | None = Field(None, description="logits: stage or file of replies; None: worked solutions")
    traces_per_environment: int = Field(500, ge=1, description="logits without traces: worked solutions per task")
    prompts_per_step: int = Field(32, ge=1, description="on_policy: problems of a step")
    samples_per_prompt: int = Field(2, ge=1, description="on_policy: replies per problem")
    max_new_tokens: int = Field(64, ge=1, description="on_policy: longest reply, in tokens")
    temperature: float = Field(1.0, gt=0, description="that both distributions are softened by")
    most_logits: int | None = Field(4_000_000, ge=1, description="logits (tokens x vocabulary) in memory at once")
    development_problems: int = Field(96, ge=1, description="problems per task of the accuracy shown on the way")
