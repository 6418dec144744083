"""Model card: what a model is, how it was made, what it can, what it cost and how to use it, as Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from leanseek.cost.energy import describe_meter
from leanseek.cost.fields import carbon_of, fields_table, last_model, own_data
from leanseek.units import (
    format_bytes,
    format_count,
    format_flops,
    format_joules,
    format_percent,
    format_seconds,
    format_usd,
    format_watt_hours,
)

STAGE_TITLES = {
    "tokenizer": "Tokenizer",
    "pretrain": "Pretraining",
    "sft": "SFT (cold start)",
    "grpo": "GRPO (reinforcement learning)",
    "eval": "Evaluation",
}
# Models that are compared, in the order in which they are made.
COMPARED = {"base": "pretrained", "sft": "after SFT", "grpo": "after GRPO"}
# What a stage of a recipe's own line does, by its kind.
KIND_TITLES = {
    "sft": "SFT",
    "grpo": "GRPO",
    "traces": "replies drawn and kept",
    "distill": "distillation",
    "dpo": "DPO",
    "extend": "longer context",
}
NOTHING = "-"
# A licence that YAML reads as it stands.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9.+-]*")

FRONT_MATTER = """---
license: {license}
language: en
library_name: transformers
pipeline_tag: text-generation
tags:
- leanseek
- grpo
- reasoning
{origin}{figures}---"""
# Of models made from nothing; what a run that starts from another's folder is like is for that folder to say.
OWN_TAGS = "- deepseek_v3\n- mixture-of-experts\n- trained-from-scratch\n"


def stage_titles(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Return the stages that a recipe's run is made of, in order, with what to call them.

    Args:
        recipe: the resolved settings, `recipe.model_dump()`.
    """
    own = recipe.get("stages") or {}
    if not own:
        return STAGE_TITLES
    titles = {name: STAGE_TITLES[name] for name in ("tokenizer", "pretrain")}
    for name, stage in own.items():
        kind = stage.get("kind") or name
        titles[name] = STAGE_TITLES[kind] if name in STAGE_TITLES else f"{spoken(name)} ({KIND_TITLES[kind]})"
    return titles | {"eval": STAGE_TITLES["eval"]}


def compared(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Return the models of a run that are compared, by the names of their figures, in the order they are made.

    Args:
        recipe: as of `stage_titles`.
    """
    own = {name: stage.get("kind") or name for name, stage in (recipe.get("stages") or {}).items()}
    if not own:
        return COMPARED
    models = {name: COMPARED.get(name, f"after {name.replace('_', ' ')}") for name, k in own.items() if k != "traces"}
    return {"base": COMPARED["base"], **models}


def spoken(name: str) -> str:
    """Return a stage's name as a title begins."""
    return name.replace("_", " ").capitalize()


def model_card(summary: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """Write the MODEL_CARD.md of a run, finished or not: what is not known yet is left out.

    Args:
        summary: what summary.json holds.
        recipe: the resolved settings, `recipe.model_dump()`.
    Returns:
        Markdown with a Hugging Face front matter.
    """
    sections = (
        f"# {_text(recipe.get('name') or 'leanseek model')}",
        _what_it_is(summary, recipe),
        _what_it_can(summary, compared(recipe)),
        _how_it_was_made(summary, recipe),
        _data(summary, recipe),
        _cost(summary, recipe),
        _limits(summary),
        USE,
        _again(summary, recipe),
        "## What documentation has to say\n\n"
        + _table([["field", "value", "asked for by"], *fields_table(summary, recipe, _text)])
        + "\n\nXI, XII: Regulation (EU) 2024/1689 (the AI Act), Annex XI section 1 and Annex XII. A.: ISO/IEC "
        "42001:2023, Annex A. The table follows their terms; it is no statement of conformity.",
    )
    started = (recipe.get("grpo") or {}).get("start")
    license_ = str((recipe.get("card") or {}).get("license") or "other")
    front = FRONT_MATTER.format(
        license=json.dumps(license_) if not _PLAIN.fullmatch(license_) else license_,
        origin="" if started else OWN_TAGS,
        figures=_metadata(summary, recipe),
    )
    return front + "\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _metadata(summary: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """Return the front matter's carbon and results, as Hugging Face reads them."""
    lines = []
    if (carbon := carbon_of(summary, recipe)) is not None:
        lines += ["co2_eq_emissions:", f"  emissions: {carbon[0]:.6g}", f"  source: {json.dumps(carbon[1])}"]
        lines.append("  training_type: pre-training")
        if on := (summary.get("machine") or {}).get("processor"):
            lines.append(f"  hardware_used: {json.dumps(str(on))}")
    results = []
    for task, values in (summary.get("accuracy") or {}).items():
        stage = last_model(values)
        if stage is not None:
            results += ["  - task:", "      type: text-generation", "    dataset:", f"      name: {json.dumps(task)}"]
            results += [f"      type: {json.dumps(task)}", "    metrics:", "    - type: accuracy"]
            results.append(f"      value: {values[stage]:.6g}")
    if results:
        name = json.dumps(str(recipe.get("name") or "leanseek model"))
        lines += ["model-index:", f"- name: {name}", "  results:", *results]
    return "".join(f"{line}\n" for line in lines)


def _again(summary: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    machine, model = summary.get("machine") or {}, summary.get("model") or {}
    version = f"=={machine['leanseek']}" if machine.get("leanseek") else ""
    commit = f" (commit {machine['commit']})" if machine.get("commit") else ""
    torch = f"=={str(machine['torch']).partition('+')[0]}" if machine.get("torch") else ""
    threads = recipe.get("threads") or machine.get("cores") or 1
    stated = f" They must give the SHA-256 `{model['weights_sha256']}`." if model.get("weights_sha256") else ""
    budget = [one for one in ("pretrain", "sft", "grpo") if (recipe.get(one) or {}).get("minutes")]
    timed = f" {', '.join(budget)} had a budget of minutes: give its number of steps instead." if budget else ""
    return (
        "## How to make it again, bit for bit\n\n"
        f"With leanseek{version}{commit}, torch{torch} and Python {machine.get('python') or '3'}, on a processor of "
        f"the same kind ({_text(machine.get('processor') or 'not recorded')}), with the same number of threads:\n\n"
        f"```\nleanseek make FOLDER/recipe.toml --run again --threads {threads} --fresh\n"
        "sha256sum again/checkpoints/*/model*.safetensors\n```\n\n"
        "All data, weights and samples follow from the seed in `recipe.toml`. Another processor, another torch or "
        f"another number of threads sums in another order: figures agree then, bits do not.{timed}{stated}"
    )


def share_with_interval(share: float | None, interval: Sequence[float] | None = None) -> str:
    """Return an accuracy as "62.3% (58.0-66.4)", or "-" where there is none."""
    if share is None:
        return NOTHING
    if not interval:
        return format_percent(share)
    return f"{format_percent(share)} ({100 * interval[0]:.1f}-{100 * interval[1]:.1f})"


def _what_it_is(summary: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    model = summary.get("model", {})
    size = ""
    if model.get("parameters"):
        active = model.get("active_parameters")
        size = f" of {format_count(model['parameters'])} parameters"
        size += f", of which a token uses {format_count(active)}" if active else ""
    machine = summary.get("machine", {})
    made_on = ""
    if machine.get("processor"):
        cores = f", {machine['cores']} cores" if machine.get("cores") else ""
        made_on = f" It was made on one machine ({_text(machine['processor'])}{cores})."
    if started := (recipe.get("grpo") or {}).get("start"):
        shape = f" ({_text(model['architecture'])})" if model.get("architecture") else ""
        own = stage_titles(recipe) if recipe.get("stages") else STAGE_TITLES
        done = [own[stage] for stage in own if stage != "eval" and (summary.get(stage) or {}).get("done")]
        further = f" by {', '.join(done)}" if done else ""
        return f"A language model{shape}{size}, trained further{further} with leanseek from {_text(started)}.{made_on}"
    return (
        f"A language model of the DeepSeek-V3 architecture{size}, made from nothing by leanseek: corpus, tokenizer, "
        "pretraining, supervised fine-tuning on worked solutions, and reinforcement learning with verifiable "
        f"rewards (GRPO). It thinks between `<think>` and `</think>`, then answers.{made_on}"
    )


def _what_it_can(summary: Mapping[str, Any], models: Mapping[str, str]) -> str:
    accuracy: Mapping[str, Any] = summary.get("accuracy") or {}
    if not accuracy:
        return "## What it can\n\nIt has not been evaluated yet."
    stages = [stage for stage in models if any(stage in values for values in accuracy.values())]
    rows = [["task", *(models[stage] for stage in stages), "problems"]]
    for environment, values in accuracy.items():
        intervals = values.get("interval") or {}
        cells = [share_with_interval(values.get(stage), intervals.get(stage)) for stage in stages]
        rows.append([_text(environment), *cells, str(values.get("n", NOTHING))])
    parts = [
        "## What it can",
        "Share of held-out problems answered right (greedy decoding; 95% intervals in brackets). These "
        "problems are in no training stage.",
        _table(rows),
    ]
    last = stages[-1] if stages else "grpo"
    further = []
    for environment, values in accuracy.items():
        passes = (values.get("pass_at_k") or {}).get(last) or {}
        shown = [f"pass@{k} {format_percent(share)}" for k, share in passes.items() if share is not None]
        sound = (values.get("sound") or {}).get(last)
        if sound is not None:
            shown.append(f"thinking that is right line by line in {format_percent(sound)} of the right answers")
        if shown:
            further.append(f"- {_text(environment)}, {models[last]}: {', '.join(shown)}")
    if further:
        parts.append("\n".join(further))
    figures = _figures(summary)
    if figures:
        parts.append("\n".join(f"- {line}" for line in figures))
    return "\n\n".join(parts)


def _figures(summary: Mapping[str, Any]) -> list[str]:
    lines = []
    pretrain = summary.get("pretrain", {})
    if pretrain.get("bits_per_byte") is not None:
        lines.append(f"validation text: {pretrain['bits_per_byte']:.3f} bits per byte")
    acceptance = summary.get("mtp", {}).get("acceptance")
    if acceptance is not None:
        lines.append(f"tokens drafted by the MTP layer that are accepted: {format_percent(acceptance)}")
    return lines


def _how_it_was_made(summary: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    lines = []
    own = recipe.get("stages") or {}
    for stage, title in stage_titles(recipe).items():
        kind = (own.get(stage) or {}).get("kind") or stage
        done, settings = summary.get(stage, {}), {**(recipe.get(kind) or {}), **(own.get(stage) or {})}
        facts = []
        if done.get("steps"):
            facts.append(f"{done['steps']:,} steps")
        if done.get("tokens"):
            facts.append(f"{format_count(done['tokens'])} tokens")
        optimiser = settings.get("optimiser") or {}
        if optimiser:
            facts.append(f"{optimiser.get('name')} at {optimiser.get('lr')}")
        vocabulary = done.get("vocab_size") or settings.get("vocab_size")
        if stage == "tokenizer":
            facts.append("byte-level BPE" + (f" of {vocabulary:,} tokens" if vocabulary else ""))
        if done.get("kept"):
            facts.append(f"{done['kept']:,} replies kept of {done['replies']:,} to {done['problems']:,} problems")
        if kind == "grpo" and settings:
            facts.append(f"{settings.get('prompts_per_step')} problems x {settings.get('samples_per_prompt')} samples")
        if stage in summary or settings:
            state = "" if done.get("done") else " (not finished)"
            lines.append(f"- **{title}**{state}{': ' if facts else ''}{', '.join(facts)}")
    if not lines:
        return ""
    seed = f" Seed {recipe['seed']}; the settings are in `recipe.toml`." if "seed" in recipe else ""
    return "## How it was made\n\n" + "\n".join(lines) + (f"\n\n{seed.strip()}" if seed else "")


def _data(summary: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    sources = (recipe.get("data") or {}).get("sources") or ()
    environments = ", ".join(_text(name) for name in recipe.get("environments") or ())
    if started := (recipe.get("grpo") or {}).get("start"):
        corpus = f"What {_text(started)} was trained on, its own card tells."
    elif sources:
        corpus = f"Pretraining text: {', '.join(_text(source) for source in sources)}, given by whoever made the model."
    elif texts := (summary.get("tokenizer") or {}).get("texts"):
        lines = [f"- {_text(text['source'])}: {_text(text.get('license') or 'licence not told')}" for text in texts]
        hashes = [f", SHA-256 {text['sha256']}" if text.get("sha256") else "" for text in texts]
        corpus = (
            "Pretraining text, read on disk:\n\n" + "\n".join(map("".join, zip(lines, hashes, strict=True))) + "\n\n"
        )
    else:
        corpus = (
            "Pretraining text: generated by leanseek's own seeded code; nothing was downloaded, nothing is personal."
        )
    tasks = f" SFT and GRPO use generated problems of {environments}." if environments else ""
    taught = [line for stage in summary.values() if isinstance(stage, Mapping) for line in _taught(stage)]
    given = [
        f"Fine-tuned on {_text(own['file'])}, given by whoever made the model: {own['lines']:,} lines, SHA-256 "
        f"`{own['sha256']}`."
        for own in own_data(summary)
    ]
    return "\n\n".join([f"## Data\n\n{corpus}{tasks}", *given, *taught])


def _taught(stage: Mapping[str, Any]) -> list[str]:
    """Say of each server that taught or judged who it was, and under which terms."""
    lines = []
    if isinstance(judge := stage.get("judge"), Mapping):
        lines.append(
            f"{_text(judge.get('model'))} at {_text(judge.get('url'))} graded right replies by these wishes: "
            f"{_text(judge.get('wishes'))}"
        )
    for one in stage.get("provenance") or ():
        if one.get("teacher") == "server":
            lines.append(
                f"Replies of {_text(one.get('model'))} at {_text(one.get('url'))} were learnt from, drawn on "
                f"{_text(one.get('date'))} at temperature {one.get('temperature')}, at most "
                f"{one.get('max_new_tokens')} tokens each. Licence: {_text(one.get('licence'))}."
            )
    return lines


def _cost(summary: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    totals = summary.get("totals") or {}
    titles = stage_titles(recipe)
    staged = {stage: summary[stage] for stage in titles if summary.get(stage, {}).get("seconds") is not None}
    if not totals and not staged:
        return ""
    rows = [["stage", "time", "tokens", "compute", "energy", "money", "peak memory"]]
    rows += [[titles[stage], *_cost_cells(values)] for stage, values in staged.items()]
    if totals:
        rows.append(["**all**", *_cost_cells(totals)])
    parts = ["## What it cost", _table(rows)]
    price = (recipe.get("cost") or {}).get("usd_per_hour")
    notes = []
    if totals.get("joules") is not None:
        meter = describe_meter(str(totals.get("meter") or ""))
        notes.append(f"Energy ({format_watt_hours(totals['joules'])} in all): {meter}.")
    if price is not None:
        notes.append(f"Money: {format_usd(price)} for an hour of the machine.")
    notes.append("Compute is counted by formula: the matrix products of the model, two operations a multiply-add.")
    parts.append(" ".join(notes))
    return "\n\n".join(parts)


def _cost_cells(values: Mapping[str, Any]) -> list[str]:
    shown = (
        ("seconds", format_seconds),
        ("tokens", format_count),
        ("flops", format_flops),
        ("joules", format_joules),
        ("usd", format_usd),
        ("peak_memory_bytes", format_bytes),
    )
    return [NOTHING if not values.get(key) else show(values[key]) for key, show in shown]


def _limits(summary: Mapping[str, Any]) -> str:
    parameters = summary.get("model", {}).get("parameters")
    size = f"With {format_count(parameters)} parameters it" if parameters else "It"
    return (
        "## Limits and risks\n\n"
        f"- {size} knows the tasks that it was trained on, in the wording that it was trained on; it is not an "
        "assistant, and knows nothing of the world beyond its corpus.\n"
        "- A right answer does not prove right thinking: the table says how often both hold.\n"
        "- It was not trained to refuse anything and must not decide anything about people."
    )


USE = """\
## Use

```
leanseek chat FOLDER      # in the terminal, the thinking dimmed
leanseek serve FOLDER     # OpenAI-compatible: POST /v1/chat/completions
```

`FOLDER` is the run folder or a checkpoint in it. The checkpoint is a Hugging Face folder of architecture
`DeepseekV3ForCausalLM`, so transformers loads it too:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER")
```"""


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in body]
    return "\n".join(lines)


def _text(value: Any) -> str:
    """Return a name on one line, with nothing in it that Markdown or HTML would act on."""
    text = " ".join(str(value).split())
    return "".join(f"\\{c}" if c in "\\`*[]|<>#" else c for c in text)
