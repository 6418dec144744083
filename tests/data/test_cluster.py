"""A Ray Data job on one machine: the shards are those that one process makes, also after a stop."""

from __future__ import annotations

import json
import random
import sys

import pytest

import leanseek.data.preparation as module
from leanseek.data.cluster import Cluster
from leanseek.data.preparation import Preparation, Wishes
from leanseek.errors import ConfigError, DataError

WISHES = Wishes(validation_fraction=0.1, filter=True, shard_tokens=2000, fim=0.2)


def test_without_ray_one_is_told_what_to_install(monkeypatch, tiny_tokenizer):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"leanseek data --cluster needs Ray.*leanseek\[cluster\]"):
        Cluster(tiny_tokenizer, filter=False, deduplicate=False, seed=0, address="local")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_of_ray_data_makes_the_same_shards_also_when_stopped(tmp_path, tiny_tokenizer, monkeypatch):
    pytest.importorskip("ray.data", reason="needs Ray: pip install 'leanseek[cluster]'")
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 5000)
    rng = random.Random(0)
    words = "the of and sum total grid walk largest number step left right answer think line".split()
    documents = [" ".join(rng.choices(words, k=rng.randint(15, 60))) for _ in range(900)]
    (tmp_path / "texts").mkdir()
    for name, first, last in (("a", 0, 500), ("b", 500, 520), ("c", 520, 900)):
        lines = [json.dumps({"text": text}) + "\n" for text in documents[first:last]]
        (tmp_path / "texts" / f"{name}.jsonl").write_text("".join(lines))
    sources = [str(tmp_path / "texts")]
    alone = Preparation(sources, tmp_path / "alone", tiny_tokenizer, WISHES).run()
    readers = Cluster(tiny_tokenizer, filter=True, deduplicate=False, seed=0, address="local")
    try:

        class Stop(Exception):
            pass

        class Impatient:
            count = 0

            def advance(self, count=1, note=""):
                self.count += 1
                if self.count == 4:
                    raise Stop

        with pytest.raises(Stop):
            Preparation(sources, tmp_path / "job", tiny_tokenizer, WISHES, readers).run(Impatient())
        again = Preparation(sources, tmp_path / "job", tiny_tokenizer, WISHES, readers)
        assert again.begun
        job = again.run()
        assert alone == job and len(alone["shards"]["train"]) > 3
        for path in (tmp_path / "alone").glob("*.npy"):
            assert path.read_bytes() == (tmp_path / "job" / path.name).read_bytes()
        (tmp_path / "bad.jsonl").write_bytes(b"[]\n")
        with pytest.raises(DataError, match=r"bad\.jsonl, line 1"):
            Preparation([str(tmp_path / "bad.jsonl")], tmp_path / "none", tiny_tokenizer, WISHES, readers).run()
    finally:
        readers.close()
