"""Forms: each name's parts, and settings in their place."""

from __future__ import annotations

from typing import get_args

import pytest

from leanseek.sections.grpo import GrpoSettings, Objective
from leanseek.train.objectives.forms import FORMS, Form, form_of


def test_every_objective_has_a_form_and_no_two_are_alike():
    assert set(FORMS) == set(get_args(Objective))
    assert len({str(form) for form in FORMS.values()}) == len(FORMS)
    for name, form in FORMS.items():
        assert form_of(GrpoSettings(objective=name)) == form


def test_the_default_is_the_form_that_there_was_before_there_were_names():
    assert form_of(GrpoSettings()) == Form("normalised", "token", "tokens", 0.2, 0.28)


@pytest.mark.parametrize("name", FORMS)
def test_settings_take_the_place_of_a_part_and_leave_the_others(name):
    other = {"advantages": "centred", "ratio": "reply", "average": "constant", "clip_low": 0.5, "clip_high": 10.0}
    for part, value in other.items():
        form = form_of(GrpoSettings(objective=name, **{part: value}))
        assert getattr(form, part) == value
        assert all(getattr(form, rest) == getattr(FORMS[name], rest) for rest in other if rest != part)


def test_runs_from_before_there_were_names_go_on_as_they_are():
    """Their recipes have the clips spelt out; that these are the default's own now is no change."""
    earlier = GrpoSettings.model_validate({"clip_low": 0.2, "clip_high": 0.28, "steps": 3})
    assert earlier == GrpoSettings(steps=3)
    assert GrpoSettings.model_validate({"clip_low": 0.2, "clip_high": 0.3}).clip_high == 0.3
    chosen = GrpoSettings(objective="cispo", clip_low=0.2, clip_high=0.28)
    assert (form_of(chosen).clip_low, form_of(chosen).clip_high) == (0.2, 0.28)
