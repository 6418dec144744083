from __future__ import annotations

import pytest

from leanseek.cli.overrides import default_of, split_settings
from leanseek.errors import UsageError
from leanseek.settings import load_recipe


def test_settings_are_taken_out_wherever_they_stand():
    tokens = "--grpo.steps 40 laptop --run runs/a --device=cpu --fresh --pretrain.batch-sequences 8 --json".split()
    rest, found = split_settings(tokens, None)
    assert rest == ["laptop", "--run", "runs/a", "--fresh", "--json"]
    assert found == {"grpo.steps": "40", "device": "cpu", "pretrain.batch_sequences": "8"}
    recipe = load_recipe("laptop", found)
    assert (recipe.grpo.steps, recipe.device, recipe.pretrain.batch_sequences) == (40, "cpu", 8)


def test_train_means_the_stages_own_section():
    assert split_settings(["--train.steps", "3", "--train.optimiser.lr=1e-3"], "sft")[1] == {
        "sft.steps": "3",
        "sft.optimiser.lr": "1e-3",
    }
    with pytest.raises(UsageError, match=r"--train\.steps is neither"):
        split_settings(["--train.steps", "3"], None)


def test_a_yes_or_no_setting_may_do_without_a_value():
    assert split_settings(["--grpo.replay_routing", "--fresh"], None) == (["--fresh"], {"grpo.replay_routing": "true"})
    assert split_settings(["--grpo.replay_routing", "false"], None)[1] == {"grpo.replay_routing": "false"}
    with pytest.raises(UsageError, match=r"--grpo\.steps needs a value, as in --grpo\.steps"):
        split_settings(["--grpo.steps", "--fresh"], None)
    with pytest.raises(UsageError, match=r"--seed needs a value, as in --seed 0"):
        split_settings(["--seed"], None)


def test_lists_are_given_with_commas_or_several_times():
    tokens = "--environments a,b --environments c --levels.a 2,3 --levels.b [4] --data.sources x.txt".split()
    assert split_settings(tokens, None)[1] == {
        "environments": ["a", "b", "c"],
        "levels.a": "[2,3]",
        "levels.b": "[4]",
        "data.sources": ["x.txt"],
    }
    recipe = load_recipe("laptop", split_settings(tokens, None)[1])
    assert recipe.environments == ("a", "b", "c") and recipe.levels["a"] == (2, 3)
    assert recipe.data.sources == ("x.txt",)
    assert split_settings(["--environments", '["a"]'], None)[1] == {"environments": '["a"]'}


def test_values_may_begin_with_one_dash():
    assert split_settings(["--seed", "-1"], None)[1] == {"seed": "-1"}


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("--grpo.stepz", "did you mean --grpo.steps"),
        ("--frehs", "did you mean --fresh"),
        ("--thread", "did you mean --threads"),
        ("--quite.unlike-anything", "all settings: leanseek recipes --settings"),
    ],
)
def test_what_is_unknown_is_told_with_what_is_near(token: str, said: str):
    with pytest.raises(UsageError, match=said):
        split_settings([token, "1"], None)


def test_the_variable_for_threads_gives_way_to_the_option(monkeypatch):
    monkeypatch.setenv("LEANSEEK_THREADS", "3")
    assert split_settings([], None)[1] == {"threads": 3}
    assert split_settings(["--threads", "1"], None)[1] == {"threads": "1"}


def test_defaults_are_found_by_dotted_name():
    assert default_of("grpo.optimiser.clip") == 1.0 and default_of("levels.countdown") is None
