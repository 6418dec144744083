"""ServingPlan: what serving takes: tokens a second in prefill and decoding against speed for a user, and their cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from leanseek.cost.machines import Machines
from leanseek.cost.memory import RESERVED
from leanseek.cost.service import Service, decode_s, prefill_s, weights_bytes
from leanseek.cost.training import SECONDS_PER_HOUR
from leanseek.errors import UsageError
from leanseek.model.count import cache_bytes_per_token
from leanseek.units import format_bytes

# Share of the day's hours that devices are as busy as planned. From two figures of DeepSeek's: at 5,000 tokens its
# cost curve (V3.2 report, section 4) has decoding at $0.15 for a million tokens on a busy cluster, and its day of
# service (open-infra-index, day 6) cost $0.30. Who serves a steady load may say more with `busy`.
BUSY = 0.5


@dataclass(frozen=True)
class Rate:
    """One way to run the decoding devices.

    Args:
        texts: that each device decodes at once.
        user_tokens_per_s: speed of each reply.
        device_tokens_per_s: of all its replies together.
        usd_per_million: reply tokens; None: no price is known.
        joules_per_token: at full power.
    """

    texts: int
    user_tokens_per_s: float
    device_tokens_per_s: float
    usd_per_million: float | None
    joules_per_token: float


@dataclass(frozen=True)
class ServingPlan:
    """What serving takes.

    Args:
        service, machines: what was asked.
        busy: share of the time that devices work.
        prefill_tokens_per_s: prompt tokens of one device while it works, those that the cache had counted too.
        prefill_usd_per_million, prefill_joules_per_token: of prompt tokens, likewise.
        rates: ways to decode, from the fastest reply to the cheapest.
        chosen: the rate for the speed that was asked for, or the cheapest.
        weights_bytes: on a decoding device.
        text_bytes: of the cache, for a text in the middle of its reply.
        most_texts: that a decoding device has room for.
    """

    service: Service
    machines: Machines
    busy: float
    prefill_tokens_per_s: float
    prefill_usd_per_million: float | None
    prefill_joules_per_token: float
    rates: tuple[Rate, ...]
    chosen: Rate
    weights_bytes: float
    text_bytes: float
    most_texts: int

    def as_dict(self) -> dict[str, Any]:
        """Return everything that `leanseek plan --serve --json` prints."""
        return {
            "kind": "serving",
            "machines": self.machines.asked,
            "prompt_tokens": self.service.prompt,
            "reply_tokens": self.service.reply,
            "cache_hits": self.service.hits,
            "prefill_ep": self.service.prefill_ep,
            "decode_ep": self.service.decode_ep,
            "precision": self.service.precision,
            "busy": self.busy,
            "prefill_tokens_per_device_s": self.prefill_tokens_per_s,
            "prefill_usd_per_million": self.prefill_usd_per_million,
            "prefill_joules_per_token": self.prefill_joules_per_token,
            "weights_per_device_bytes": self.weights_bytes,
            "most_texts_per_device": self.most_texts,
            "rates": [vars(rate) for rate in self.rates],
            "chosen": vars(self.chosen),
        }


def plan_serving(service: Service, machines: Machines, speed: float | None = None, busy: float = BUSY) -> ServingPlan:
    """Compute what serving takes.

    Args:
        service: what is served.
        machines: the devices; how many makes no difference to the cost of a token.
        speed: tokens a second that each reply shall have; None: the cheapest way.
        busy: share of the time that devices work as planned.
    Raises:
        UsageError: the model does not fit, or no reply can be that fast.
    """
    if not 0 < busy <= 1 or not 0 <= service.hits < 1:
        raise UsageError(f"busy = {busy:g}, hits = {service.hits:g}: busy in (0, 1] and hits in [0, 1) are needed")
    device, config = machines.device, service.config
    each = prefill_s(service, machines, service.prompt) * (1 - service.hits)
    weights = weights_bytes(service)
    context = service.prompt + service.reply / 2
    size = cache_bytes_per_token(config, bytes_per_number=1 if config.index_topk else 2)
    room = device.memory_bytes * (1 - RESERVED) - weights
    if device.memory_bytes and room < context * size:
        raise UsageError(
            f"the weights take {format_bytes(weights)} of each {device.title} with ep={service.decode_ep}, and leave "
            f"no room for a text of {context:,.0f} tokens; share the experts among more devices, or take larger ones"
        )
    most = int(room // (context * size)) if device.memory_bytes else 256
    rates = [_rate(service, machines, texts, context, busy) for texts in _steps(most)]
    cheapest = max(rates, key=lambda rate: rate.device_tokens_per_s)
    chosen = cheapest
    if speed is not None:
        fast = [rate for rate in rates if rate.user_tokens_per_s >= speed]
        if not fast:
            raise UsageError(
                f"no reply gets {speed:g} tokens a second on {device.title}: a device that decodes one text alone "
                f"gives {rates[0].user_tokens_per_s:.1f}; ask for less, or change --decode-ep or the machine"
            )
        chosen = max(fast, key=lambda rate: rate.device_tokens_per_s)
    return ServingPlan(
        service=service,
        machines=machines,
        busy=busy,
        prefill_tokens_per_s=1 / each,
        prefill_usd_per_million=_usd(machines, each, busy),
        prefill_joules_per_token=device.watts * each,
        rates=tuple(rates),
        chosen=chosen,
        weights_bytes=weights,
        text_bytes=context * size,
        most_texts=most,
    )


def _rate(service: Service, machines: Machines, texts: int, context: float, busy: float) -> Rate:
    step = decode_s(service, machines, texts, context)
    speed = (1 + service.accepted) / step
    each = 1 / (texts * speed)
    return Rate(texts, speed, texts * speed, _usd(machines, each, busy), machines.device.watts * each)


def _usd(machines: Machines, seconds: float, busy: float) -> float | None:
    price = machines.usd_per_device_hour
    return None if price is None else price / SECONDS_PER_HOUR * seconds * 1e6 / busy


def _steps(most: int) -> list[int]:
    """Return numbers of texts from one to the most, about half as many again each time."""
    found = [1]
    while found[-1] < most:
        found.append(min(max(found[-1] + 1, round(found[-1] * 1.5)), most))
    return found
