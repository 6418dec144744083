"""Layout: how a training step is spread over devices, read from text such as "pp=16,ep=64,schedule=dualpipe"."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from leanseek.cost.schedules import OVERLAPPING, SCHEDULES, fits, stages_of
from leanseek.errors import UsageError, nearest
from leanseek.model.config import ModelConfig

RECOMPUTE = ("none", "selective", "full")
PRECISIONS = ("fp8", "bf16", "fp32")


@dataclass(frozen=True)
class Layout:
    """How a step is spread.

    Args:
        pp: devices of a pipeline.
        ep: devices that share each layer's experts.
        tp: devices that share each product.
        dp: replicas of what the others make up; the batch is shared among them. 0: as many as there is room for.
        micro: texts of a micro-batch.
        schedule: of the pipeline, one of `pipeline.SCHEDULES`.
        precision: of matrix products: "fp8", "bf16" or "fp32".
        recompute: what of the forward pass is done again rather than kept: "none"; "selective": norms, SwiGLU and the
            attention's up-projections (V3 report, section 3.2.3); "full": whole layers.
        zero: what data-parallel replicas share: 0: nothing; 1: the optimiser's state; 3: weights and gradients too.
    """

    pp: int = 1
    ep: int = 1
    tp: int = 1
    dp: int = 0
    micro: int = 1
    schedule: str = "1f1b"
    precision: str = "bf16"
    recompute: str = "selective"
    zero: int = 1

    @property
    def text(self) -> str:
        """The layout as it can be given back."""
        return ",".join(f"{one.name}={getattr(self, one.name)}" for one in fields(self))

    @property
    def overlaps(self) -> bool:
        """Whether all-to-all hides behind computation."""
        return self.schedule in OVERLAPPING and self.pp > 1


def parse_layout(text: str, base: Layout | None = None) -> Layout:
    """Read a layout; what it does not name is as in `base`.

    Raises:
        UsageError: a name or a value that no layout has.
    """
    values: dict[str, int | str] = {}
    known = {one.name: one for one in fields(Layout)}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals or name not in known:
            raise UsageError(
                f"{item!r} is not part of a layout{nearest(name, known)}; have {', '.join(known)}, as in "
                "pp=16,ep=64,schedule=dualpipe"
            )
        if name in ("schedule", "precision", "recompute"):
            accepted = {"schedule": SCHEDULES, "precision": PRECISIONS, "recompute": RECOMPUTE}[name]
            if value not in accepted:
                raise UsageError(f"{name} = {value!r}{nearest(value, accepted)}; accepted are {', '.join(accepted)}")
            values[name] = value
        else:
            least = 0 if name in ("dp", "zero") else 1
            if not value.isdecimal() or int(value) < least or (name == "zero" and int(value) not in (0, 1, 3)):
                accepted_text = "0, 1 or 3" if name == "zero" else f"a whole number from {least}"
                raise UsageError(f"{name} = {value!r}: {accepted_text} is needed")
            values[name] = int(value)
    return replace(base or Layout(), **values)  # type: ignore[arg-type]


def obstacle(config: ModelConfig, layout: Layout, devices: int, batch: int) -> str | None:
    """Return why a layout cannot be, in words; None where it can.

    Args:
        config: the model's.
        layout: with its `dp`.
        devices: that there are.
        batch: texts of a step.
    """
    used = layout.pp * layout.tp * layout.dp
    if layout.dp < 1 or used != devices:
        return f"pp x tp x dp = {layout.pp} x {layout.tp} x {layout.dp} is {used} devices, not {devices}"
    if layout.ep > 1 and (layout.dp * layout.tp) % layout.ep:
        return f"ep = {layout.ep} does not divide the {layout.dp * layout.tp} devices of a pipeline stage"
    experts = config.n_routed_experts
    if layout.ep > 1 and (not experts or experts % layout.ep):
        return f"ep = {layout.ep} does not divide {experts} experts"
    if config.num_attention_heads % layout.tp:
        return f"tp = {layout.tp} does not divide {config.num_attention_heads} heads"
    if batch % (layout.dp * layout.micro):
        return f"a batch of {batch} is not a multiple of dp x micro = {layout.dp} x {layout.micro}"
    if stages_of(layout.schedule, layout.pp) > config.num_hidden_layers:
        return f"there are more stages than {config.num_hidden_layers} layers"
    return fits(layout.schedule, layout.pp, batch // (layout.dp * layout.micro))
