"""Published: what runs and services have really cost, beside what is planned of them, and how far off that is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from leanseek.cost.layout import parse_layout
from leanseek.cost.learning import Learning, ways
from leanseek.cost.machines import parse_machines
from leanseek.cost.pipeline import StageTimes, bubble_formula, simulate
from leanseek.cost.planner import config_of, plan
from leanseek.cost.roofline import NETWORK_SHARE, Roofline
from leanseek.cost.service import Service, decode_at_s, prefill_s
from leanseek.cost.serving import plan_serving
from leanseek.cost.step import Work
from leanseek.cost.training import TrainingPlan, plan_training
from leanseek.model.config import ModelConfig
from leanseek.model.count import cache_bytes_per_token, training_flops_per_token

V3_LAYOUT = "pp=16,ep=64,schedule=dualpipe"
V2_LAYOUT = "pp=16,ep=8,schedule=zb1p,precision=bf16"
DOLLARS = 2 / 3600 * 1e6  # a million seconds of an H800 at $2 an hour
# Post-training of V3, and making R1's data, as published: nothing here plans them.
POST_TRAINING_HOURS, R1_DATA_HOURS = 5_000, 5_000
V2_HOURS, V3_HOURS = 172_800, 2_664_000


def _dense(layers: int, width: int, heads: int, shared: int, wide: int, vocabulary: int, bias: bool) -> ModelConfig:
    return ModelConfig(
        model_type="llama",
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        head_dim=128,
        intermediate_size=wide,
        attention_bias=bias,
    )


DENSE_67B = _dense(95, 8192, 64, 8, 22016, 102400, False)
QWEN_72B = _dense(80, 8192, 64, 8, 29568, 152064, False)
LLAMA_405B = _dense(126, 16384, 128, 8, 53248, 128256, False)


@dataclass(frozen=True)
class Row:
    """A figure that was published, and ours.

    Args:
        run: what it is of.
        figure: what it says, and in what.
        published, planned: the two.
        within: share by which they may differ; tests hold it.
        source: where it was published.
        note: what is assumed or borrowed.
    """

    run: str
    figure: str
    published: float
    planned: float
    within: float
    source: str
    note: str = ""

    @property
    def error(self) -> float:
        """By which share ours is more (or less, if negative)."""
        return self.planned / self.published - 1


V3_REPORT, V2_REPORT, INSIGHTS = "arXiv 2412.19437", "arXiv 2405.04434", "arXiv 2505.09343"
V32_REPORT, R1_REPORT, DAY = "V3.2 report, figure 3, read off", "arXiv 2501.12948v2", "open-infra-index, day 6"
FLASH_MLA = "FlashMLA's README: 656 B, and 132 B of the indexer"
AUTOMODEL, DUALPIPE = "NeMo AutoModel's performance summary, 2026", "DualPipe's README; arXiv 2412.19437, table 2"


@cache
def rows() -> tuple[Row, ...]:
    """Compute every row; a second or two."""
    return (*_training(), *_counted(), *_bubbles(), *_serving(), *_learning())


def table() -> str:
    """Return the rows as Markdown."""
    lines = ["| run | figure | published | planned | error | source |", "|---|---|---|---|---|---|"]
    for one in rows():
        error = f"{100 * one.error:+.1f}%".replace("-0.0%", "+0.0%") + (f"; {one.note}" if one.note else "")
        figures = f"{_short(one.published)} | {_short(one.planned)} | {error}"
        lines.append(f"| {one.run} | {one.figure} | {figures} | {one.source} |")
    return "\n".join(lines)


def v3() -> TrainingPlan:
    """Return the plan of V3's pretraining."""
    return _v3()


@cache
def _v3() -> TrainingPlan:
    return plan("deepseek-v3", "2048xh800", "14.8T", layout=V3_LAYOUT)


def v2() -> TrainingPlan:
    """Return the plan of a trillion tokens of V2's pretraining, which the share of speed is calibrated on."""
    return _v2()


@cache
def _v2() -> TrainingPlan:
    return plan("deepseek-v2", "2048xh800", "1T", layout=V2_LAYOUT, batch=9216)


def _training() -> Iterator[Row]:
    found, second = _v3(), _v2()
    # `RUN_SHARE` is from this figure, so it is planned with what V3's hours would have said; hours go with 1 / share.
    hours, note = second.device_hours * V3_HOURS / found.device_hours, "the share of speed from V3's hours, for once"
    yield Row("V2, 2,048 H800 (assumed)", "H800 hours for a trillion tokens", V2_HOURS, hours, 0.10, V2_REPORT, note)
    run = "V3 pretraining, 2,048 H800"
    yield Row(run, "H800 hours", V3_HOURS, found.device_hours, 0.10, V3_REPORT)
    yield Row(run, "seconds of a step of 15,360 x 4,096", 19.926, found.step_s, 0.10, INSIGHTS)
    yield Row(run, "MFU, causal", 0.3894, found.mfu, 0.10, INSIGHTS)
    yield Row(run, "MFU, non-causal", 0.4373, found.mfu_noncausal, 0.10, INSIGHTS)
    # 1,000 steps of 1,920 x 32K and of 480 x 128K; a batch that divides evenly, as speed does not depend on it.
    hours = 0.0
    for length, texts in ((32768, 1920), (131072, 480)):
        work = Work(config_of("deepseek-v3"), 1000 * texts * length, 8192, length)
        hours += plan_training(work, found.machines, parse_layout(f"{V3_LAYOUT},precision=fp8")).device_hours
    yield Row("V3 context extension", "H800 hours", 119_000, hours, 0.15, V3_REPORT)
    whole, borrowed = found.device_hours + hours + POST_TRAINING_HOURS, "post-training as published"
    yield Row("V3 in all", "H800 hours", 2_788_000, whole, 0.10, V3_REPORT, borrowed)
    yield Row("V3 in all", "$ at $2 an hour", 5_576_000, 2 * whole, 0.10, V3_REPORT, borrowed)
    dense = plan_training(Work(DENSE_67B, 10**12, 9216), second.machines, parse_layout("pp=16,tp=2,schedule=zb1p"))
    run = "DeepSeek 67B, pp=16, tp=2"
    yield Row(run, "H800 hours for a trillion tokens", 300_600, dense.device_hours, 0.15, V2_REPORT)
    yield Row(
        "V2 over it", "share of hours saved", 0.425, 1 - second.device_hours / dense.device_hours, 0.15, V2_REPORT
    )
    for gpus, batch, published, within in ((1024, 8192, 865, 0.10), (256, 512, 1002, 0.25)):
        work = Work(config_of("deepseek-v3"), 10**12, batch, mtp=False)
        layout = parse_layout("pp=4,ep=64,schedule=interleaved8,precision=bf16,zero=3")
        speed = plan_training(work, parse_machines(f"{gpus}xh100"), layout).tokens_per_device_s
        yield Row(f"V3 in bf16 on {gpus:,} H100", "tokens a second and GPU", published, speed, within, AUTOMODEL)


def _counted() -> Iterator[Row]:
    shapes = {"V2": config_of("deepseek-v2"), "V3": config_of("deepseek-v3"), "Qwen 72B": QWEN_72B}
    shapes["Llama 405B"] = LLAMA_405B
    for name, gflop in (("V2", 155), ("V3", 250), ("Qwen 72B", 394), ("Llama 405B", 2448)):
        ours = training_flops_per_token(shapes[name], 4096) / 1e9
        note = "6 for each of its 70.2G weights without vocabulary are 421 already" if name == "Qwen 72B" else ""
        yield Row(
            name, "GFLOP of training a token, texts of 4,096", gflop, ours, 0.15 if note else 0.02, INSIGHTS, note
        )
    for name, kilobytes in (("V3", 70.272), ("Qwen 72B", 327.680), ("Llama 405B", 516.096)):
        ours = cache_bytes_per_token(shapes[name]) / 1e3
        yield Row(name, "kB of cache a token, bf16", kilobytes, ours, 1e-9, INSIGHTS)
    numbers = cache_bytes_per_token(shapes["V2"]) / 2 / 1e3
    yield Row("V2", "thousand numbers of cache a token", 34.6, numbers, 0.01, f"{V2_REPORT}, table 9")
    v32 = cache_bytes_per_token(config_of("deepseek-v3.2"), bytes_per_number=1) / 1e3
    yield Row("V3.2", "kB of cache a token, FP8", 48.068, v32, 1e-9, FLASH_MLA)


def _bubbles() -> Iterator[Row]:
    """PP devices, all stages alike: forward passes, gradients of inputs and of weights as long as each other."""
    devices, micro, forward, input_, weight = 8, 32, 1.0, 1.0, 1.0
    pair = forward + input_ + weight
    for schedule, name in (("1f1b", "1F1B"), ("zb1p", "ZB1P"), ("dualpipe", "DualPipe"), ("dualpipev", "DualPipeV")):
        stages = 2 * devices if schedule == "dualpipev" else devices
        times = StageTimes([forward] * stages, [input_] * stages, [weight] * stages)
        stated = bubble_formula(schedule, devices, forward, input_ + weight, weight, pair)
        ours = simulate(schedule, devices, micro, times).bubble_s
        yield Row(
            f"{name}, {devices} devices, {micro} micro-batches",
            "bubble, in forward passes",
            stated,
            ours,
            1e-6,
            DUALPIPE,
        )


def _serving() -> Iterator[Row]:
    config = config_of("deepseek-v3")
    # Section 2.3.2: 32 tokens to 9 experts, dispatch in FP8 and combine in bf16, on all of 50 GB/s.
    layer_s = Roofline(parse_machines("h800").device, "fp8").network_s(3 * 32 * 9 * 7000) * NETWORK_SHARE
    step_s, run = 2 * config.num_hidden_layers * layer_s, "V3 decoding, all-to-all alone"
    yield Row(run, "ms a token on InfiniBand", 14.76, 1e3 * step_s, 1e-3, INSIGHTS)
    yield Row(run, "tokens a second on InfiniBand", 67, 1 / step_s, 0.02, INSIGHTS)
    yield Row(run, "ms a token on 900 GB/s", 0.82, 1e3 * step_s * 50 / 900, 1e-2, INSIGHTS)
    # 20 to 22 tokens a second for a user, 4,989 tokens cached on the average; a node of 8 at $16 an hour.
    day = plan_serving(Service(config, prompt=4489, reply=1000, hits=0.563), parse_machines("1800xh800"), speed=21)
    idle = "its nights are idle"
    run, same = "DeepSeek's day of service", "the busy share is from the same day's costs"
    yield Row(run, "$ a million reply tokens", 0.300, day.chosen.usd_per_million or 0, 0.15, DAY, same)
    node = day.chosen.device_tokens_per_s * 8 * day.busy
    yield Row(run, "reply tokens a second and node", 14_800, node, 0.15, DAY, same)
    yield Row(run, "$ a million prompt tokens", 0.060, day.prefill_usd_per_million or 0, 0.35, DAY, idle)
    prompts = 16e6 / 3600 / (day.prefill_usd_per_million or 1)
    yield Row(run, "prompt tokens a second and node", 73_700, prompts, 0.35, DAY, idle)
    machines = parse_machines("144xh800")
    for model, position, prefill, decode, within in (
        ("V3", 1, 0.05, 0.07, 0.25),
        ("V3", 65536, 0.36, 1.1, 0.10),
        ("V3", 131072, 0.66, 2.15, 0.10),
        ("V3.2", 65536, 0.14, 0.20, 0.25),
        ("V3.2", 131072, 0.19, 0.25, 0.25),
    ):
        service, run = Service(config_of(f"deepseek-{model.lower()}")), f"{model} at {position:,} tokens"
        ours = (
            DOLLARS * prefill_s(service, machines, position, position),
            DOLLARS * decode_at_s(service, machines, position),
        )
        yield Row(run, "$ a million, prefill", prefill, ours[0], within, V32_REPORT)
        yield Row(run, "$ a million, decoding", decode, ours[1], within, V32_REPORT)


def _learning() -> Iterator[Row]:
    # 10,400 updates, 16 to a round of 8,192 replies, cut off at 32,768 tokens until update 8,200, at 65,536 after it.
    # In turn on all devices: models were swapped out of memory between sampling and training (R1, v2).
    machines, config = parse_machines("512xh800"), config_of("deepseek-v3")
    spread = "pp=16,ep=8,schedule=zbv,precision=fp8,recompute=full"

    def hours(steps: int, reply: int, longest: int) -> float:
        return ways(Learning(config, steps, 512, 16, 200, reply, longest), machines, parse_layout(spread))[0].hours

    zero = hours(8200, 8000, 32768) + hours(2200, 12000, 65536)
    assumed = "mean replies of 8,000 and 12,000 tokens assumed"
    yield Row("R1-Zero, 512 H800", "hours", 198, zero, 0.25, R1_REPORT, assumed)
    # Two epochs over 804,745 texts of 5,355 tokens on the average, as many tokens a step as 128 texts of 32,768.
    sft = plan(config, "512xh800", 2 * 804_745 * 5_355, layout=spread, batch=1024)
    whole = 512 * (zero + hours(1700, 12000, 32768)) + sft.device_hours + R1_DATA_HOURS
    note = f"{assumed}; R1's SFT and last 1,700 updates; its data as published; its first stage of RL not published"
    yield Row("R1 in all", "H800 hours", 147_000, whole, 0.30, R1_REPORT, note)
    yield Row("R1 in all", "$ at $2 an hour", 294_000, 2 * whole, 0.30, R1_REPORT, note)


def _short(value: float) -> str:
    if value >= 10_000:
        return f"{value:,.0f}"
    return f"{value:,.4g}" if value >= 1 else f"{value:.3g}"
