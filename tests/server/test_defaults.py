from __future__ import annotations

import pytest

from leanseek.errors import CheckpointError
from leanseek.server.defaults import SamplingDefaults


def test_without_a_file_sampling_is_plain(tmp_path):
    assert SamplingDefaults.load(tmp_path) == SamplingDefaults(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0)


def test_file(tmp_path):
    text = '{"temperature": 0.6, "top_p": 0.95, "top_k": null, "do_sample": true, "eos_token_id": [1, 2]}'
    (tmp_path / "generation_config.json").write_text(text)
    defaults = SamplingDefaults.load(tmp_path)
    assert (defaults.usual_temperature, defaults.top_p, defaults.top_k) == (0.6, 0.95, 0)
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6, "do_sample": false}')
    assert SamplingDefaults.load(tmp_path).usual_temperature == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [("{", "not valid JSON"), ("[]", "a JSON object"), ('{"top_p": 3}', "top_p = 3"), ('{"temperature": "x"}', "'x'")],
)
def test_a_wrong_file_is_told(tmp_path, text, told):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=told):
        SamplingDefaults.load(tmp_path)
