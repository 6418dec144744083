"""Fields: what a model card must say, who asks for it, and which of it a card does not say."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from leanseek.cost.carbon import format_grams, parse_grid
from leanseek.cost.energy import describe_meter
from leanseek.units import format_count, format_flops, format_percent, format_seconds, format_usd, format_watt_hours

NOT_RECORDED = "not recorded"
# Keys of a Hugging Face model card's front matter that a card must have.
METADATA = ("license", "language", "library_name", "pipeline_tag", "tags", "co2_eq_emissions", "model-index")
# Whose electricity is assumed where the recipe names no grid.
ASSUMED_GRID = "world"

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Field:
    """Something that a card must say.

    Args:
        name: as it stands in the card's table.
        asked: by which clause: "XI" is Regulation (EU) 2024/1689, Annex XI, section 1, "XII" its Annex XII, "A." a
            control of ISO/IEC 42001:2023, Annex A; "-" by none of these.
        value: (summary, recipe) -> what is to be said, "" where it is not known.
        hint: how it comes to be known.
    """

    name: str
    asked: str
    value: Callable[[Facts, Facts], str]
    hint: str = "finish the run: leanseek make"


def missing_fields(card: str) -> list[str]:
    """Return the names of what a card does not say: fields of its table, and keys of its front matter.

    Args:
        card: Markdown of a MODEL_CARD.md, as it was written or as somebody has edited it since.
    """
    front = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    keys = set(re.findall(r"^([A-Za-z_0-9-]+):", front[1], re.MULTILINE)) if front else set()
    rows = dict(re.findall(r"^\| ([^|]+?) \| (.*?) \| [^|]*\|$", card, re.MULTILINE))
    missing = [f"front matter: {key}" for key in METADATA if key not in keys]
    return missing + [field.name for field in FIELDS if rows.get(field.name, "").strip() in ("", NOT_RECORDED, "-")]


def hint_of(name: str) -> str:
    """Return how a missing field comes to be known."""
    return next((field.hint for field in FIELDS if field.name == name), "write the card anew: leanseek card RUN")


def fields_table(summary: Facts, recipe: Facts, escape: Callable[[Any], str]) -> list[list[str]]:
    """Return the rows of a card's table: name, value, clause."""
    return [[one.name, escape(one.value(summary, recipe)) or NOT_RECORDED, one.asked] for one in FIELDS]


def last_model(values: Facts) -> str | None:
    """Return the name of the last model that a task was measured on, in the order in which they were made."""
    names = list(values.get("interval") or ("base", "sft", "grpo"))
    return next((name for name in reversed(names) if values.get(name) is not None), None)


def carbon_of(summary: Facts, recipe: Facts) -> tuple[float, str] | None:
    """Return a run's grams of CO2 equivalent and whose electricity that is; None: its energy is not known."""
    joules = (summary.get("totals") or {}).get("joules")
    if joules is None:
        return None
    named = (recipe.get("cost") or {}).get("grid")
    grid = parse_grid(named or ASSUMED_GRID)
    assumed = "" if named else "; no grid was named (cost.grid), so the world's mean is taken"
    return grid.grams(joules), f"{grid.grams_per_kwh:g} g a kWh, {grid.name}: {grid.source}{assumed}"


def _architecture(summary: Facts, recipe: Facts) -> str:
    model = summary.get("model") or {}
    if not model.get("parameters"):
        return ""
    active = (
        f", {format_count(model['active_parameters'])} of them for a token" if model.get("active_parameters") else ""
    )
    shape = f"; {model['architecture']}" if model.get("architecture") else ""
    return f"{format_count(model['parameters'])} parameters{active}{shape}"


def _text_sizes(summary: Facts, recipe: Facts) -> str:
    context = (summary.get("model") or {}).get("context_tokens")
    return f"text in, text out; {context:,} tokens of context" if context else ""


def _made(summary: Facts, recipe: Facts) -> str:
    return str((summary.get("model") or {}).get("made") or "")


def _licence(summary: Facts, recipe: Facts) -> str:
    return str((recipe.get("card") or {}).get("license") or "")


def own_data(summary: Facts) -> list[dict[str, Any]]:
    """Return the files of the user's own that stages were fine-tuned on: name, SHA-256 and lines of each."""
    stages = [stage for stage in summary.values() if isinstance(stage, Mapping)]
    return [dict(stage["data"]) for stage in stages if isinstance(stage.get("data"), Mapping)]


def _data(summary: Facts, recipe: Facts) -> str:
    sources = (recipe.get("data") or {}).get("sources") or ()
    sources = sources or [text["source"] for text in (summary.get("tokenizer") or {}).get("texts") or ()]
    files = [*map(str, sources), *(str(own["file"]) for own in own_data(summary))]
    own = f"{', '.join(files)}, given by whoever made the model" if files else "made by seeded code"
    start = (recipe.get("grpo") or {}).get("start")
    before = f"; and whatever {start} was trained on, of which its own card tells" if start else ""
    tasks = ", ".join(recipe.get("environments") or ())
    return f"text {own}" + (f"; problems of {tasks}, made by seeded code" if tasks else "") + before


def _data_licence(summary: Facts, recipe: Facts) -> str:
    if (recipe.get("data") or {}).get("sources") or own_data(summary):
        return str((recipe.get("card") or {}).get("data_license") or "")
    if texts := (summary.get("tokenizer") or {}).get("texts"):
        told = sorted({str(text.get("license") or "") for text in texts})
        return str((recipe.get("card") or {}).get("data_license") or ("" if "" in told else ", ".join(told)))
    return "made by the program itself: nobody's rights, nobody's personal data"


def _quantity(summary: Facts, recipe: Facts) -> str:
    corpus, read = summary.get("tokenizer") or {}, summary.get("totals") or {}
    found = (
        f"{corpus['documents']:,} documents, {format_count(corpus['train_tokens'])} tokens"
        if corpus.get("documents")
        else ""
    )
    whole = f"{format_count(read['tokens'])} tokens read and sampled in all" if read.get("tokens") else ""
    return "; ".join(part for part in (found, whole) if part)


def _process(summary: Facts, recipe: Facts) -> str:
    done = {stage: part["steps"] for stage, part in summary.items() if isinstance(part, dict) and part.get("steps")}
    return ", ".join(f"{stage} {steps:,} steps" for stage, steps in done.items())


def _compute(summary: Facts, recipe: Facts) -> str:
    totals, machine = summary.get("totals") or {}, summary.get("machine") or {}
    if not totals.get("flops") or totals.get("seconds") is None:
        return ""
    on = machine.get("device") if machine.get("device") not in (None, "cpu") else machine.get("processor")
    return f"{format_flops(totals['flops'])}, {format_seconds(totals['seconds'])} on {on or 'one machine'}"


def _energy(summary: Facts, recipe: Facts) -> str:
    totals = summary.get("totals") or {}
    if totals.get("joules") is None:
        return ""
    return f"{format_watt_hours(totals['joules'])}: {describe_meter(str(totals.get('meter') or ''))}"


def _carbon(summary: Facts, recipe: Facts) -> str:
    found = carbon_of(summary, recipe)
    return f"{format_grams(found[0])} of CO2 equivalent at {found[1]}" if found else ""


def _money(summary: Facts, recipe: Facts) -> str:
    usd, price = (summary.get("totals") or {}).get("usd"), (recipe.get("cost") or {}).get("usd_per_hour")
    return f"{format_usd(usd)} at {format_usd(price)} an hour" if usd is not None and price is not None else ""


def _evaluations(summary: Facts, recipe: Facts) -> str:
    said = []
    for task, values in (summary.get("accuracy") or {}).items():
        stage = last_model(values)
        interval = (values.get("interval") or {}).get(stage)
        if stage is not None and interval:
            low, high = (100 * one for one in interval)
            said.append(f"{task} {format_percent(values[stage])} ({low:.1f}-{high:.1f}, {values.get('n')} problems)")
    return "; ".join(said)


def _contamination(summary: Facts, recipe: Facts) -> str:
    found = summary.get("contamination") or {}
    if found.get("problems") is None:
        return ""
    where = f"in {found['documents']:,} training texts"
    return (
        f"{found['found']:,} of {found['problems']:,} held-out problems {where}, by {found['words']} words in a row, "
        "or by all words of a shorter problem, which can be the beginning of a longer one"
    )


def _use(summary: Facts, recipe: Facts) -> str:
    tasks = ", ".join(recipe.get("environments") or ())
    return str((recipe.get("card") or {}).get("intended_use") or f"research and teaching; problems of {tasks}")


def _misuse(summary: Facts, recipe: Facts) -> str:
    return "no decisions about people; no advice; nothing where a wrong answer does harm"


def _risks(summary: Facts, recipe: Facts) -> str:
    return "it was not trained to refuse; it answers with confidence what it does not know; see Limits and risks"


def _software(summary: Facts, recipe: Facts) -> str:
    machine = summary.get("machine") or {}
    names = ("leanseek", "torch", "python")
    return ", ".join(f"{name} {machine[name]}" for name in names if machine.get(name))


def _integration(summary: Facts, recipe: Facts) -> str:
    return "a Hugging Face folder: leanseek serve, transformers; see Use"


def _digest(summary: Facts, recipe: Facts) -> str:
    digest = (summary.get("model") or {}).get("weights_sha256")
    return f"SHA-256 of the weights {digest}; see How to make it again, bit for bit" if digest else ""


FIELDS = (
    Field("intended use", "XI 1(a); XII 1(a); A.9.4", _use),
    Field("uses to keep from", "XI 1(b); XII 1(b); A.9.4", _misuse),
    Field("date", "XI 1(c); XII 1(c)", _made),
    Field("architecture and parameters", "XI 1(d); XII 1(f)", _architecture),
    Field("input and output", "XI 1(e); XII 1(g), 2(b)", _text_sizes),
    Field("licence", "XI 1(f); XII 1(h)", _licence, "name it: card.license in the recipe"),
    Field("integration", "XI 2(a); XII 1(d), 2(a); A.8.2", _integration),
    Field("software", "XII 1(e); A.4.5", _software),
    Field("training process", "XI 2(b); A.6.2.7", _process),
    Field("data: provenance", "XI 2(c); XII 2(c); A.7.5", _data),
    Field("data: licences", "XI 2(c); A.7.5", _data_licence, "name them: card.data_license in the recipe"),
    Field("data: amount", "XI 2(c); A.7.5", _quantity),
    Field("compute", "XI 2(d); A.4.5", _compute),
    Field("energy", "XI 2(e)", _energy),
    Field("carbon", "-", _carbon),
    Field("money", "-", _money),
    Field("evaluations", "A.6.2.4", _evaluations),
    Field("contamination check", "A.6.2.4", _contamination),
    Field("risks", "A.8.2", _risks),
    Field("reproduction", "A.6.2.7", _digest),
)
