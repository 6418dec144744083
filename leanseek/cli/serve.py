"""leanseek serve: an HTTP server that OpenAI's, DeepSeek's and Anthropic's clients can talk to, and a chat page."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from leanseek import variables
from leanseek.errors import UsageError
from leanseek.log import say
from leanseek.run import model_folder


def serve(
    model: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    weights: Literal["fp32", "bf16", "fp8", "int8", "int4"] = "fp32",
    device: Literal["cpu", "cuda"] = "cpu",
    api_key_file: Path | None = None,
    insecure: bool = False,
    max_batch: int = 64,
    max_requests: int = 1024,
    queue_s: float = 600.0,
    cache_gib: float | None = None,
    cache_dir: Path | None = None,
    cache_disk_gib: float = 8.0,
    drafts: int | None = None,
    fast: bool = False,
    name: str | None = None,
    alias: tuple[str, ...] = (),
    usd_per_hour: float | None = None,
    access_log: bool = False,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    cors_origin: tuple[str, ...] = (),
    drain_s: float = 120.0,
) -> None:
    """Serve a model over HTTP in OpenAI's, DeepSeek's and Anthropic's protocols, with a chat page.

    It stops with Ctrl-C or SIGTERM, when the requests under way are answered or --drain-s is over; a second signal ends
    them where they are.

    Example: leanseek serve runs/laptop --port 8000

    Example: leanseek serve runs/laptop --host 0.0.0.0 --api-key-file keys.txt --cache-dir cache

    Args:
        model: A run folder (its latest checkpoint) or a model folder.
        host: Address to listen on; one that other machines can reach needs --api-key-file or --insecure.
        port: Port to listen on; 0 takes any free one.
        weights: What the weights are kept in; fp8: as an FP8 folder has them; int8 and int4 are packed at the first
            time, and kept in a cache.
        device: What computes.
        api_key_file: File of API keys, one a line; without it no key is needed.
        insecure: Let other machines in without a key.
        max_batch: Replies that are drawn at once; further ones wait their turn.
        max_requests: Requests under way at once, those that wait included; further ones are told to come later.
        queue_s: Seconds that a request may wait for its turn; then it is dropped and told to come later (503).
        cache_gib: Memory for what was read and said, in GiB; without it, what is free beside the weights, but for a
            tenth and at least 1 GiB, as far as it is of use.
        cache_dir: Folder where what was read and said is kept over a restart; without it, nowhere.
        cache_disk_gib: Most that this folder may take, in GiB.
        drafts: Tokens that the MTP layer drafts at once, where that is found to pay; without it, 1 if there is such
            a layer.
        fast: Let the last bits of log-probabilities, and with them near ties, depend on what else runs: quicker on a
            CPU for bf16 and dense models; those with latent attention and fp32, int8 or int4 weights give nothing for
            sameness, but that they read long prompts more slowly if packed.
        name: What requests call the model; without it, the folder's name.
        alias: A further name for it, besides DeepSeek's own; may be given several times.
        usd_per_hour: What the machine costs; answers then tell what they cost.
        access_log: Write a line of JSON for each request to standard error, with nothing of what was said.
        tls_cert: File of a certificate (PEM), to serve HTTPS; goes with --tls-key.
        tls_key: File of its private key.
        cors_origin: Let web pages of this origin ask, as https://example.com; may be given several times.
        drain_s: Seconds that requests under way may go on once the server is to stop; then they end where they are.
    """
    if (tls_cert is None) != (tls_key is None):
        raise UsageError("--tls-cert and --tls-key go together: give both, or neither")
    folder = model_folder(model)
    # Here, so that a wrong folder is told at once and --help does not wait for torch.
    import torch

    from leanseek.kernels.registry import notice
    from leanseek.server.gate import read_keys
    from leanseek.server.listener import Listener
    from leanseek.server.store import Store

    if (threads := variables.threads()) is not None:
        torch.set_num_threads(threads)
    listener = Listener.of_folder(
        folder,
        name=name or model.resolve().name,
        aliases=alias,
        weights=weights,
        device=device,
        max_batch=max_batch,
        store=Store(cache_gib, cache_dir, cache_disk_gib),
        drafts=drafts,
        invariant=not fast,
        usd_per_hour=usd_per_hour,
        host=host,
        port=port,
        api_keys=read_keys(api_key_file) if api_key_file is not None else (),
        insecure=insecure,
        most_requests=max_requests,
        queue_s=queue_s,
        access_log=access_log,
        cors_origins=cors_origin,
        drain_s=drain_s,
        tls=(tls_cert, tls_key) if tls_cert is not None and tls_key is not None else None,
    )
    if line := notice():
        say(line)
    say(f"serving {folder} as {listener.served.name!r}")
    say(f"  chat page           {listener.url}/")
    say(f"  OpenAI base URL     {listener.url}/v1 ({'an API key is needed' if api_key_file else 'any API key'})")
    say(f"  Anthropic base URL  {listener.url}")
    say(f"  ready?              {listener.url}/ready")
    say("Ctrl-C stops it")
    listener.run()
