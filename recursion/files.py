"""Files: whole files replace whole files, errors are sentences, and the folders of runs have names."""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

RUNS = Path("runs")
LONGEST = 100  # characters of a notation in a folder's name


@contextlib.contextmanager
def explained(doing: str, path: Path) -> Iterator[None]:
    """Turn an OSError inside into one of the same type whose message says what failed, on which path, and why."""
    try:
        yield
    except OSError as error:
        raise type(error)(f"cannot {doing} {path}: {error.strerror or error}") from error


def is_users(error: Exception) -> bool:
    """Whether an error is one that a user can mend, rather than a bug: also any that says its ``fix``."""
    return isinstance(error, (ValueError, TypeError, OSError)) or hasattr(error, "fix") or is_memory(error)


def is_memory(error: Exception) -> bool:
    """Whether there was not enough memory; torch says so by a RuntimeError."""
    words = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(one in str(error) for one in words)
    )


def reason(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = str(error) or type(error).__name__
    if is_memory(error):
        wanted = re.search(r"allocate (\d+) bytes", text)
        size = f" (it asked for {int(wanted[1]) / 2**30:,.1f} GiB)" if wanted else ""
        text = f"there is not enough memory{size}; lower the batch, the unroll or the sizes of the task"
    line = " ".join(text.split())
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in line)  # what a terminal would obey


def replace_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` at once: after a crash at any moment the file is the old one or the new one, whole.

    The bytes go to a temporary file beside it, are flushed to the disk, and take its name; the folder is flushed too.
    Raises OSError with one sentence; the temporary is removed and what was there before stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with explained("write", path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            flush_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def flush_folder(folder: Path) -> None:
    """Have the names in ``folder`` on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def folder_name(text: str) -> str:
    """Notation as the name of a folder; a long one is cut and ends in eight digits of its hash."""
    name = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
    if len(name) <= LONGEST:
        return name
    return f"{name[:LONGEST]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
