from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from leanseek.envs.environment import load_environment
from leanseek.envs.mathematics import Mathematics
from leanseek.errors import DataError, TaskError
from leanseek.messages import Message


def test_an_answer_may_be_written_in_any_way_but_must_be_worked_out():
    task = Mathematics()
    for level in task.levels:
        for problem in islice(task.problems("train", 0, [level]), 40):
            gold = problem.data["answer"]
            assert task.check(problem, gold) and task.check(problem, f"${gold}$")
            if "x" not in gold:
                assert task.check(problem, rf"\boxed{{{gold}}}") and not task.check(problem, f"{gold}+0")
    asked = next(p for p in task.problems("train", 0, [5]) if p.prompt.startswith("Expand"))
    assert not task.check(asked, asked.prompt.removeprefix("Expand ").removesuffix("."))
    asked = next(p for p in task.problems("train", 0, [1]) if p.prompt.startswith("What is"))
    assert not task.check(asked, asked.prompt.removeprefix("What is ").removesuffix("?"))


def rows(count: int) -> list[dict[str, object]]:
    return [
        {"problem": f"double {i}", "answer": str(2 * i), "level": 1 + i % 2, "solution": f"{i}+{i}"}
        for i in range(count)
    ]


def write(folder: Path, lines: list[object]) -> str:
    file = folder / "mine.jsonl"
    file.write_text("\n".join(json.dumps(line) if isinstance(line, dict) else str(line) for line in lines))
    return str(file)


def test_a_files_problems_keep_to_their_splits(tmp_path: Path):
    task = load_environment(f"mathematics:{write(tmp_path, rows(300))}")
    assert task.levels == (1, 2) and task.name.startswith("mathematics:")
    seen = {split: [p.key for p in islice(task.problems(split, 0), 600)] for split in ("train", "development", "test")}
    keys = {split: set(found) for split, found in seen.items()}
    assert not keys["train"] & keys["test"] and not keys["train"] & keys["development"]
    assert sum(map(len, keys.values())) == 300
    problem = next(task.problems("train", 0, [2]))
    assert problem.level == 2 and problem.environment == task.name
    solution = task.solution(problem, None)
    assert task.start(problem).step(solution).rewards["correct"] == 1.0 and "+" in solution.reasoning_content
    assert not task.check(problem, task.wrong_answer(problem))


def test_gsm8ks_answers_are_read(tmp_path: Path):
    lines = [{"question": f"q{i}", "answer": f"1 + {i} = {1 + i}\n#### {1 + i}"} for i in range(60)]
    task = load_environment(f"mathematics:{write(tmp_path, lines)}")
    problem = next(task.problems("train", 0))
    solution = task.solution(problem, None)
    assert solution.content == str(1 + int(problem.prompt[1:])) and solution.reasoning_content.startswith("1 + ")
    assert task.start(problem).step(Message("assistant", solution.content, "")).rewards["correct"] == 1.0


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{"], "line 1: a JSON object is needed"),
        ([{"problem": "a"}], "line 1: it has problem; problem and answer are needed"),
        ([{"problem": "a", "answer": ""}], "has 0 characters"),
        ([{"problem": "a", "answer": "1", "level": "x"}], "level = 'x'"),
        ([{"problem": "a", "answer": [1]}], "problem and answer are needed"),
        ([], "no problems"),
    ],
)
def test_a_file_that_does_not_do_is_told_so(tmp_path: Path, lines: list[object], said: str):
    with pytest.raises(DataError, match=said):
        load_environment(f"mathematics:{write(tmp_path, lines)}")


def test_a_split_without_problems_is_told_so_and_so_is_a_missing_file(tmp_path: Path):
    task = load_environment(f"mathematics:{write(tmp_path, rows(2))}")
    with pytest.raises(TaskError, match="give it more problems"):
        for split in ("train", "development", "test"):
            next(task.problems(split, 0))
    with pytest.raises(DataError, match="cannot be read"):
        load_environment(f"mathematics:{tmp_path / 'none.jsonl'}")
    with pytest.raises(TaskError, match="takes no option"):
        load_environment("countdown:3")
