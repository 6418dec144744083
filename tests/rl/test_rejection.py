"""Rejection sampling: only what is right, ended and different is kept, as it was said, and can be learnt."""

from __future__ import annotations

import pytest
import torch

from leanseek.cost.ledger import Charge
from leanseek.data.traces import TraceBatches
from leanseek.engine.pool import EnginePool
from leanseek.engine.request import Output
from leanseek.envs.environment import Problem, load_environment
from leanseek.errors import TaskError
from leanseek.evals.attempts import Attempt
from leanseek.messages import Message
from leanseek.rl.rejection import Accepted, _different, best, rejection_sample
from leanseek.sections.training import TrainSettings
from leanseek.train.objectives.next_token import NextToken, mean_loss
from leanseek.train.trainer import Trainer

PROBLEM = Problem("x", 1, "?", {}, "?")


def attempt_of(ids: list[int], *, correct: bool = True, formed: bool = True, finish: str = "stop") -> Attempt:
    output = Output("r", 0, ids, "", finish_reason=finish)
    return Attempt(PROBLEM, [1, 2], Message("assistant", ""), output, {}, correct, formed)


def test_the_best_are_right_and_short_and_no_two_alike():
    attempts = [
        attempt_of([5, 6, 7, 8]),
        attempt_of([5], correct=False),
        attempt_of([9, 9], formed=False),
        attempt_of([5, 6], finish="length"),
        attempt_of([5, 6, 7]),
        attempt_of([5, 6, 7]),
        attempt_of([5, 6, 4]),
    ]
    assert [one.output.token_ids for one in best(attempts, 9)] == [[5, 6, 7], [5, 6, 4], [5, 6, 7, 8]]
    assert best(attempts) == [best(attempts, 9)[0]] and best([attempts[1]]) == []
    assert best(attempts, easiest=6 / 7) and not best(attempts, easiest=5 / 7), "six of seven are right"


def test_examples_are_what_was_said_and_only_the_reply_is_learnt():
    accepted = Accepted([attempt_of([5, 6, 7])], 4, 16)
    assert accepted.examples == [([1, 2, 5, 6, 7], [False, False, True, True, True])]
    assert accepted.coverage == 0.25 and Accepted([], 0, 0).coverage == 0.0


def test_no_problem_is_asked_twice_and_all_are_of_the_training_split():
    problems = _different(load_environment("largest"), 50, 3, None)
    assert len({problem.key for problem in problems}) == 50 and {problem.split for problem in problems} == {"train"}


def test_a_model_learns_from_its_own_right_replies(make_model, tiny_tokenizer, even):
    model = make_model()
    engine = EnginePool(model, tiny_tokenizer, max_batch=64, max_context_tokens=64)
    # Replies of a model with random weights hardly ever end by themselves.
    with torch.no_grad():
        model.lm_head.weight[tiny_tokenizer.eos_id] *= 3
    values = {"samples": 8, "keep": 2, "seed": 1, "max_new_tokens": 10}
    accepted = rejection_sample(engine, [even], 12, **values)
    assert accepted.problems == 12 and accepted.replies == 96 and 4 < len(accepted.attempts) <= 24
    assert all(one.correct and one.output.token_ids[-1] == tiny_tokenizer.eos_id for one in accepted.attempts)
    again = rejection_sample(engine, [even], 12, **values)
    assert [one.output.token_ids for one in again.attempts] == [one.output.token_ids for one in accepted.attempts]
    other = rejection_sample(engine, [even], 12, **values | {"seed": 2})
    assert other.examples != accepted.examples

    batches = TraceBatches(accepted.examples, 8, 0)

    before = mean_loss(model, [batches.batch(0)])
    trainer = Trainer(model, NextToken(0.0, 0.0), TrainSettings(steps=4, optimiser={"lr": 5e-3}), Charge("test"))
    for step in range(4):
        trainer.step(batches.batch(step))
    assert mean_loss(model, [batches.batch(0)]) < before - 0.05


def test_levels_and_hard_problems_alone(make_model, tiny_tokenizer, even):
    engine = EnginePool(make_model(), tiny_tokenizer, max_batch=64, max_context_tokens=64)
    accepted = rejection_sample(engine, [even], 6, samples=4, levels={"even": (2,)}, easiest=0.0, max_new_tokens=6)
    assert accepted.problems == 6 and not accepted.attempts
    with pytest.raises(TaskError, match="no level 9"):
        rejection_sample(engine, [even], 6, samples=4, levels={"even": (9,)})
