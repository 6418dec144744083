"""Sources: a user's own text: .txt files, and .jsonl files with a "text" in each line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from leanseek.errors import DataError

ENDINGS = (".txt", ".jsonl")
# Whether or not the file starts with a byte order mark.
ENCODING = "utf-8-sig"


def source_files(sources: Sequence[str]) -> list[Path]:
    """Return every .txt and .jsonl file of the given files and folders, folders searched to any depth, sorted.

    Raises:
        DataError: a source does not exist or is another kind of file, or a folder has no such file.
    """
    files: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found = sorted(f for f in path.rglob("*") if f.suffix in ENDINGS and f.is_file())
            if not found:
                raise DataError(
                    f"{path} has no {' or '.join(ENDINGS)} file in it: put text there, or name another folder"
                )
            files += found
        elif path.is_file():
            if path.suffix not in ENDINGS:
                raise DataError(
                    f"{path}: {' and '.join(ENDINGS)} files are read, not {path.suffix or 'files without ending'}"
                )
            files.append(path)
        else:
            raise DataError(f"{path}: there is no such file or folder (data.sources)")
    return files


def read_documents(sources: Sequence[str]) -> Iterator[str]:
    """Yield documents: a .txt file is one, each line of a .jsonl file is one; blank ones are left out.

    Args:
        sources: files and folders.
    Raises:
        DataError: as `source_files`; or a file that is not UTF-8, or a line that is not an object with a text.
    """
    for path in source_files(sources):
        try:
            if path.suffix == ".txt":
                text = path.read_text(encoding=ENCODING)
                if text.strip():
                    yield text
                continue
            with path.open(encoding=ENCODING) as file:
                for number, line in enumerate(file, 1):
                    text = _text_of(line, f"{path}, line {number}") if line.strip() else ""
                    if text.strip():
                        yield text
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text ({error})") from None
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error})") from None


def _text_of(line: str, where: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise DataError(f'{where}: an object with a "text" is needed, such as {{"text": "..."}}')
    # JSON may bring half a surrogate pair, which is no character: it becomes U+FFFD.
    text: str = record["text"].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
