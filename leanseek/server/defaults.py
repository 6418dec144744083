"""SamplingDefaults: how a model wants to be sampled where a request does not say (generation_config.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leanseek.errors import CheckpointError

Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(ge=0, le=1)]
TopK = Annotated[int, Field(ge=-1, le=1 << 20)]
MinP = Annotated[float, Field(ge=0, le=1)]


class SamplingDefaults(BaseModel):
    """What a reply is sampled with unless its request says otherwise.

    Args:
        temperature: 0 takes the most likely token.
        top_p, min_p: 1 and 0 leave all tokens in.
        top_k: 0 or -1 leaves all tokens in.
        do_sample: false means greedy, whatever the temperature.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    top_k: TopK = 0
    min_p: MinP = 0.0
    do_sample: bool = True

    @property
    def usual_temperature(self) -> float:
        """The temperature, or 0 where the model is to be decoded greedily."""
        return self.temperature if self.do_sample else 0.0

    @classmethod
    def load(cls, folder: str | Path) -> SamplingDefaults:
        """Read a model folder's generation_config.json; without one, plain sampling.

        Raises:
            CheckpointError: the file is not JSON, or a value is out of its range.
        """
        path = Path(folder) / "generation_config.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise CheckpointError(f"{path}: not valid JSON ({error}); mend it or delete it") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: a JSON object is needed, got {type(values).__name__}; mend it or delete it")
        try:
            # null means "not said", as in the files that transformers writes.
            return cls.model_validate({key: value for key, value in values.items() if value is not None})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise CheckpointError(
                f"{path}: {first['loc'][0]} = {first['input']!r}: {first['msg'].lower()}; mend it or delete it"
            ) from None
