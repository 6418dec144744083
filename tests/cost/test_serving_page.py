"""The page of a plan of serving: self-contained, its figures those of the plan; and it works in a browser."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from leanseek.cost.carbon import parse_grid
from leanseek.cost.hardware import hardware
from leanseek.cost.machines import parse_machines
from leanseek.cost.planner import config_of
from leanseek.cost.service import Service
from leanseek.cost.serving import plan_serving
from leanseek.cost.serving_page import serving_figures, serving_page
from tests.cost.pages import MOVE, check_alone, opened

FRANCE = parse_grid("france")


@pytest.fixture(scope="module")
def v3():
    service = Service(config_of("deepseek-v3"), 4489, 1000, 0.5, 32, 144)
    return plan_serving(service, parse_machines("176xh800"), speed=30)


def test_it_needs_nothing_and_runs_only_its_own_script(v3):
    data = json.loads(check_alone(serving_page("<b>V3 & more</b>", v3, FRANCE), "V3 &amp; more"))
    assert data["planned"]["hardware"] == "h800" and data["prompt"] == 4489 and data["grams_per_kwh"] == 56


def test_its_figures_are_the_plans(v3):
    data = serving_figures(v3)
    row, asked = data["hardware"]["h800"], data["planned"]
    assert row["prefill"] == pytest.approx(v3.prefill_tokens_per_s * 0.5)
    assert [texts for texts, *_ in row["rates"]] == [rate.texts for rate in v3.rates]
    # As many requests as the machines can answer: they are busy just so long.
    each_s = 4489 / v3.prefill_tokens_per_s + 1000 / v3.chosen.device_tokens_per_s
    assert asked["requests"] * each_s / asked["busy"] == pytest.approx(176)
    for name in ("h200", "b200", "mi300x"):
        other = replace(v3.machines, device=hardware(name), usd_per_device_hour=hardware(name).usd_per_hour)
        precision = v3.service.precision if name != "a100" else "bf16"
        found = plan_serving(replace(v3.service, precision=precision), other)
        assert max(rate[2] for rate in data["hardware"][name]["rates"]) == pytest.approx(
            max(rate.device_tokens_per_s for rate in found.rates)
        )
    assert "rtx-4090" not in data["hardware"], "the weights do not fit there"


def test_a_processor_is_drawn_too():
    found = plan_serving(Service(config_of("laptop"), 30, 60, 0, 1, 1, "fp32"), parse_machines("2xvirtual-cpu"))
    data = json.loads(check_alone(serving_page("small", found, FRANCE), "small"))
    assert data["planned"]["hardware"] == found.machines.device.name


@pytest.mark.browser
def test_sliders_work_in_a_browser_without_a_network(tmp_path, v3):
    with opened(tmp_path, serving_page("V3", v3, FRANCE)) as browser:
        chosen = v3.chosen
        assert browser.text("#reply-cost") == f"${float(f'{chosen.usd_per_million:.3g}'):g}"
        assert browser.text("#texts") == str(chosen.texts) and browser.text("#devices") == "176"
        point = browser.run("return document.getElementById('speed-point').getAttribute('cy')")
        browser.run(MOVE, "price", 100)
        assert browser.text("#reply-cost") == f"${float(f'{chosen.usd_per_million / 2:.3g}'):g}"
        browser.run(MOVE, "busy", 100)
        assert browser.text("#devices") == "88"
        browser.run(MOVE, "speed", 0)
        cheapest = max(v3.rates, key=lambda rate: rate.device_tokens_per_s)
        assert browser.text("#texts") == str(cheapest.texts)
        assert browser.run("return document.getElementById('speed-point').getAttribute('cy')") != point
        browser.run(MOVE, "speed", 1000)
        assert browser.text("#texts") == "1"
        prompts = browser.text("#prompt-cost")
        browser.run(MOVE, "hits", 0)
        assert float(browser.text("#prompt-cost")[1:]) == pytest.approx(2 * float(prompts[1:]), rel=0.01)
        before = browser.text("#price-said")
        browser.run(MOVE, "hardware", "b200")
        usd = hardware("b200").usd_per_hour
        assert browser.text("#price-said") == (before if usd is None else f"${usd:g}"), "no price is known: as asked"
        assert browser.complaints() == []
