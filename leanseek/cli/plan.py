"""leanseek plan: what training, reinforcement learning or serving would take, before it does."""

from __future__ import annotations

import json as json_format
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanseek.cli.columns import columns
from leanseek.cost.calibration import load_this, save_this
from leanseek.cost.carbon import Grid, format_grams, parse_grid
from leanseek.cost.energy import usable_cores
from leanseek.cost.hardware import Hardware, gpu_named, this_cpu
from leanseek.cost.layout import Layout, parse_layout
from leanseek.cost.learning import Learning, plan_learning
from leanseek.cost.learning_page import learning_page
from leanseek.cost.machines import Machines, parse_machines
from leanseek.cost.nearest import nearest_fit
from leanseek.cost.page import plan_page
from leanseek.cost.planner import best_plan, config_of, default_precision, work_of
from leanseek.cost.rates import Rates, load_rates, save_rates
from leanseek.cost.search import Loser
from leanseek.cost.service import Service
from leanseek.cost.serving import BUSY, plan_serving
from leanseek.cost.serving_page import serving_page
from leanseek.cost.step import Work
from leanseek.cost.summary import (
    Table,
    learning_tables,
    power_model,
    row_table,
    serving_tables,
    training_tables,
)
from leanseek.cost.training import TrainingPlan, plan_training
from leanseek.errors import UsageError
from leanseek.files import write_atomic
from leanseek.log import progress
from leanseek.model.config import ModelConfig
from leanseek.units import format_count, format_joules, format_percent, format_seconds, format_usd

# Recipes and their tasks take longer to import than a model's plan takes; it has no need of them.
if TYPE_CHECKING:
    from leanseek.forecast import StageForecast
    from leanseek.settings import Recipe

# Pages work out carbon for somebody's electricity: the world's, where nobody says.
USUAL_GRID = "world"
# Of a calibration's hundred parts those that products and memory take.
MEASURED = 15
METER = "by the power model of this machine's row in hardware.toml, not measured"


def plan(
    model: str | None = None,
    *,
    on: str | None = None,
    tokens: str | None = None,
    layout: str | None = None,
    best: bool = False,
    batch: int | None = None,
    length: int | None = None,
    price: str | None = None,
    grid: str | None = None,
    serve: bool = False,
    rl: bool = False,
    prompt: int | None = None,
    reply: int | None = None,
    hits: float = 0.0,
    speed: float | None = None,
    busy: float = BUSY,
    prefill_ep: int | None = None,
    decode_ep: int | None = None,
    accepted: float = 0.0,
    steps: int = 1000,
    outputs: int = 512,
    updates: int = 1,
    longest: int = 32768,
    json: bool = False,
    calibrate: bool = False,
    html: Path | None = None,
) -> None:
    """Say what training, reinforcement learning or serving would take: time, energy, money, memory.

    Everything is computed from the model's shape and the hardware's figures; docs/guides/cost.md says how, and how far
    it was off on runs whose cost is known.

    A recipe by itself, as in leanseek plan laptop, is planned stage by stage for this machine, once
    leanseek plan --calibrate has measured it; one for GPUs, as in leanseek plan v3-671b-2048xh800, has its pretraining
    planned for those of its cost.hardware, laid out as it says.

    Example: leanseek plan deepseek-v3 --on 2048xh800 --tokens 14.8T --best

    Args:
        model: Name of a shape from leanseek models, a run folder, a model folder, or a config.json; or a recipe.
        on: Machines, such as 2048xh800 or 2xvirtual-cpu (cores); this: the machine that was calibrated.
        tokens: Training: tokens in all, such as 14.8T.
        layout: Training: how a step is spread, such as pp=16,ep=64,schedule=dualpipe; left out: the best is searched.
        best: Training: also say why the best of the other layouts lose.
        batch: Training: texts of a step; left out: 7.5 for each device.
        length: Training: tokens of a text; left out: 4096.
        price: Of one GPU (one core) and hour, such as $2/h; left out: the hardware table's.
        grid: Whose electricity it is: a name such as france, or grams of CO2 for a kilowatt-hour.
        serve: Plan serving: what a million tokens cost, against the speed of a reply.
        rl: Plan reinforcement learning: rollouts and training.
        prompt: Serving and RL: tokens of a prompt; left out: 4096, and 512 in RL.
        reply: Serving and RL: tokens of a reply on the average; left out: 1024, and 4096 in RL.
        hits: Serving: share of prompt tokens that are in the cache already.
        speed: Serving: tokens a second that a reply shall have; left out: the cheapest way.
        busy: Serving: share of the time that devices work as planned.
        prefill_ep: Serving: devices that share the experts while prompts are read; up to 32.
        decode_ep: Serving and RL: devices that share the experts while replies are written; up to 144, or 32.
        accepted: Serving and RL: share of the MTP layer's drafts that are right; 0: none are made.
        steps: RL: updates.
        outputs: RL: replies of an update.
        updates: RL: updates on replies that were sampled together.
        longest: RL: tokens at which a reply is cut off.
        json: Print as JSON.
        html: Also draw the plan as a page that needs no network, with sliders, in this file.
        calibrate: Measure this machine in about ten seconds, for --on this.
    """
    if calibrate:
        with progress(100, "measuring this machine, per cent") as bar:
            row = measure()
            bar.advance(MEASURED)
            rates = measured_rates(lambda share: bar.advance(round(MEASURED + (100 - MEASURED) * share) - bar.done))
        save_rates(rates)
        print(_page(f"kept in {save_this(row)}", [row_table(row), _rates_table(rates)]))
        return
    if model is not None and on is None and not (tokens or serve or rl) and (recipe := _recipe(model)) is not None:
        from leanseek.assignment import assignment

        whose = parse_grid(grid) if grid is not None else None
        if (asked := assignment(recipe)) is not None and recipe.device != "cpu":
            spread = _layout(layout, asked.layout.precision) or asked.layout
            precision = spread.precision
            _plan_training(recipe.name, asked.work, asked.machines, spread, precision, best, html, json, whose)
            return
        if html is not None or best or layout is not None:
            raise UsageError(
                f"recipe {recipe.name} is planned stage by stage for this machine's processor; --html, --best and "
                "--layout go with --on and --tokens, or with a recipe whose cost.hardware is a GPU"
            )
        _plan_recipe(recipe, whose, json)
        return
    if model is None or on is None or (serve and rl):
        raise UsageError(
            "a model and machines are needed, and one of --tokens, --serve and --rl, as in: "
            "leanseek plan deepseek-v3 --on 2048xh800 --tokens 14.8T"
        )
    machines, config = parse_machines(on, price, load_this()), config_of(_folder(model))
    whose = parse_grid(grid) if grid is not None else None
    precision = default_precision(machines)
    if serve:
        found = plan_serving(
            Service(
                config,
                prompt or 4096,
                reply or 1024,
                hits,
                _shared_by(prefill_ep, 32, config, machines, "prefill"),
                _shared_by(decode_ep, 144, config, machines, "decode"),
                precision,
                accepted,
            ),
            machines,
            speed,
            busy,
        )
        _draw(html, serving_page, f"{model}, served on {machines.asked}", found, whose)
        each = {"prefill": found.prefill_joules_per_token, "chosen": found.chosen.joules_per_token}
        carbon: dict[str, Any] = {}
        if whose is not None:
            carbon = {f"{name}_carbon_g_per_million": whose.grams(1e6 * joules) for name, joules in each.items()}
            carbon["grid"] = whose.name
        values = {**found.as_dict(), "meter": power_model(machines.device), **carbon}
        print(_as_json(values, None, None) if json else _page(model, serving_tables(found, whose)))
        return
    if rl:
        task = Learning(
            config,
            steps,
            outputs,
            updates,
            prompt or 512,
            reply or 4096,
            longest,
            decode_ep=decode_ep or 32,
            precision=precision,
            accepted=accepted,
        )
        learnt = plan_learning(task, machines, _layout(layout, precision))
        _draw(html, learning_page, f"{model}, reinforced on {machines.asked}", learnt, whose)
        page = _page(model, learning_tables(learnt, whose))
        values = {**learnt.as_dict(), "meter": power_model(machines.device)}
        print(_as_json(values, whose, learnt.joules) if json else page)
        return
    if tokens is None:
        raise UsageError("--tokens is needed to plan training, such as --tokens 14.8T; or give --serve or --rl")
    work = work_of(config, tokens, machines, batch, length)
    _plan_training(model, work, machines, _layout(layout, precision), precision, best, html, json, whose)


def _plan_training(
    model: str,
    work: Work,
    machines: Machines,
    spread: Layout | None,
    precision: str,
    best: bool,
    html: Path | None,
    json: bool,
    whose: Grid | None,
) -> None:
    """Plan training in a layout, or in the best that is found."""
    losers: list[Loser] = []
    if spread is None or best:
        chosen, losers = best_plan(work, machines, precision)
        if spread is not None:
            asked = plan_training(work, machines, spread)
            # What was asked for is told; the best there is stands first among the others.
            losers = [one for one in losers if one.plan.layout != asked.layout]
            if chosen.layout != asked.layout:
                losers.insert(0, Loser(chosen, "the best that was found"))
            chosen = asked
    else:
        chosen = plan_training(work, machines, spread)
    nearest = None if chosen.fits else nearest_fit(chosen)
    _draw(html, plan_page, f"{model} on {machines.asked}", chosen, whose)
    if json:
        others = [{"layout": one.plan.layout.text, "step_s": one.plan.step_s, "why": one.why} for one in losers]
        values = {"model": model, **chosen.as_dict(), "meter": power_model(machines.device), "others": others}
        print(_as_json({**values, **_near(nearest)}, whose, chosen.joules))
        return
    tables = training_tables(chosen, losers if best else [], whose)
    if not chosen.fits:
        said = "none is near; leave --layout out to have one searched"
        if nearest is not None:
            said = f"{nearest.layout.text}, {format_seconds(nearest.step_s)} a step"
        tables.insert(1, Table([("nearest that fits", said)]))
    print(_page(model, tables))


def _draw(
    html: Path | None, page: Callable[[str, Any, Grid], str], title: str, found: object, grid: Grid | None
) -> None:
    """Draw a plan as a page, if one is wanted."""
    if html is not None:
        write_atomic(html, page(title, found, grid or parse_grid(USUAL_GRID)))


def _near(nearest: TrainingPlan | None) -> dict[str, Any]:
    return {} if nearest is None else {"nearest_that_fits": {"layout": nearest.layout.text, "step_s": nearest.step_s}}


def measured_rates(on_progress: Callable[[float], None]) -> Rates:
    """Measure how fast this machine trains and samples a small model on its processor."""
    from leanseek.speed import measure_rates

    return measure_rates(on_progress=on_progress)


def measure(clock: Callable[[], float] = time.perf_counter, seconds: float = 0.15) -> Hardware:
    """Measure how fast this machine multiplies matrices and reads memory.

    Args:
        clock: seconds.
        seconds: spent on each of the three measurements.
    """
    import psutil
    import torch

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")

    def rate(work: Callable[[], object], amount: float) -> float:
        work()
        best, end = 0.0, clock() + seconds
        while clock() < end:
            start = clock()
            work()
            if cuda:
                torch.cuda.synchronize()
            best = max(best, amount / (clock() - start))
        return best

    flops = {}
    for kind in (torch.float32, torch.bfloat16):
        side = 8192 if cuda else 1024
        a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
        flops[kind] = rate(lambda a=a, b=b: a @ b, 2.0 * side**3)  # type: ignore[misc]
    block = torch.ones(2**26, device=device)  # 256 MiB: more than caches hold
    moved = rate(block.sum, 4.0 * block.numel())
    known = gpu_named(torch.cuda.get_device_name()) if cuda else this_cpu()
    units = 1 if cuda else min(torch.get_num_threads(), usable_cores())
    source = f"measured on this machine with torch {torch.__version__}, {time.strftime('%B %Y')}"
    memory = torch.cuda.get_device_properties(0).total_memory if cuda else psutil.virtual_memory().total
    return Hardware(
        name="this",
        title=torch.cuda.get_device_name() if cuda else f"this machine ({units} of {os.cpu_count()} cores)",
        kind="gpu" if cuda else "cpu",
        bf16_flops=flops[torch.bfloat16],
        fp32_flops=flops[torch.float32],
        memory_bytes=float(memory),
        memory_bytes_per_s=moved,
        watts=known.watts * units,
        idle_watts=known.idle_watts * units,
        usd_per_hour=known.usd_per_hour,
        sources={key: source for key in ("bf16_flops", "fp32_flops", "memory_bytes_per_s", "memory_bytes")}
        | {"watts": f"as {known.name}: {known.sources['watts']}"},
        measured=True,
    )


def _recipe(name: str) -> Recipe | None:
    """Return the recipe that a name, a .toml file or a run folder stands for; None: it is none of those."""
    from leanseek.run import Run
    from leanseek.settings import load_recipe, recipe_names

    path = Path(name)
    if path.is_dir() and Run.is_run(path):
        return Run.open(path).recipe
    return load_recipe(name) if name in recipe_names() or path.suffix == ".toml" else None


def _plan_recipe(recipe: Recipe, whose: Grid | None, json: bool) -> None:
    from leanseek.forecast import HALVED_STEPS, WRONG, as_summary, forecast

    rates = load_rates()
    if rates is None:
        raise UsageError("this machine has not been measured yet; run: leanseek plan --calibrate")
    stages = forecast(recipe, rates)
    totals = {key: sum(getattr(one, key) for one in stages) for key in ("seconds", "tokens", "joules", "usd")}
    if json:
        values = {"kind": "recipe", "recipe": recipe.name, "meter": METER, "stages": as_summary(stages)}
        print(_as_json({**values, "totals": totals}, whose, totals["joules"]))
        return
    rows: list[tuple[str, ...]] = [("stage", "time", "tokens", "energy", "J a token", "money")]
    rows += [(one.stage, *_stage_cells(one.seconds, one.tokens, one.joules, one.usd)) for one in stages]
    rows.append(("all", *_stage_cells(**totals)))
    where = [("of a stage", ""), *((one.stage, _shares(one)) for one in stages)]
    notes = [
        (f"energy: {rates.watts:g} W, {METER}",),
        (f"GRPO: {WRONG:.0%} of the first replies are taken to be wrong, half as many after {HALVED_STEPS:g} steps",),
        ("replies are taken to be as long as worked solutions",),
    ]
    if whose is not None:
        grams = format_grams(whose.grams(totals["joules"]))
        notes.append((f"carbon: {grams} at {whose.grams_per_kwh:g} g a kWh ({whose.name})",))
    print(_page(f"recipe {recipe.name} on this machine", [Table(rows, range(1, 6)), Table(where), Table(notes)]))


def _shares(stage: StageForecast) -> str:
    parts = sorted(stage.parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {format_percent(seconds / stage.seconds)}" for name, seconds in parts if seconds)


def _stage_cells(seconds: float, tokens: float, joules: float, usd: float) -> tuple[str, ...]:
    each = format_joules(joules / tokens) if tokens else "-"
    return format_seconds(seconds), format_count(tokens), format_joules(joules), each, format_usd(usd)


def _rates_table(rates: Rates) -> Table:
    one = rates.engine

    def part(layer_s: float, flops_per_s: float) -> str:
        return f"{layer_s * 1e3:.2g} ms a layer and step, {flops_per_s / 1e9:.3g} GFLOP/s beyond"

    return Table(
        [
            ("training, small model", part(rates.layer_step_s, rates.train_flops_per_s)),
            ("prompts", part(one.layer_read_s, one.read_flops_per_s)),
            ("decoding", part(one.layer_decode_s, one.decode[-1].flops_per_s)),
            (
                "engines side by side",
                f"{rates.workers}: {rates.read_gain:.2f} x prompts, {rates.decode_gain:.2f} x replies",
            ),
            (
                "a problem, a check",
                f"{rates.problem_s * 1e6:.0f} and {rates.reply_s * 1e6:.0f} microseconds, and "
                f"{rates.reply_token_s * 1e6:.1f} a token",
            ),
            ("corpus", f"{rates.encode_documents_per_s:,.0f} documents a second"),
        ]
    )


def _folder(model: str) -> str:
    """Return the folder of a run's newest checkpoint; anything else as it is."""
    if not (path := Path(model)).is_dir():
        return model
    from leanseek.run import Run, model_folder

    return str(model_folder(path)) if Run.is_run(path) else model


def _layout(text: str | None, precision: str) -> Layout | None:
    return None if text is None else parse_layout(text, Layout(precision=precision))


def _shared_by(ep: int | None, usual: int, config: ModelConfig, machines: Machines, what: str) -> int:
    most = min(machines.count, config.n_routed_experts or 1)
    if ep is not None and not 1 <= ep <= most:
        raise UsageError(f"--{what}-ep {ep}: from 1 to {most} devices can share experts here; give more machines")
    return ep or min(usual, most)


def _as_json(values: Mapping[str, Any], grid: Grid | None, joules: float | None) -> str:
    carbon = {"carbon_g": grid.grams(joules), "grid": grid.name} if grid is not None and joules is not None else {}
    return json_format.dumps({**values, **carbon}, indent=2, ensure_ascii=False)


def _page(title: str, tables: Sequence[Table]) -> str:
    first, *others = (columns(table.rows, right=table.right) for table in tables)
    return "\n\n".join([f"{title}\n{first}", *others])
