"""Evaluation of a run's models: the same held-out problems for each, and their replies side by side."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

import leanseek.engine.shares as shares
from leanseek.checkpoint.directory import save_model
from leanseek.cost.ledger import Charge
from leanseek.engine.pool import EnginePool
from leanseek.envs.environment import load_environment
from leanseek.errors import TaskError
from leanseek.evals.accuracy import distinct_problems, evaluate
from leanseek.evals.evaluation import SHOWN, development_accuracy, evaluate_run

TASKS = [load_environment(name) for name in ("running_total", "largest")]


@pytest.fixture
def run(make_run, make_model, tiny_tokenizer):
    """Return a run with a pretrained model and one after GRPO."""
    made = make_run(eval__problems=9)
    save_model(make_model(seed=1), made.checkpoint("pretrain", 6), tiny_tokenizer)
    save_model(make_model(seed=2), made.checkpoint("grpo", 2), tiny_tokenizer)
    save_model(make_model(seed=3), made.checkpoint("grpo", 4), tiny_tokenizer)
    return made


def test_every_model_meets_the_same_held_out_problems(run, tiny_tokenizer):
    found = evaluate_run(run, tiny_tokenizer, TASKS, Charge("test"))
    assert found.accuracy.keys() == {"running_total", "largest"}
    for figures in found.accuracy.values():
        assert figures["n"] == 9 and 0 <= figures["base"] <= 1 and 0 <= figures["grpo"] <= 1 and "sft" not in figures
        for key in ("interval", "pass_at_k", "pass_at_k_interval", "sound", "formed", "levels"):
            assert figures[key].keys() == {"base", "grpo"}, key
        assert figures["pass_at_k"]["base"].keys() == {"1", "2"}
        low, high = figures["interval"]["grpo"]
        assert low <= figures["grpo"] <= high
    assert json.loads(json.dumps(found.accuracy)) == found.accuracy
    assert 0 <= found.mtp_acceptance <= 1
    held_out = {task.name: distinct_problems(task, 9, 0) for task in TASKS}
    assert len(found.samples) == 2 * SHOWN * 2
    for place, sample in enumerate(found.samples):
        task, index = divmod(place // 2, SHOWN)
        problem = held_out[TASKS[task].name][index]
        assert problem.split == "test"
        assert (sample["prompt"], sample["environment"]) == (problem.prompt, problem.environment)
        assert sample["stage"] == ("base", "grpo")[place % 2], "before and after stand side by side"
        assert sample["gold"] == str(problem.data["answer"]) and sample["level"] == problem.level
        assert isinstance(sample["correct"], bool) and isinstance(sample["sound"], bool)


def test_the_newest_checkpoint_of_each_stage_is_measured(run, make_model, tiny_tokenizer):
    found = evaluate_run(run, tiny_tokenizer, TASKS[:1], Charge("test"))
    engine = EnginePool(make_model(seed=3), tiny_tokenizer, max_batch=16, max_context_tokens=44)
    expected = evaluate(engine, TASKS[0], problems=9, samples=0, max_new_tokens=12)
    replies = [a.reply.reasoning_content for a in expected.attempts[:SHOWN]]
    assert [s["reasoning"] for s in found.samples if s["stage"] == "grpo"] == replies
    assert len(set(replies)) > 1


def test_workers_change_nothing(run, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(shares, "LEAST_SAMPLES", 1)
    one, two = (evaluate_run(run, tiny_tokenizer, TASKS, Charge("test"), workers) for workers in (1, 2))
    assert one == two


def test_sampling_is_charged(run, tiny_tokenizer):
    meter = Charge("test")
    evaluate_run(run, tiny_tokenizer, TASKS, meter)
    # Two models, two tasks, nine problems, three replies of up to 12 tokens.
    assert 2 * 2 * 9 * 2 < meter.tokens < 2 * 2 * 9 * (3 * 12 + 2 * 32) and meter.flops > 0


def test_a_run_without_models_has_no_figures(make_run, tiny_tokenizer):
    found = evaluate_run(make_run(), tiny_tokenizer, TASKS, Charge("test"))
    assert found.samples == [] and found.mtp_acceptance is None
    assert all(figures["n"] == 0 for figures in found.accuracy.values())


def test_progress_is_watched_on_problems_that_are_neither_trained_on_nor_judged_by(
    tiny_model, tiny_tokenizer, monkeypatch
):
    seen = []
    for task in TASKS:

        def watched(self, problem, _real=type(task).start):
            seen.append(problem)
            return _real(self, problem)

        monkeypatch.setattr(type(task), "start", watched)
    values = {"problems": 7, "levels": {"largest": (3,)}, "seed": 0, "max_new_tokens": 8, "context_tokens": 40}
    found = development_accuracy(tiny_model, tiny_tokenizer, TASKS, **values)
    assert found.keys() == {"heldout_running_total", "heldout_largest"}
    assert {problem.split for problem in seen} == {"development"} and len({p.key for p in seen}) == 14
    assert {problem.level for problem in seen if problem.environment == "largest"} == {3}
    assert development_accuracy(tiny_model, tiny_tokenizer, TASKS, **values, workers=2) == found


def test_films_are_made_early_and_late_of_a_problem_that_was_learnt(
    make_run, make_model, tiny_tokenizer, monkeypatch, capsys
):
    run = make_run(eval__problems=9, data__sequence_tokens=450)
    for seed, stage in enumerate(("pretrain", "sft", "grpo")):
        save_model(make_model(seed=seed, max_position_embeddings=512), run.checkpoint(stage, 2), tiny_tokenizer)
    home = load_environment("smart_home:bare")
    problems = distinct_problems(home, 9, 0)
    seen = []

    def film(self, problem, calls):
        seen.append((problem, calls))
        return b"pictures"

    def films(*tasks):
        return evaluate_run(run, tiny_tokenizer, tasks, Charge("test")).films

    assert films(home, TASKS[0]) == {}, "they have no pictures"
    monkeypatch.setattr(type(home), "film", film)
    assert films(home, TASKS[0]) == {"smart_home": {"sft": b"pictures", "grpo": b"pictures"}}
    assert [problem for problem, _ in seen] == [problems[0]] * 2, "untrained, it solves none"
    start = {"grpo__start": str(run.latest("pretrain")), "grpo__cold_start": True}
    started = make_run("started", eval__problems=9, data__sequence_tokens=450, **start)
    for stage in ("sft", "grpo"):
        shutil.copytree(run.checkpoint(stage, 2), started.checkpoint(stage, 2))
    found = evaluate_run(started, tiny_tokenizer, [home], Charge("test")).films
    assert found == films(home), "without a base the first one was taught"
    seen.clear()

    # What the last model solves, 1, 4 and 5, and the early one already did, 1 and 2.
    solved = iter([(), (1, 2), (1, 4, 5)])

    def scored(engine, environment, **given):
        found, right = evaluate(engine, environment, **given), next(solved)
        attempts = (replace(one, correct=place in right) for place, one in enumerate(found.attempts))
        return replace(found, attempts=tuple(attempts))

    monkeypatch.setattr("leanseek.evals.evaluation.evaluate", scored)
    seen.clear()
    films(home)
    assert [problem for problem, _ in seen] == [problems[4]] * 2
    monkeypatch.undo()

    def fail(self, problem, calls):
        raise TaskError("no picture can be drawn here")

    monkeypatch.setattr(type(home), "film", fail)
    assert films(home) == {}
    said = capsys.readouterr()
    assert "no film of smart_home: no picture can be drawn here" in said.out + said.err
