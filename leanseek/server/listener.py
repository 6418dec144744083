"""Listener: a bound port and what serves on it, in this thread until Ctrl-C or in a background one."""

from __future__ import annotations

import errno
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType

import uvicorn

from leanseek.checkpoint.directory import load_model
from leanseek.engine.engine import Engine
from leanseek.engine.request import SamplingParams
from leanseek.errors import CheckpointError, ServerError, UsageError
from leanseek.log import say
from leanseek.server.app import Served, make_app
from leanseek.server.bridge import Bridge, Report
from leanseek.server.defaults import SamplingDefaults
from leanseek.server.gate import is_loopback
from leanseek.tokens.tokenizer import Tokenizer
from leanseek.units import format_bytes

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
HEADER_BYTES = 64 << 10
LONGEST_PORT = 65535


class Listener:
    """Serves one model on one address. The port is taken at once, before any weights are read.

    Args:
        load: makes the engine.
        served: what it is called and how it is sampled.
        host: address to listen on; one that other machines reach needs API keys.
        port: 0 takes any free one.
        api_keys: any of them opens; none: no key is needed.
    Raises:
        ServerError: the port is taken, or the address is not this machine's.
        UsageError: others could reach the server without a key, or the port is no port.
    """

    def __init__(
        self,
        load: Callable[[Report], Engine],
        served: Served,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        api_keys: tuple[str, ...] = (),
    ) -> None:
        if not is_loopback(host) and not api_keys:
            raise UsageError(
                f"host = {host!r} can be reached from other machines, and no API key is set; "
                "give --api-key-file FILE (one key a line), or keep to --host 127.0.0.1"
            )
        self._socket = _bind(host, port)
        self.host, self.port = host, int(self._socket.getsockname()[1])
        self.served = served
        self.bridge = Bridge(load)
        config = uvicorn.Config(
            make_app(self.bridge, served, api_keys),
            http="h11",
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=HEADER_BYTES,
        )
        self._server = _Server(config, self.bridge)
        self.bridge.on_failure = self.stop

    @classmethod
    def of_folder(
        cls,
        folder: str | Path,
        *,
        name: str | None = None,
        weights: str = "fp32",
        device: str = "cpu",
        max_batch: int = 64,
        host: str = "127.0.0.1",
        port: int = 8000,
        api_keys: tuple[str, ...] = (),
    ) -> Listener:
        """Serve a Hugging Face model folder.

        Args:
            folder: with config.json, weights and tokenizer.
            name: the model's id in requests; None: the folder's name.
            weights: "fp32" or "bf16", what the weights are kept in.
            device: "cpu" or "cuda".
            max_batch: replies that are drawn at once; further ones wait.
            host, port, api_keys: as of the class.
        Raises:
            CheckpointError: the folder's generation_config.json is wrong. What else is wrong with the
                folder shows when it is loaded.
        """
        folder = Path(folder)
        if weights not in DTYPES:
            raise UsageError(f"weights = {weights!r}: accepted are {', '.join(DTYPES)}")
        if max_batch < 1:
            raise UsageError(f"max_batch = {max_batch}: at least 1 is needed")
        served = Served(name or folder.resolve().name, _fingerprint(folder, weights), SamplingDefaults.load(folder))

        def load(report: Report) -> Engine:
            size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
            report(f"reading {format_bytes(size)} of weights", 0.0)
            tokenizer = Tokenizer.load(folder)
            model = load_model(folder, dtype=DTYPES[weights], device=device)
            report("trying a first token", 0.9)
            engine = Engine(model, tokenizer, max_batch=max_batch)
            _try(engine, folder)
            return engine

        return cls(load, served, host=host, port=port, api_keys=api_keys)

    @property
    def url(self) -> str:
        """Where the server is, without a slash at the end."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def run(self) -> None:
        """Serve until Ctrl-C (requests under way are finished; a second one drops them) or `stop`.

        Raises:
            LeanseekError: the model could not be loaded.
        """
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
            self.run()
        except Exception as error:  # the background thread's boundary
            if error is not self.bridge.failure:
                say(f"the server stopped: {error}")


class _Server(uvicorn.Server):
    """uvicorn's server, saying what Ctrl-C does."""

    def __init__(self, config: uvicorn.Config, bridge: Bridge) -> None:
        super().__init__(config)
        self._bridge = bridge

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, drop what is left at the second."""
        super().handle_exit(sig, frame)
        active = self._bridge.active
        if active and not self.force_exit:
            say(f"stopping when {active} requests are answered; Ctrl-C again drops them")


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


def _try(engine: Engine, folder: Path) -> None:
    """Draw a token, so that broken weights show now and the first client does not wait for what is done once."""
    output = engine.generate([[engine.config.bos_token_id]], SamplingParams(max_tokens=1, temperature=0.0))[0]
    if output.error is not None:
        raise CheckpointError(f"{folder}: {output.error}")


def _fingerprint(folder: Path, weights: str) -> str:
    """Return a short name that changes with the program, the form of the weights and the files."""
    try:
        program = version("leanseek")
    except PackageNotFoundError:  # run from a folder that was never installed
        program = "unknown"
    digest = hashlib.sha256(f"{program} {weights}".encode())
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        state = path.stat()
        digest.update(f"{path.name} {state.st_size} {state.st_mtime_ns}".encode())
    return f"fp_{digest.hexdigest()[:12]}"
