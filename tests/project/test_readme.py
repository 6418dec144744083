"""What the documents say is so: commands parse, links lead somewhere, examples run."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from leanseek import variables
from leanseek.checkpoint.directory import save_model
from leanseek.cli.app import COMMANDS, WITH_SETTINGS, app, main
from leanseek.cli.overrides import FLAGS, VALUED, split_settings
from leanseek.server.listener import Listener
from leanseek.settings import dotted_keys, load_recipe

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def readme(root: Path) -> str:
    return (root / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pages(text_files: list[Path]) -> dict[Path, str]:
    """Return every Markdown file with its text."""
    return {path: path.read_text(encoding="utf-8") for path in text_files if path.suffix == ".md"}


def blocks(text: str, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(text) if kind == language]


def shell_lines(text: str) -> list[list[str]]:
    """Return the commands of the shell examples as words, comments and redirections left out."""
    lines = [line for body in blocks(text, "sh") for line in body.replace("\\\n", " ").splitlines()]
    found = [shlex.split(line, comments=True) for line in lines]
    return [words[: words.index(">")] if ">" in words else words for words in found if words]


def spans(text: str) -> list[str]:
    return SPAN.findall(FENCE.sub("", text))


def program(words: list[str]) -> list[str] | None:
    """Return the arguments of a leanseek command line; None for another program's."""
    if words[:3] == ["python", "-m", "leanseek"]:
        return words[3:]
    return words[1:] if words[0] == "leanseek" else None


def python_block(text: str, holding: str) -> str:
    (only,) = [body for body in blocks(text, "python") if holding in body]
    return only


def test_the_examples_of_commands_are_command_lines(pages):
    seen = set()
    for path, text in pages.items():
        for words in shell_lines(text):
            tokens = program(words)
            if not tokens or tokens[0].startswith("-"):
                continue
            name, rest = tokens[0], tokens[1:]
            assert name in COMMANDS, f"{path.name}: {' '.join(words)}"
            seen.add(name)
            if name in WITH_SETTINGS:
                rest, settings = split_settings(rest, section=None if name == "make" else name)
                load_recipe("laptop", settings)
            app(name).parse_args([name, *rest], print_error=False, exit_on_error=False)
    assert seen == set(COMMANDS), f"without an example: {set(COMMANDS) - seen}"


def test_commands_that_are_named_exist(pages):
    for path, text in pages.items():
        for span in spans(text):
            named = re.match(r"leanseek ([a-z_]+)", span)
            assert named is None or named[1] in COMMANDS, f"{path.name}: `{span}`"


def test_options_that_are_named_exist(readme, pages):
    known = {*FLAGS, *VALUED, "--train.X", *(f"--{key}" for key in dotted_keys())}
    named = {span.split()[0].partition("=")[0] for span in spans(readme) if span.startswith("--")}
    assert {"--run", "--data.sources"} <= named <= known, f"no such options: {named - known}"


def test_targets_of_make_that_are_named_exist(root, pages):
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)[1].split())
    named: dict[str, Path] = {}
    for path, text in pages.items():
        for words in [*shell_lines(text), *(span.split() for span in spans(text))]:
            if words[0] == "make" and len(words) > 1 and "=" not in words[1]:
                named[words[1]] = path
    assert {"demo", "test"} <= named.keys()
    assert named.keys() <= targets, f"no such targets: { {k: v.name for k, v in named.items() if k not in targets} }"


def test_the_variables_of_make_are_all_described(root, readme):
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    section = readme.partition("Variables of `make`")[2].partition("\n\nOn Linux")[0]
    described = set(re.findall(r"^\| `([A-Z_]+)` \|", section, flags=re.MULTILINE))
    assert set(re.findall(r"^([A-Z_]+) \?=", makefile, flags=re.MULTILINE)) <= described
    for name in described:
        assert f"$({name})" in makefile, f"make does not use {name}"


def test_every_environment_variable_is_described(readme):
    described = set(re.findall(r"^\| `(LEANSEEK_[A-Z_]+)` \|", readme, flags=re.MULTILINE))
    assert described == {variable.name for variable in variables.VARIABLES}
    mentioned = set(re.findall(r"LEANSEEK_[A-Z]+[A-Z_]*", readme))
    assert mentioned <= described


def test_relative_links_lead_somewhere(root, pages):
    count = 0
    for path, text in pages.items():
        for target in LINK.findall(SPAN.sub("", FENCE.sub("", text))):
            if re.match(r"[a-z]+:", target):
                continue
            file, _, anchor = target.partition("#")
            aimed = (path.parent / file).resolve() if file else path
            assert aimed.exists(), f"{path.relative_to(root)} links to {target}"
            assert aimed.is_relative_to(root), f"{path.relative_to(root)} links out of the project: {target}"
            assert not anchor or anchor in anchors(aimed), f"{path.relative_to(root)} links to {target}"
            count += 1
    assert count > 50


def anchors(path: Path) -> set[str]:
    """Return what the headings of a page are called in links."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_tour_counts_its_files_right(root):
    tour = (root / "docs" / "tour.md").read_text(encoding="utf-8")
    numbers = [int(n) for n in re.findall(r"^(\d+)\. \[", tour, flags=re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1)) and 20 <= len(numbers) <= 30
    words = {24: "Twenty-four", 25: "Twenty-five", 26: "Twenty-six", 27: "Twenty-seven", 28: "Twenty-eight"}
    assert f"{words[len(numbers)]} files" in tour


def test_the_environment_of_the_readme_keeps_what_tasks_promise(readme, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "mytasks"
    folder.mkdir()
    (folder / "remainder.py").write_text(python_block(readme, "class Remainder"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert main(["envs", "--validate", "mytasks.remainder"]) == 0
        assert capsys.readouterr().out.startswith("mytasks.remainder: right answers score 1")
        dry = ["make", "laptop", "--run", str(tmp_path / "run"), "--environments", "mytasks.remainder", "--dry-run"]
        assert main(dry) == 0 and "mytasks.remainder" in capsys.readouterr().out
    finally:
        for name in ("mytasks", "mytasks.remainder"):
            sys.modules.pop(name, None)


@pytest.fixture
def laptop(tmp_path, monkeypatch, tiny_model, tiny_tokenizer) -> Path:
    """Have a tiny model where the examples expect the laptop's run."""
    folder = tmp_path / "runs" / "laptop"
    save_model(tiny_model, folder, tiny_tokenizer)
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_python_example_runs(readme, laptop, tiny_model, capsys):
    names: dict[str, object] = {}
    exec(compile(python_block(readme, "leanseek.load_model"), "README.md", "exec"), names)
    assert tuple(names["logits_TW"].shape) == (4, tiny_model.config.vocab_size)
    assert len(capsys.readouterr().out.strip().split("->")) >= 3, "two replies"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {f.name for f in Path("a-copy").iterdir()}


def test_the_client_example_runs(readme, laptop, capsys):
    listener = Listener.of_folder(laptop, name="laptop", port=0)
    text = python_block(readme, "from openai import OpenAI").replace("http://127.0.0.1:8000", listener.url)
    assert listener.url in text
    names: dict[str, object] = {}
    with listener.background():
        exec(compile(text, "README.md", "exec"), names)
    message = names["answer"].choices[0].message
    assert message.role == "assistant" and message.reasoning_content is not None
    assert message.reasoning_content in capsys.readouterr().out
