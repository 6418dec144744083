"""Traces: worked solutions of training problems as conversations, learnt on the assistant's side alone."""

from __future__ import annotations

import pytest

from leanseek.data.batches import IGNORED
from leanseek.data.traces import TraceBatches, traces
from leanseek.envs.environment import load_environment
from leanseek.errors import TaskError
from leanseek.messages import Message
from leanseek.tokens.chat import ChatFormat

TASKS = [load_environment(name) for name in ("running_total", "largest")]


def made(tokenizer, count=30, seed=0, hasty=0.0, levels=None):
    return traces(ChatFormat(tokenizer), TASKS, count, levels=levels or {}, seed=seed, hasty=hasty)


def said(tokenizer, example) -> tuple[str, Message]:
    """Return a conversation's question and reply, read back from its ids."""
    ids, learnt = example
    start = learnt.index(True)
    prompt = tokenizer.decode(ids[:start])
    return prompt.removesuffix("\n"), ChatFormat(tokenizer).parse(ids[start:])


def watch(monkeypatch):
    """Note every problem that a solution is made for."""
    seen = []
    for task in TASKS:

        def watched(self, problem, *rest, _real=type(task).solution):
            seen.append(problem)
            return _real(self, problem, *rest)

        monkeypatch.setattr(type(task), "solution", watched)
    return seen


def test_only_the_assistants_part_is_learnt(tiny_tokenizer):
    chat = ChatFormat(tiny_tokenizer)
    for ids, learnt in made(tiny_tokenizer):
        start = learnt.index(True)
        assert learnt == [False] * start + [True] * (len(ids) - start)
        assert ids[0] == tiny_tokenizer.bos_id and ids[-1] == tiny_tokenizer.eos_id
        assert ids[start:].count(chat.end_think_id) == 1 and chat.end_think_id not in ids[:start]
        assert ids[:start] == chat.prompt([Message("user", said(tiny_tokenizer, (ids, learnt))[0])])


def test_environments_come_in_turn_and_solutions_are_right(tiny_tokenizer, monkeypatch):
    seen = watch(monkeypatch)
    examples = made(tiny_tokenizer)
    problems = seen[:: len(seen) // len(examples)]
    assert len(examples) == 60 == len(problems)
    assert [p.environment for p in problems[:4]] == ["running_total", "largest"] * 2
    for example, problem in zip(examples, problems, strict=True):
        prompt, reply = said(tiny_tokenizer, example)
        task = TASKS[problem.environment == "largest"]
        assert prompt == problem.prompt
        assert task.check(problem, reply.content) and task.audit(problem, reply.reasoning_content)


def test_no_held_out_problem_is_solved(tiny_tokenizer, monkeypatch):
    seen = watch(monkeypatch)
    for seed in range(3):
        made(tiny_tokenizer, 80, seed)
    assert len(seen) >= 480 and {problem.split for problem in seen} == {"train"}


def test_the_seed_decides(tiny_tokenizer):
    assert made(tiny_tokenizer, hasty=0.5) == made(tiny_tokenizer, hasty=0.5)
    assert made(tiny_tokenizer) != made(tiny_tokenizer, seed=1)


def test_levels_narrow_the_problems(tiny_tokenizer):
    prompts = [said(tiny_tokenizer, e)[0] for e in made(tiny_tokenizer, levels={"largest": (3,)})[1::2]]
    assert {prompt.count(",") for prompt in prompts} == {2}
    with pytest.raises(TaskError, match="largest has no level 99"):
        made(tiny_tokenizer, levels={"largest": (99,)})


def test_hasty_traces_break_off_and_still_answer_right(tiny_tokenizer):
    whole, hasty = (made(tiny_tokenizer, 60, hasty=chance) for chance in (0.0, 0.5))
    shorter = 0
    for one, other in zip(whole, hasty, strict=True):
        (prompt, full), (same, cut) = said(tiny_tokenizer, one), said(tiny_tokenizer, other)
        assert prompt == same and full.content == cut.content
        lines, kept = full.reasoning_content.split("\n"), cut.reasoning_content.split("\n")
        assert kept == lines[: len(kept)] and kept
        shorter += len(kept) < len(lines)
    assert 0.5 * len(whole) < shorter < 0.9 * len(whole)
    always = made(tiny_tokenizer, 5, hasty=1.0)
    assert {said(tiny_tokenizer, e)[1].reasoning_content.count("\n") for e in always} == {0}


def numbered(count: int) -> list[tuple[list[int], list[bool]]]:
    """Return conversations that can be told apart by their second token."""
    return [([0, 10 + n, 1], [False, False, True]) for n in range(count)]


def test_a_pass_sees_every_conversation_at_most_once_and_the_next_in_another_order():
    batches = TraceBatches(numbered(14), 4, seed=0)
    assert batches.batches_per_pass == 3
    passes = [[t for s in range(3) for t in batches.batch(3 * n + s).tokens_T[1::2].tolist()] for n in range(3)]
    for seen in passes:
        assert len(set(seen)) == 12 and set(seen) <= {10 + n for n in range(14)}
    assert passes[0] != passes[1] != passes[2]
    assert len({token for seen in passes for token in seen}) == 14, "what one pass leaves out another has"


def test_a_step_has_the_same_batch_whoever_asks_and_whenever():
    one = TraceBatches(numbered(14), 4, seed=2)
    for step in (5, 0, 5):
        other = TraceBatches(numbered(14), 4, seed=2).batch(step)
        assert one.batch(step).tokens_T.tolist() == other.tokens_T.tolist()
    assert one.batch(0).tokens_T.tolist() != TraceBatches(numbered(14), 4, seed=3).batch(0).tokens_T.tolist()


def test_a_batch_larger_than_all_conversations_is_all_of_them():
    batch = TraceBatches(numbered(3), 64, seed=0).batch(7)
    assert sorted(batch.tokens_T[1::2].tolist()) == [10, 11, 12] and batch.segments.lengths == (2, 2, 2)
    assert batch.targets_T.tolist() == [IGNORED, 1] * 3
