"""Digests of JSON values, of files and of the source code."""

import hashlib
import json
import pathlib
from typing import Any

from etils import epath


def json_digest(value: Any) -> str:
    """Digest "sha256:..." of a JSON value. The order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def file_digest(file: epath.PathLike) -> str:
    """Digest "sha256:..." of the bytes of a file."""
    with epath.Path(file).open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def source_digest() -> str:
    """Digest of the source code of the package."""
    root = pathlib.Path(__file__).parent.parent
    files = sorted(root.rglob("*.py"))
    return json_digest({str(file.relative_to(root)): file.read_text() for file in files})
