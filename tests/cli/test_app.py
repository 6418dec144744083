from __future__ import annotations

import errno
import json
import subprocess
import sys
import time

import pytest

from leanseek.cli import app as module
from leanseek.cli.app import COMMANDS, main
from leanseek.errors import RunError


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys):
    assert main([command, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Usage: leanseek {command}" in shown and f"Example: leanseek {command}" in shown


def test_help_shows_a_default_of_nought_and_none_of_a_flag(capsys):
    assert main(["demo", "--help"]) == 0
    assert "[default: 0]" in " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert main(["recipes", "--help"]) == 0
    assert "default:" not in capsys.readouterr().out


def test_help_lists_every_command_and_imports_no_torch():
    code = (
        "import sys; from leanseek.cli.app import main; status = main(['--help'])\n"
        "heavy = [m for m in ('torch', 'numpy', 'tokenizers', 'uvicorn') if m in sys.modules]\n"
        "print(heavy, file=sys.stderr); sys.exit(status)"
    )
    start_s = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    took_s = time.monotonic() - start_s
    assert done.returncode == 0 and done.stderr == "[]\n"
    assert all(command in done.stdout for command in COMMANDS)
    assert took_s < 5  # a fifth of a second on an idle machine; torch alone takes more than one


@pytest.mark.parametrize(
    "tokens", [["make", "--help"], ["eval", "-h"], ["serve", "--help"], ["chat", "--help"], ["demo", "--help"]]
)
def test_a_commands_help_imports_no_torch(tokens: list[str]):
    code = f"import sys; from leanseek.cli.app import main; main({tokens!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip()[0].isdigit()


@pytest.mark.parametrize(
    ("tokens", "status", "said"),
    [
        (["maek"], 2, 'Did you mean "make"?'),
        (["make", "lptop"], 2, "recipe 'lptop' is not known; did you mean laptop?"),
        (
            ["make", "--grpo.stepz", "4"],
            2,
            "--grpo.stepz is neither an option nor a setting; did you mean --grpo.steps?",
        ),
        (["make", "laptop", "--grpo.steps", "x"], 2, "grpo.steps = 'x'"),
        (["make", "laptop", "surplus"], 2, "surplus"),
        (["make", "--fresh", "--resume"], 2, "exclude each other"),
        (["make", "--resume", "--run", "nowhere"], 1, "nowhere is not a run folder"),
        (["report", "nowhere"], 1, "nowhere is not a run folder"),
        (["eval", "nowhere"], 1, "nowhere: there is no such folder"),
        (["eval"], 2, "MODEL"),
        (["eval", "nowhere", "--problems", "0"], 2, "--problems 0: at least 1 is needed"),
        (["envs", "--validate", "cuontdown"], 1, "did you mean countdown?"),
        (["recipes", "--show", "lptop"], 2, "did you mean laptop?"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_status(
    tokens: list[str], status: int, said: str, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(tokens) == status
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("leanseek: ") and shown.err.count("\n") == 1
    assert said.lower() in shown.err.lower()
    assert list(tmp_path.iterdir()) == []


def failing(error: BaseException, monkeypatch) -> None:
    def fail(tokens: list[str]) -> None:
        raise error

    monkeypatch.setattr(module, "_run", fail)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (RunError("so it is"), 1, "leanseek: so it is\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (KeyboardInterrupt("stopped; saved in x"), 130, "stopped; saved in x\n"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/a/x"), 1, "leanseek: runs/a/x: the disk is full; "),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 1, "leanseek: runs: Permission denied\n"),
        (MemoryError(), 1, "leanseek: out of memory; "),
    ],
)
def test_failures_become_a_sentence_and_a_status(error: BaseException, status: int, said: str, capsys, monkeypatch):
    failing(error, monkeypatch)
    assert main([]) == status
    shown = capsys.readouterr().err
    assert shown.startswith(said) and shown.count("\n") == 1


def test_a_fault_of_leanseek_is_not_hidden(monkeypatch):
    failing(ZeroDivisionError(), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        main([])


def test_a_traceback_may_be_asked_for(monkeypatch):
    failing(RunError("so it is"), monkeypatch)
    monkeypatch.setenv("LEANSEEK_TRACEBACK", "1")
    with pytest.raises(RunError):
        main([])


def test_a_misspelt_variable_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("LEANSEEK_TRACEBAK", "1")
    assert main(["models"]) == 2
    assert "did you mean LEANSEEK_TRACEBACK?" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_failure_to_talk_about():
    code = "import sys; from leanseek.cli.app import main; sys.exit(main(['recipes', '--settings']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 141


def test_python_dash_m_is_the_same(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "leanseek", "models", "--json"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and json.loads(done.stdout)
