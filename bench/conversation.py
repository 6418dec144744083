"""Conversation: how many tokens a ten-turn conversation with tools reads anew, and again after kill -9 and a restart.

OpenAI's own client talks to `leanseek serve --cache-dir`. The peer is a server that reads every prompt whole, which is
what the same turns take without a cache; `new` is the least there is: what the client added since the last reply. After
the last turn the server is killed, started again, and asked for one more turn.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from process import leanseek
from rows import arguments, publish, repeats, row

TURNS = 10
CONTEXT_TOKENS = 16384
PARAMETERS = {
    "type": "object",
    "properties": {"room": {"enum": ["hall", "attic", "cellar"]}, "on": {"type": "boolean"}},
    "required": ["room", "on"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "switch", "parameters": PARAMETERS, "strict": True}}


def with_room(model: Path, folder: Path) -> None:
    """Copy a model folder, with a context that ten turns fit into; what it says does not matter here."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("resume"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": CONTEXT_TOKENS}))


class Conversation:
    """A conversation that goes on, and what each of its turns took."""

    def __init__(self, seed: int) -> None:
        self.messages: list[dict[str, Any]] = [{"role": "user", "content": f"Light the house, please ({seed})."}]
        self.seed, self.said_tokens = seed, 0
        self.turns: list[dict[str, float]] = []

    def turn(self, url: str) -> None:
        """Say one turn: the model calls the tool, the client answers the call."""
        import openai

        with openai.OpenAI(base_url=url, api_key="none", timeout=120) as client:
            start_s = time.perf_counter()
            answer = client.chat.completions.create(
                model="model",
                messages=self.messages,
                tools=[TOOL],
                tool_choice="required",
                parallel_tool_calls=False,
                max_tokens=1000,
                seed=self.seed + len(self.turns),
                extra_body={"thinking": {"type": "disabled"}},  # else small models think until they are cut off
            )
            took_s = time.perf_counter() - start_s
        (call,) = answer.choices[0].message.tool_calls or ()
        json.loads(call.function.arguments)
        usage = answer.usage
        assert usage is not None
        read = usage.model_dump()["prompt_cache_miss_tokens"]
        new = usage.prompt_tokens - self.said_tokens
        self.turns.append({"read": read, "prompt": usage.prompt_tokens, "new": new, "seconds": round(took_s, 3)})
        self.said_tokens = usage.prompt_tokens + usage.completion_tokens
        self.messages += [
            answer.choices[0].message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": f"done, {len(self.turns)} of {TURNS}"},
        ]


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", type=Path, default=Path("runs/laptop"), help="a run or model folder")
    options = parser.parse_args()
    from leanseek.run import model_folder

    folder = model_folder(options.model)
    talks, again = [], []
    with tempfile.TemporaryDirectory() as place:
        model, cache = Path(place) / "model", Path(place) / "cache"
        with_room(folder, model)
        room = ("--cache-dir", cache, "--cache-gib", "0.5")
        for number in range(repeats(options)):
            talk = Conversation(1000 * number)
            with leanseek(model, *room) as url:
                for _ in range(TURNS):
                    talk.turn(f"{url}/v1")
                time.sleep(1.0)  # what writes to disk is some milliseconds behind
            with leanseek(model, *room) as url:
                talk.turn(f"{url}/v1")
            talks.append(talk.turns[:TURNS])
            again.append(talk.turns[TURNS])
    name = folder.parents[1].name if "checkpoints" in folder.parts else folder.name
    later = [[turn for turn in talk[1:]] for talk in talks]
    found = row(
        f"{name}, turns 2 to {TURNS} of a conversation with tools, against reading each prompt whole",
        "tokens read",
        [sum(turn["read"] for turn in talk) for talk in later],
        [sum(turn["prompt"] for turn in talk) for talk in later],
        packages=("torch", "openai"),
        less_is_better=True,
        new=[sum(turn["new"] for turn in talk) for talk in later],
        by_turn=talks[0],
    )
    publish("conversation", found, options)
    found = row(
        f"{name}, turn {TURNS + 1} after kill -9 and a restart, against reading the prompt whole",
        "tokens read",
        [turn["read"] for turn in again],
        [turn["prompt"] for turn in again],
        packages=("torch", "openai"),
        less_is_better=True,
        new=[turn["new"] for turn in again],
    )
    publish("conversation", found, options)


if __name__ == "__main__":
    main()
