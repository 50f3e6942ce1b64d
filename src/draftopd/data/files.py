"""Files of records: one JSON object a line, or one JSON array of them; as they are, or compressed by gzip."""

import gzip
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from draftopd.errors import DraftError

Records = Iterable[tuple[str, Any]]  # (where it stands, for error messages; the record)
# the first bytes of a file
GZIP = b"\x1f\x8b"
PARQUET = b"PAR1"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def prompt_file(path: str) -> Path:
    """Raises DraftError where there is no such file."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise DraftError(f"no prompt file {file}: give the path of a .jsonl or .json file, or one of them as .gz")
    return file


def stem(path: str) -> str:
    """A file's name without what tells its kind: mine for mine.jsonl.gz."""
    return Path(path.removesuffix(".gz")).stem


def read_file(path: Path) -> Records:
    """Records of a file, in order; raises DraftError at the first that is not JSON, and names it."""
    content = _content(path).removeprefix(BYTE_ORDER_MARK)
    return _array(path, content) if content.lstrip().startswith(b"[") else _lines(path, content)


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if content.startswith(PARQUET):
        folder = path.absolute().parent
        raise DraftError(f"{path} is a Parquet file: read its folder with prompts=hub prompts.path={folder}")
    if not content.startswith(GZIP):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DraftError(f"{path} cannot be unpacked ({error}): make it anew with gzip") from error


def _array(path: Path, content: bytes) -> Records:
    try:
        records = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DraftError(
            f"{path} begins like a JSON array and is none ({error}): write one array of objects, or one object a line"
        ) from error
    return [(f"{path} record {number}", record) for number, record in enumerate(records, 1)]


def _lines(path: Path, content: bytes) -> Records:
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            if line.strip():
                yield f"{path}:{number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DraftError(
                f"{path}:{number} is not JSON ({error}): write one JSON object a line, or one array of objects"
            ) from error
