"""IncrementalDecoder: tokens into text as they come; and the byte that each character of a token stands for."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class IncrementalDecoder:
    """Turns tokens into text as they come, holding back characters that are not complete yet.

    Args:
        bytes_of: gives the bytes that a token stands for.
    """

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Return the text that this token completes; "" while a character is incomplete."""
        return self._utf8.decode(self._bytes_of(token_id))

    def flush(self) -> str:
        """Return what is held back, incomplete characters as U+FFFD."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level token stands for.

    Source: GPT-2's encoder: printable Latin-1 bytes are themselves, the others follow from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shifted = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(shifted)}


BYTES = _byte_alphabet()
