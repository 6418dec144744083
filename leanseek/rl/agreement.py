"""Agreement: what a run holds trainer and engine to: the same log-probabilities, the same experts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from leanseek.errors import RunError
from leanseek.sections.grpo import GrpoSettings
from leanseek.settings import Dtype

# In fp32 only rounding lies between them: 7e-5 was the most in the 61,440 samples of a laptop run.
LARGEST_GAP = 1e-3
# Of bf16's 8 bits, or where a near tie between two experts may fall either way, the mean says more than the largest.
LARGEST_MEAN_GAP = {"float32": 1e-3, "bfloat16": 5e-2}
# 100%, but for near ties, which two orders of adding decide differently: one weighs 3e-4 in a step of 4,000 pairs. Over
# a run, once there are so many steps, the mean is held to more.
LEAST_ROUTING = 0.999
LEAST_MEAN_ROUTING, ENOUGH_STEPS = 0.9999, 10


@dataclass(frozen=True)
class Agreement:
    """Bounds on how far the trainer may be from the engine, on the weights that sampled.

    Args:
        gap: largest distance of a token's log-probabilities, in nats; None: not held to.
        mean_gap: largest mean distance of a step.
        routing: least share of (token, layer) pairs of a step with the same experts; None: not held to.
        mean_routing: the same of the steps' mean.
    """

    gap: float | None
    mean_gap: float
    routing: float | None
    mean_routing: float | None

    def check(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """Return the worst of a run's rows: `logprob_gap` and `routing_agreement`, where there are any.

        Raises:
            RunError: a bound is passed: what was learnt from is not what was sampled.
        """
        rows = list(rows)
        agreed = [row["routing_agreement"] for row in rows if row.get("routing_agreement") is not None]
        if self.mean_routing is not None and len(agreed) >= ENOUGH_STEPS:
            rows.append({"of": f"{len(agreed)} steps", "routing_agreement_mean": sum(agreed) / len(agreed)})
        for name, bound, least in (
            ("logprob_gap", self.gap, False),
            ("logprob_gap_mean", self.mean_gap, False),
            ("routing_agreement", self.routing, True),
            ("routing_agreement_mean", self.mean_routing, True),
        ):
            for row in rows:
                value = row.get(name)
                if value is None or bound is None or (value >= bound if least else value <= bound):
                    continue
                where, side = row.get("of") or f"step {row.get('step', '?')}", "least" if least else "most"
                raise RunError(
                    f"{where}: {name} is {value:.4g}, at {side} {bound:g} "
                    "is accepted: the trainer does not compute what the engine sampled, so that nothing it learns can "
                    "be trusted; please report it with the run's recipe.toml"
                )
        found: dict[str, float] = {}
        if gaps := [row["logprob_gap"] for row in rows if row.get("logprob_gap") is not None]:
            found["logprob_gap"] = max(gaps)
        if agreed:
            found["routing_agreement"] = min(agreed)
        return found


def agreement_of(settings: GrpoSettings, dtype: Dtype) -> Agreement:
    """Return what a run is held to: in fp32 every token where its routing is replayed, else the mean."""
    exact = dtype == "float32" and settings.replay_routing
    gap, routing, mean = (LARGEST_GAP, LEAST_ROUTING, LEAST_MEAN_ROUTING) if exact else (None, None, None)
    return Agreement(gap, LARGEST_MEAN_GAP[dtype], routing, mean)
