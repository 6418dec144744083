"""R1's line and R1-Zero's, made small: every stage starts where it should, and learns from what it should."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import leanseek.rl.collect as collect
from leanseek import stages
from leanseek.checkpoint.directory import load_model, save_model
from leanseek.cli.make import tell
from leanseek.cost.ledger import Charge
from leanseek.data.conversations import Conversations
from leanseek.engine.request import Output
from leanseek.envs.environment import demonstrate, load_environment
from leanseek.evals.attempts import Attempt, attempt
from leanseek.log import RunLog
from leanseek.messages import Message
from leanseek.run import Run
from leanseek.sections.distillation import TracesSettings
from leanseek.settings import load_recipe
from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.tokenizer import Tokenizer
from leanseek.train.stage import Stage

SMALL = {
    **{"data.documents": 300, "data.sequence_tokens": 48, "data.validation_fraction": 0.1, "threads": 1},
    **{"pretrain.steps": 6, "pretrain.batch_sequences": 4, "sft.development_problems": 2, "sft.batch_sequences": 6},
    **{"grpo.prompts_per_step": 4, "grpo.samples_per_prompt": 4, "grpo.max_new_tokens": 12},
    **{"grpo.development_problems": 2, "eval.problems": 6, "eval.samples": 2, "eval.max_new_tokens": 12},
}


@pytest.fixture
def made(tmp_path, tiny_config, monkeypatch):
    """Return a function that makes a recipe's run with a model of no size."""
    monkeypatch.setattr(stages, "share_out", lambda threads, device: 1)

    def make(name: str, **changes: object) -> Run:
        (tmp_path / "config.json").write_text(json.dumps(tiny_config.to_dict()))
        values = (
            SMALL | {"model": str(tmp_path / "config.json")} | {k.replace("__", "."): v for k, v in changes.items()}
        )
        return Run.create(tmp_path / name, load_recipe(name, values))

    return make


def always_right(monkeypatch) -> None:
    """Have every reply be well formed and right, so that there is something to keep of a model with random weights."""

    def lucky(*arguments, **options):
        return [
            replace(
                one,
                reply=Message("assistant", str(one.problem.data["answer"]), str(number)),
                output=replace(one.output, finish_reason="stop"),
                correct=True,
                formed=True,
            )
            for number, one in enumerate(attempt(*arguments, **options))
        ]

    monkeypatch.setattr(collect, "attempt", lucky)


def test_the_four_stages_are_made_one_after_the_other(made, monkeypatch, capsys):
    names = ("cold_start", "reasoning", "second_sft", "mixed", "preferred")
    few = {f"stages__{name}__steps": 2 for name in names} | {"stages__cold_start__traces_per_environment": 10}
    few |= {"stages__rejection__sound": False}  # no random weights think
    run = made("r1-laptop", stages__rejection__problems=6, stages__rejection__max_new_tokens=12, **few)
    tell(stages.dry_run(run.recipe), json=False)
    assert "rejection (traces, by reasoning), second_sft (sft, 2 steps, from pretrain)" in capsys.readouterr().out
    always_right(monkeypatch)
    stages.make(run)
    summary = run.summary
    assert all(summary[name]["done"] for name in run.recipe.line)
    charged = [json.loads(line)["stage"] for line in run.ledger_path.read_text().splitlines()]
    assert charged == list(run.recipe.line) and summary["rejection"]["flops"] > 0
    figures = summary["accuracy"]["largest"]
    assert set(names) | {"base"} <= figures.keys() and "rejection" not in figures
    kept = Conversations(run.traces_path("rejection"))
    assert summary["rejection"]["kept"] == len(kept.kept()) == 18 == summary["second_sft"]["traces"]
    assert [one["model"] for one in kept.provenance()] == ["reasoning-2"]
    assert {message.role for messages, _ in kept.kept() for message in messages} == {"user", "assistant"}
    assert run.latest().name == "preferred-2" and len(run.checkpoints()) == 6
    page, card = run.report_path.read_text(), run.card_path.read_text()
    looks = RunLog(run.watched_path).read("reasoning")
    assert {row["look"] for row in looks} == {1} and len(looks) == 6
    assert "after second sft" in page and "Reasoning: entropy" in page and "not finished" not in page
    assert "Second sft (SFT)" in card and "18 replies kept of 72 to 18 problems" in card
    assert all("reward" in row for row in RunLog(run.metrics_path).read("preferred"))


def test_a_stage_of_traces_goes_on_where_it_stopped_and_asks_nothing_twice(made, monkeypatch):
    always_right(monkeypatch)
    monkeypatch.setattr(collect, "TOGETHER", 4)
    few = {"stages__cold_start__steps": 1, "stages__reasoning__steps": 1, "stages__rejection__problems": 4}
    run = made("r1-laptop", stages__rejection__max_new_tokens=12, **few)
    stages.make(run, "reasoning")
    real, calls = collect.attempt, []

    def stopped(*arguments, **options):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(collect, "attempt", stopped)
    with pytest.raises(KeyboardInterrupt):
        stages.make(run, "rejection")
    file = Conversations(run.traces_path("rejection"))
    assert len(file.keys()) == 8 and not run.stage_done("rejection")
    monkeypatch.setattr(collect, "attempt", real)
    stages.make(run, "rejection")
    assert len(file.keys()) == 12 == run.summary["rejection"]["problems"] and len(file.provenance()) == 2
    text = run.traces_path("rejection").read_text()
    assert all(text.count(json.dumps(key)) == 1 for key in file.keys())


@pytest.mark.parametrize("sound", [False, True])
def test_only_sound_thinking_is_kept_where_that_is_wanted(tmp_path, sound):
    task = load_environment("largest")
    problem = next(task.problems("train", 0))
    worked = task.solution(problem, random.Random(0))
    lucky = replace(worked, reasoning_content="a guess")
    attempts = [
        Attempt(problem, [1], reply, Output("r", 0, ids, "", finish_reason="stop"), {}, True, True)
        for reply, ids in ((lucky, [1]), (worked, [1, 2]))
    ]
    file = Conversations(tmp_path / "x.jsonl")
    prompt = task.start(problem).messages
    collect._keep(file, task, problem, (prompt, ()), attempts, TracesSettings(sound=sound))
    ((messages, _),) = file.kept()
    assert messages[-1].reasoning_content == (worked if sound else lucky).reasoning_content


def test_zero_starts_from_the_base(made):
    run = made("r1-zero-laptop", stages__zero__steps=2, stages__zero__refill=0)
    stages.make(run)
    assert list(run.recipe.line) == ["tokenizer", "pretrain", "zero", "eval"]
    base, zero = (load_model(run.latest(name)) for name in ("pretrain", "zero"))
    assert base.state_dict().keys() == zero.state_dict().keys()
    assert run.summary["accuracy"]["largest"].keys() >= {"base", "zero"}
    assert Path(run.report_path).is_file() and torch.isfinite(zero.lm_head.weight).all()


def test_one_model_is_asked_for_little_thinking_and_for_much(made):
    run = made("effort-laptop", sft__steps=2, sft__traces_per_environment=10, grpo__steps=2, grpo__prompts_per_step=12)
    stages.make(run)
    row = RunLog(run.metrics_path).read("grpo")[-1]
    assert {"length_low", "length_high", "length_max"} <= row.keys()
    assert Tokenizer.load(run.latest()).efforts == ("low", "high", "max"), "who serves it knows what it heeds"


def test_a_specialist_for_each_task_teaches_one_model(made):
    names = ("adder", "walker", "comparer", "merged")
    few = {f"stages__{name}__steps": 1 for name in names}
    few |= {"distill__development_problems": 2, "stages__merged__max_new_tokens": 12, "distill__prompts_per_step": 3}
    run = made("specialists-laptop", sft__steps=2, sft__traces_per_environment=10, grpo__refill=0, **few)
    stages.make(run)
    assert [run.recipe.before(name) for name in names] == ["sft"] * 4
    assert run.latest().name == "merged-1" and run.summary["merged"]["teachers"] == 3
    assert set(names) <= run.summary["accuracy"]["grid_walk"].keys()


def test_a_conversation_of_several_turns_is_kept_whole_and_learnt_from(
    made, make_model, monkeypatch, tiny_tokenizer, tmp_path
):
    run = made("r1-laptop", stages__rejection__problems=3, stages__rejection__sound=False, data__sequence_tokens=8)
    model = make_model(max_position_embeddings=50_000)
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
    save_model(model, run.checkpoint("reasoning", 1), tiny_tokenizer)
    task = load_environment("smart_home")

    def played(engine, problems, params, *, environments, efforts):
        found = []
        for problem in problems:
            said, turn = demonstrate(task, problem, random.Random(0))
            replies = tuple(said[len(task.start(problem).messages) :])
            output = Output("r", 0, [1] * len(said), "", finish_reason="stop")
            found += [Attempt(problem, [1], said[-1], output, turn.rewards, True, True, messages=replies)] * params.n
        return found

    monkeypatch.setattr(collect, "attempt", played)
    stage = Stage(run, "rejection", tiny_tokenizer, RunLog(run.metrics_path), Charge("rejection"))
    figures = collect.collect(stage, [task])
    assert figures["kept"] == figures["problems"] == 3
    messages, tools = Conversations(run.traces_path("rejection")).kept()[0]
    assert {"user", "assistant", "tool"} <= {m.role for m in messages} and [t.name for t in tools] == [
        tool.name for tool in task.tools
    ]
    ids, learnt = stage.conversations("rejection")[0]
    assert (ids, learnt) == ChatFormat(tiny_tokenizer).dialogue(messages, tools=tools) and 0 < sum(learnt) < len(ids)
