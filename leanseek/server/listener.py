"""Listener: a bound port and what serves on it, in this thread until Ctrl-C or in a background one."""

from __future__ import annotations

import asyncio
import errno
import gc
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from leanseek.engine.engine import Engine
from leanseek.errors import ServerError, UsageError
from leanseek.log import say
from leanseek.server.app import make_site
from leanseek.server.bill import Bill
from leanseek.server.bridge import QUEUE_S, Bridge, Report
from leanseek.server.gate import is_loopback
from leanseek.server.loading import Loading, keep_objects
from leanseek.server.protocol import Protocol
from leanseek.server.service import Served
from leanseek.server.store import Store

MOST_REQUESTS = 1024
MOST_USD_PER_HOUR = 1_000_000
LONGEST_PORT = 65535
# How long replies may go on after the first signal, and how long clients then have to take what was said.
DRAIN_S = 120.0
TAKING_S = 5.0


class Listener:
    """Serves one model on one address. The port is taken at once, before any weights are read.

    Args:
        load: makes the engine.
        served: what it is called and how it is sampled.
        host: address to listen on; one that other machines reach needs API keys.
        port: 0 takes any free one.
        api_keys: any of them opens; none: no key is needed.
        insecure: whether others may reach it without a key.
        most_requests: how many may be under way at once; further ones are told to come later.
        queue_s: how long a request may wait for its turn; then it is dropped, and its client told.
        bill: divides what the work costs; None: nothing is counted.
        access_log: whether each request is told on standard error.
        cors_origins: web pages of these origins may ask.
        tls: files of a certificate and of its key; None: plain HTTP.
        drain_s: how long requests under way may go on once the server is to stop; then they end where they are.
    Raises:
        ServerError: the port is taken, or the address is not this machine's.
        UsageError: others could reach the server without a key, or the port or the certificate is none.
    """

    def __init__(
        self,
        load: Callable[[Report], Engine],
        served: Served,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        api_keys: tuple[str, ...] = (),
        insecure: bool = False,
        most_requests: int = MOST_REQUESTS,
        queue_s: float = QUEUE_S,
        bill: Bill | None = None,
        access_log: bool = False,
        cors_origins: tuple[str, ...] = (),
        tls: tuple[Path, Path] | None = None,
        drain_s: float = DRAIN_S,
    ) -> None:
        if not 0 <= drain_s < float("inf"):
            raise UsageError(f"drain_s = {drain_s}: 0 or more seconds are accepted")
        if not is_loopback(host) and not api_keys and not insecure:
            raise UsageError(
                f"host = {host!r} can be reached from other machines, and no API key is set; "
                "give --api-key-file FILE (one key a line), or keep to --host 127.0.0.1, or say --insecure"
            )
        if most_requests < 1:
            raise UsageError(f"max_requests = {most_requests}: at least 1 is needed")
        if not 0 < queue_s < float("inf"):
            raise UsageError(f"queue_s = {queue_s}: more than 0 seconds are needed")
        _check_tls(tls)
        self._socket = _bind(host, port)
        self.host, self.port = host, int(self._socket.getsockname()[1])
        self.served = served
        self._scheme = "http" if tls is None else "https"
        self.bridge = Bridge(load, most_requests=most_requests, queue_s=queue_s, bill=bill)
        site = make_site(
            self.bridge,
            served,
            api_keys,
            cors_origins=cors_origins,
            access_log=access_log,
            any_host=insecure,
        )
        config = uvicorn.Config(
            site.app,
            http=Protocol.behind(site.turnstile),
            ws="none",
            loop="uvloop",
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nothing asks who the client is
            ssl_certfile=None if tls is None else tls[0],
            ssl_keyfile=None if tls is None else tls[1],
        )
        self._server = _Server(config, self.bridge, drain_s)
        self.bridge.on_failure = self.stop

    @classmethod
    def of_folder(
        cls,
        folder: str | Path,
        *,
        name: str | None = None,
        aliases: tuple[str, ...] = (),
        weights: str = "fp32",
        device: str = "cpu",
        max_batch: int = 64,
        store: Store | None = None,
        drafts: int | None = None,
        invariant: bool = True,
        usd_per_hour: float | None = None,
        **options: Any,
    ) -> Listener:
        """Serve a Hugging Face model folder.

        Args:
            folder: with config.json, weights and tokenizer.
            name: the model's id in requests; None: the folder's name.
            aliases: further names, besides DeepSeek's.
            weights: "fp32" or "bf16", what the weights are kept in.
            device: "cpu" or "cuda".
            max_batch: replies that are drawn at once; further ones wait.
            store: room for the texts' latents; None: what the machine has room for.
            drafts: tokens that the MTP layer drafts at once; None: 1 where there is such a layer.
            invariant: whether replies have the same bits whatever else runs; on a CPU.
            usd_per_hour: what the machine costs; None: answers do not tell what they cost.
            options: as of the class.
        Raises:
            CheckpointError: the folder's generation_config.json is wrong. What else is wrong with the
                folder shows when it is loaded.
        """
        if usd_per_hour is not None and not 0 <= usd_per_hour < MOST_USD_PER_HOUR:
            raise UsageError(f"usd_per_hour = {usd_per_hour}: 0 to {MOST_USD_PER_HOUR:,} is accepted")
        folder = Path(folder)
        loading = Loading(folder, weights, device, max_batch, store or Store(), drafts, invariant)
        return cls(loading.engine, loading.served(name, aliases), bill=Bill(loading.meter(), usd_per_hour), **options)

    @property
    def url(self) -> str:
        """Where the server is, without a slash at the end."""
        return f"{self._scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def run(self) -> None:
        """Serve until Ctrl-C, SIGTERM or `stop`; requests under way are finished, as far as `drain_s` lets them.

        A second signal ends them where they are, a third one drops them. The process is taken to be for this alone:
        from when the model is loaded until the end, the garbage collector passes over what was there by then.

        Raises:
            LeanseekError: the model could not be loaded.
        """
        self.bridge.on_ready = keep_objects
        try:
            self._serve()
        finally:
            gc.unfreeze()

    def _serve(self) -> None:
        self.bridge.start()
        try:
            self._server.run(sockets=[self._socket])
        except KeyboardInterrupt:
            pass  # uvicorn raises it again when it has drained
        finally:
            self._socket.close()
            self.bridge.close()
        if self.bridge.failure is not None:
            raise self.bridge.failure

    def stop(self) -> None:
        """Finish what is under way, then stop; from any thread."""
        self._server.should_exit = True

    @contextmanager
    def background(self) -> Iterator[Listener]:
        """Serve in a background thread; inside the block the model is loaded.

        Raises:
            LeanseekError: the model could not be loaded.
        """
        thread = threading.Thread(target=self._run_quietly, name="leanseek-server", daemon=True)
        thread.start()
        try:
            self.bridge.wait()
            yield self
        finally:
            self.stop()
            thread.join()

    def _run_quietly(self) -> None:
        """Serve; a failure to load is raised by `bridge.wait`, in the thread that waits."""
        try:
            self._serve()
        except Exception as error:  # the background thread's boundary
            if error is not self.bridge.failure:
                say(f"the server stopped: {error}")


class _Server(uvicorn.Server):
    """uvicorn's server, saying what Ctrl-C does, and patient for so long."""

    def __init__(self, config: uvicorn.Config, bridge: Bridge, drain_s: float) -> None:
        super().__init__(config)
        self._bridge, self._drain_s, self._signals = bridge, drain_s, 0

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests under way go on for a while; then end them, and then leave those who do not listen."""
        loop = asyncio.get_running_loop()
        ends = loop.call_later(self._drain_s, self._end), loop.call_later(self._drain_s + TAKING_S, self._leave)
        try:
            await super().shutdown(sockets)
        finally:
            for end in ends:
                end.cancel()

    def _end(self) -> None:
        if self._bridge.active:
            say(f"{self._bridge.active} requests are not answered after {self._drain_s:g} s; they end where they are")
        self._bridge.interrupt()

    def _leave(self) -> None:
        self.force_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, end replies where they are at the second, drop what is left at the third."""
        self._signals += 1
        if sig == signal.SIGINT:
            self._captured_signals.append(sig)  # raised again when all is done; SIGTERM is no failure
        self.should_exit = True
        active = self._bridge.active
        if self._signals == 1 and active:
            say(
                f"stopping when {active} requests are answered, within {self._drain_s:g} s; "
                "Ctrl-C again ends them where they are"
            )
        elif self._signals == 2:
            self._bridge.interrupt()
        elif self._signals > 2:
            self.force_exit = True


def _check_tls(tls: tuple[Path, Path] | None) -> None:
    if tls is None:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(*tls)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"{tls[0]}, {tls[1]}: no certificate with its key ({error}); give PEM files to --tls-cert and --tls-key"
        ) from None


def _bind(host: str, port: int) -> socket.socket:
    if not 0 <= port <= LONGEST_PORT:
        raise UsageError(f"port = {port}: 1 to {LONGEST_PORT} are accepted, and 0 for any free one")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} of {host} is taken by another program; give another with --port (0: any free one)"
        elif error.errno == errno.EACCES:
            message = f"port {port} may not be taken without more rights; give one from 1024 on with --port"
        else:
            message = f"cannot listen on {host}, port {port}: {error.strerror or error}; is --host this machine's?"
        raise ServerError(message) from None
