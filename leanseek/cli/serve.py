"""leanseek serve: an HTTP server that OpenAI's and DeepSeek's clients can talk to, and a chat page."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from leanseek import variables
from leanseek.log import say
from leanseek.run import model_folder


def serve(
    model: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    weights: Literal["fp32", "bf16"] = "fp32",
    device: Literal["cpu", "cuda"] = "cpu",
    api_key_file: Path | None = None,
    max_batch: int = 64,
    name: str | None = None,
) -> None:
    """Serve a model over HTTP in OpenAI's protocol, with a chat page.

    It stops with Ctrl-C, when the requests under way are answered.

    Example: leanseek serve runs/laptop --port 8000

    Args:
        model: A run folder (its latest checkpoint) or a model folder.
        host: Address to listen on; one that other machines can reach needs --api-key-file.
        port: Port to listen on; 0 takes any free one.
        weights: What the weights are kept in.
        device: What computes.
        api_key_file: File of API keys, one a line; without it no key is needed.
        max_batch: Replies that are drawn at once; further ones wait their turn.
        name: What requests call the model; without it, the folder's name.
    """
    folder = model_folder(model)
    # Here, so that a wrong folder is told at once and --help does not wait for torch.
    import torch

    from leanseek.server.gate import read_keys
    from leanseek.server.listener import Listener

    if (threads := variables.threads()) is not None:
        torch.set_num_threads(threads)
    listener = Listener.of_folder(
        folder,
        name=name or model.resolve().name,
        weights=weights,
        device=device,
        max_batch=max_batch,
        host=host,
        port=port,
        api_keys=read_keys(api_key_file) if api_key_file is not None else (),
    )
    say(f"serving {folder} as {listener.served.name!r}")
    say(f"  chat page        {listener.url}/")
    say(f"  OpenAI base URL  {listener.url}/v1 ({'an API key is needed' if api_key_file else 'any API key'})")
    say(f"  ready?           {listener.url}/ready")
    say("Ctrl-C stops it")
    listener.run()
