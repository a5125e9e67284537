"""The page and its data on the disk: both whole or not at all, and nothing of somebody else's written over."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from chainrule.errors import ChainruleError

SCHEMA = "chainrule.report/1"


def data_path(path: Path) -> Path:
    """Where the data of a page are: beside it, ``report.json`` for ``report.html``."""
    return path.with_suffix(".json") if path.suffix.lower() in (".html", ".htm") else path.with_name(f"{path.name}.json")


def refuse_unwritable(path: Path) -> None:
    """Before any work is done: is there a place for the page and its data?

    Raises:
        ChainruleError: it is a folder, its folder is not there, or a file of other data is in the way.
    """
    beside = data_path(path)
    for file in (path, beside):
        if file.is_dir():
            raise _cannot_write(file, "it is a folder")
    if not path.parent.is_dir():
        raise _cannot_write(path, "its folder does not exist")
    if beside.exists() and not _is_ours(beside):
        raise ChainruleError(
            f"{beside} is there, and no report wrote it",
            given=f"the page {path}, whose data go beside it",
            required="a place where the data write over nothing else",
            instead=f"{path.stem}-report.html",
        )


def _is_ours(path: Path) -> bool:
    with contextlib.suppress(OSError, UnicodeDecodeError), path.open(encoding="utf-8") as file:
        return f'"{SCHEMA}"' in file.read(200)
    return False


def write_both(page: str, data: Any, path: Path) -> None:
    """Writes the page and its data."""
    beside = data_path(path)
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    with _whole(path, page), _whole(beside, text + "\n"):
        pass


@contextlib.contextmanager
def _whole(path: Path, text: str) -> Any:
    """Writes beside the place on entry, moves there on exit; a failure leaves what was there."""
    scratch = None
    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with open(handle, "w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(text)
        os.chmod(scratch, mode)
        yield
        os.replace(scratch, path)
    except OSError as error:
        raise _cannot_write(path, error.strerror or str(error)) from None
    finally:
        if scratch is not None:
            with contextlib.suppress(OSError):
                os.unlink(scratch)


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current


def _cannot_write(path: Path, why: str) -> ChainruleError:
    return ChainruleError(
        f"cannot write the page {path}: {why}",
        given=str(path),
        required="a file in a folder that exists and can be written to",
        instead="--path with such a place, or path=... from Python",
    )
