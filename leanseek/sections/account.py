"""Account: what a run is judged on, what it is charged for, what its card says, and who else is told of its steps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from leanseek.sections.group import Settings


class EvalSettings(Settings):
    """Held-out evaluation."""

    problems: int = Field(512, ge=1, description="held-out problems per environment")
    samples: int = Field(4, ge=1, description="samples per problem for pass@k")
    max_new_tokens: int = Field(64, ge=1, description="longest reply, in tokens")


class CostSettings(Settings):
    """What a run is charged for."""

    usd_per_hour: float = Field(0.05, ge=0, description="price of the machine")
    hardware: str | None = Field(None, description="row of hardware.toml; None: this machine")
    grid: str | None = Field(None, description="whose electricity: a row of grids.toml, or grams of CO2 for a kWh")


class CardSettings(Settings):
    """What only a person can say in the model card."""

    license: str = Field("mit", description="licence of the model's weights, as Hugging Face spells it")
    data_license: str | None = Field(None, description="licences of data.sources; needed where there are any")
    intended_use: str | None = Field(None, description="what the model is for; None: research and teaching")


class TrackSettings(Settings):
    """Programs beside metrics.jsonl that are told of every logged step; on this machine alone, unless online."""

    to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = Field((), description="tensorboard, trackio, wandb")
    project: str = Field("leanseek", min_length=1, description="trackio, wandb: what the run is filed under")
    online: bool = Field(False, description="trackio, wandb: rows are sent to their servers at once")
    space: str | None = Field(None, description="trackio, online: the Hugging Face Space, as user/name")
