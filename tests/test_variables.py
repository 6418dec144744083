"""Environment variables: read in one place, checked, and misspellings refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from leanseek.errors import ConfigError
from leanseek.variables import VARIABLES, check, config_folder, kernels, threads, traceback


@pytest.mark.parametrize(("text", "value"), [(None, None), ("", None), ("1", 1), ("12", 12)])
def test_threads(text, value):
    assert threads({} if text is None else {"LEANSEEK_THREADS": text}) == value


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "²"])
def test_threads_that_are_no_number_are_refused(text):
    with pytest.raises(ConfigError, match=r"LEANSEEK_THREADS = .*: a whole number from 1 is needed"):
        threads({"LEANSEEK_THREADS": text})


def test_traceback():
    assert traceback({"LEANSEEK_TRACEBACK": "1"}) and not traceback({"LEANSEEK_TRACEBACK": "0"}) and not traceback({})
    with pytest.raises(ConfigError, match="LEANSEEK_TRACEBACK = 'yes': 0 or 1 is needed"):
        traceback({"LEANSEEK_TRACEBACK": "yes"})


def test_kernels():
    assert (kernels({}), kernels({"LEANSEEK_KERNELS": "reference"})) == ("auto", "reference")
    with pytest.raises(
        ConfigError, match=r"LEANSEEK_KERNELS = 'fast' is not known; .*accepted: auto, reference, native"
    ):
        kernels({"LEANSEEK_KERNELS": "fast"})


def test_the_process_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("LEANSEEK_THREADS", "3")
    assert threads() == 3
    monkeypatch.setenv("LEANSEEK_THREAD", "3")
    with pytest.raises(ConfigError, match=r"LEANSEEK_THREAD is not known; did you mean LEANSEEK_THREADS\?"):
        check()


def test_known_variables_pass_and_are_described():
    check({variable.name: "1" for variable in VARIABLES} | {"HOME": "anywhere"})
    for variable in VARIABLES:
        assert variable.name.startswith("LEANSEEK_") and all((variable.accepts, variable.default, variable.description))


def test_settings_are_kept_where_the_desktop_says():
    assert config_folder({"XDG_CONFIG_HOME": "/somewhere"}) == Path("/somewhere")
    for other in ({}, {"XDG_CONFIG_HOME": "relative"}, {"XDG_CONFIG_HOME": ""}):
        assert config_folder(other) == Path.home() / ".config"
