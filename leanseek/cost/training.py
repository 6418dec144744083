"""TrainingPlan: what a training run takes: memory, time of a step and where it goes, hours, energy, money."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from leanseek.cost.layout import Layout, obstacle
from leanseek.cost.machines import Machines
from leanseek.cost.memory import Memory
from leanseek.cost.pipeline import simulate
from leanseek.cost.step import Work, fullest, held, parts_s, roofline, stage_times, stages, sync_s, update_s
from leanseek.errors import UsageError
from leanseek.model.count import MULTIPLY_ADD, TRAINING_PASSES, training_flops_per_token
from leanseek.units import JOULES_PER_WATT_HOUR

# The one calibrated factor: the share of the speed computed here that whole runs reach. Experts that are not equally
# busy, gaps between kernels, quantising again for gradients, stragglers, stops and restarts are in it. It is set so
# that DeepSeek-V2's 172.8 thousand H800 hours for a trillion tokens (arXiv 2405.04434, section 3.2.1) come out, and is
# fitted to nothing else. How many GPUs those were is not published; 2,048 are assumed, as V3 had.
RUN_SHARE = 0.635
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class TrainingPlan:
    """What a run takes, as computed beforehand.

    Args:
        work, machines, layout: what was asked.
        memory: of the fullest device.
        step_s: of one step, as a whole run reaches it.
        parts_s: where that goes, on the busiest device.
        tokens_per_device_s: speed.
        mfu, mfu_noncausal: achieved share of the bf16 peak, the masked half of attention left out, or counted.
        bubble_share: of the pipeline's time.
    """

    work: Work
    machines: Machines
    layout: Layout
    memory: Memory
    step_s: float
    parts_s: dict[str, float]
    tokens_per_device_s: float
    mfu: float
    mfu_noncausal: float
    bubble_share: float

    @property
    def hours(self) -> float:
        """Hours from start to end."""
        return self.work.tokens / (self.tokens_per_device_s * self.machines.count) / SECONDS_PER_HOUR

    @property
    def days(self) -> float:
        """Days from start to end."""
        return self.hours / 24

    @property
    def device_hours(self) -> float:
        """Hours that are paid for, of all GPUs or cores."""
        return self.hours * self.machines.units

    @property
    def joules(self) -> float:
        """Energy at the devices' full power, without hosts, network and cooling."""
        return self.machines.watts * self.hours * JOULES_PER_WATT_HOUR

    @property
    def usd(self) -> float | None:
        """Money; None where no price is known."""
        price = self.machines.usd_per_device_hour
        return None if price is None else price * self.hours * self.machines.count

    @property
    def memory_per_device_bytes(self) -> float:
        """Bytes that the fullest device needs."""
        return self.memory.total

    @property
    def fits(self) -> bool:
        """Whether that is there; a processor's memory is not known."""
        room = self.machines.device.memory_bytes
        return not room or self.memory.total <= room

    def as_dict(self) -> dict[str, Any]:
        """Return everything that `leanseek plan --json` prints."""
        return {
            "kind": "training",
            "machines": self.machines.asked,
            "devices": self.machines.count,
            "tokens": self.work.tokens,
            "batch_texts": self.work.batch,
            "text_tokens": self.work.length,
            "layout": self.layout.text,
            "fits": self.fits,
            "memory_per_device_bytes": self.memory.as_dict(),
            "step_s": self.step_s,
            "step_parts_s": self.parts_s,
            "bubble_share": self.bubble_share,
            "tokens_per_device_s": self.tokens_per_device_s,
            "mfu": self.mfu,
            "mfu_noncausal": self.mfu_noncausal,
            "hours": self.hours,
            "days": self.days,
            "device_hours": self.device_hours,
            "joules": self.joules,
            "usd": self.usd,
            "run_share": RUN_SHARE,
        }


def plan_training(work: Work, machines: Machines, layout: Layout) -> TrainingPlan:
    """Compute what a run takes in one layout.

    Raises:
        UsageError: the layout cannot be.
    """
    layout = settled(layout, machines.count)
    why_not = obstacle(work.config, layout, machines.count, work.batch)
    if why_not is not None:
        raise UsageError(
            f"the layout {layout.text} cannot be: {why_not}; change it, or leave it out and have one chosen"
        )
    device = machines.device
    if layout.precision == "fp8" and not device.fp8_flops:
        raise UsageError(f"precision = fp8, but {device.title} has no FP8 products; give precision=bf16 or fp32")
    roof = roofline(layout, machines)
    times, weights = stages(work, layout, roof)
    micro_batches = work.batch // (layout.dp * layout.micro)
    trace = simulate(layout.schedule, layout.pp, micro_batches, stage_times(times, layout, roof, work))
    memory = fullest(work, layout, machines, times, weights, trace)
    most = max(range(layout.pp), key=lambda one: sum(weights[s].shared + weights[s].experts for s in held(layout, one)))
    own = [weights[stage] for stage in held(layout, most)]
    sync = sync_s(own, layout, roof, micro_batches, trace.seconds)
    update = update_s(own, layout, roof)
    ideal = trace.seconds + sync + update
    step_s = ideal / RUN_SHARE
    speed = work.batch * work.length / step_s / machines.count
    return TrainingPlan(
        work=work,
        machines=machines,
        layout=layout,
        memory=memory,
        step_s=step_s,
        parts_s=parts_s(times, layout, trace, micro_batches, sync, update, step_s - ideal),
        tokens_per_device_s=speed,
        mfu=speed * training_flops_per_token(work.config, work.length) / device.peak_flops("bf16"),
        mfu_noncausal=speed * _noncausal_flops(work) / device.peak_flops("bf16"),
        bubble_share=trace.bubble_share,
    )


def settled(layout: Layout, devices: int) -> Layout:
    """Return a layout whose `dp` takes up all devices."""
    return layout if layout.dp else replace(layout, dp=max(devices // (layout.pp * layout.tp), 1))


def _noncausal_flops(work: Work) -> float:
    """Return the training FLOPs of a token where the masked half of attention is counted too."""
    causal = training_flops_per_token(work.config, work.length)
    config = work.config
    heads = config.num_attention_heads
    if config.family.attention == "grouped":
        scores = 2 * heads * config.head_dim
    else:
        scores = heads * (config.qk_head_dim + config.v_head_dim)
    masked = (work.length - 1) / 2
    return causal + TRAINING_PASSES * MULTIPLY_ADD * config.num_hidden_layers * masked * scores
