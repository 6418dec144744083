"""Page: the chat page's files, read once, each with its headers; nothing outside their folder is ever served."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

# What is not listed is not served: licences and lists lie beside the files that they are about.
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
# Scripts and styles are files of this server; no script and no style stands in the page or is made from text.
# A model's words can therefore not become code even if the page took them for HTML.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "font-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    # Kept, but asked about each time: after an upgrade no old file meets a new one.
    "cache-control": "no-cache",
}


@dataclass(frozen=True)
class PageFile:
    """One file as it is sent.

    Args:
        body: its bytes.
        media_type: its content type.
        headers: all headers but type and length, names in small letters; `etag` changes with the bytes.
    """

    body: bytes
    media_type: str
    headers: dict[str, str]


class Page:
    """The files of the chat page by their paths; "/" is index.html.

    A path is looked up among those that were found at the start, so no spelling of it leads out of the folder.

    Args:
        folder: with index.html; None: the one that comes with the package.
    """

    def __init__(self, folder: Path | None = None) -> None:
        root: Traversable = resources.files("leanseek.server") / "web" if folder is None else folder
        self._files = {f"/{name}": _prepare(name, file.read_bytes()) for name, file in _walk(root, "")}
        self._files["/"] = self._files["/index.html"]

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path that has a file, "/" first."""
        return tuple(sorted(self._files))

    def find(self, path: str) -> PageFile | None:
        """Return the file at a path, or None if there is none."""
        return self._files.get(path)

    def respond(self, request: Request) -> Response | None:
        """Return the answer to a request for a file, 304 where the browser has it; None if there is no such file."""
        file = self.find(request.url.path)
        if file is None:
            return None
        known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if file.headers["etag"] in known:
            return Response(status_code=304, headers=file.headers)
        return Response(file.body, headers=file.headers, media_type=file.media_type)


def _prepare(name: str, body: bytes) -> PageFile:
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return PageFile(body, TYPES[_suffix(name)], {**HEADERS, "etag": etag})


def _walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    """Yield the files that may be served, by their paths under the folder."""
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        elif _suffix(entry.name) in TYPES and not entry.name.startswith("."):
            yield prefix + entry.name, entry


def _suffix(name: str) -> str:
    return name[name.rfind(".") :] if "." in name else ""
