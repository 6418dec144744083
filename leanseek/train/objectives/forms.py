"""Form: what GRPO and its successors are made of, each by its name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from leanseek.sections.grpo import GrpoSettings

Advantages = Literal["normalised", "centred"]
Ratio = Literal["token", "reply", "weight"]
Average = Literal["tokens", "replies", "constant"]


@dataclass(frozen=True)
class Form:
    """An objective, in its parts.

    Args:
        advantages: rewards less their group's mean, divided by its standard deviation or not.
        ratio: "token": each token's probability over the old one, clipped; "reply": one for a reply, the geometric
            mean of its tokens', clipped; "weight": each token's, clipped and then held fixed as the weight of its
            log-probability, so that no token's gradient vanishes.
        average: over all "tokens"; over "replies", each the mean of its tokens; or the sum of a reply's tokens divided
            by a "constant", the longest reply.
        clip_low, clip_high: the ratio counts within 1 - clip_low .. 1 + clip_high.
    """

    advantages: Advantages
    ratio: Ratio
    average: Average
    clip_low: float
    clip_high: float


# grpo: DeepSeekMath (arXiv 2402.03300) section 4.1. dr_grpo: arXiv 2503.20783 section 3.2. dapo: arXiv 2503.14476
# sections 3.1 and 3.3. gspo: arXiv 2507.18071 sections 4.1 and 5.1, which has these clips. cispo: MiniMax-M1
# (arXiv 2506.13585) section 3.1, which bounds the weight above alone; its bound of 5 is that of arXiv 2510.13786.
FORMS = {
    "grpo": Form("normalised", "token", "replies", 0.2, 0.2),
    "dr_grpo": Form("centred", "token", "constant", 0.2, 0.2),
    "dapo": Form("normalised", "token", "tokens", 0.2, 0.28),
    "gspo": Form("normalised", "reply", "replies", 3e-4, 4e-4),
    "cispo": Form("normalised", "weight", "tokens", 1.0, 4.0),
}


def form_of(settings: GrpoSettings) -> Form:
    """Return the form that settings ask for: their objective's, with what they say themselves in its place."""
    own = {name: getattr(settings, name) for name in Form.__dataclass_fields__}
    return replace(FORMS[settings.objective], **{name: value for name, value in own.items() if value is not None})
