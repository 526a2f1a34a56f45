"""Files that are written whole or not at all, and the error that a person can mend."""
import os
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:      # not on Windows: two runs in one folder are not noticed there
    fcntl = None


class UserError(Exception):
    """A file or an option cannot be used; the text says which, what is wrong and what to do."""


def one_line(error):
    """The message of an error in printable characters on one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(character for character in text if character.isprintable())[:200]


def write_atomically(path, content):
    """Writes text or bytes so that `path` holds, at any moment, either the former file or the whole new one."""
    partial = Path(f"{path}.partial")
    with naming(path):
        try:
            with open(partial, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def naming(path):
    """Puts the file's path into an OSError; that of a failed write has none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def refuse_to_overwrite(paths, overwrite):
    """Raises UserError if one of the paths exists, unless overwrite is set."""
    existing = [str(path) for path in paths if path.exists()]
    if existing and not overwrite:
        raise UserError(f"{', '.join(existing)}: exists already; choose another folder, or replace it with --overwrite")


def keep_aside(paths):
    """Renames the files that exist to `name.1.suffix`, with the first number that is free for all of them."""
    def numbered(path, number):
        return path.with_name(f"{path.stem}.{number}{path.suffix}")
    existing = [path for path in paths if path.exists()]
    number = 1
    while any(numbered(path, number).exists() for path in paths):
        number += 1
    for path in existing:
        path.rename(numbered(path, number))
    if existing:
        print(f"kept the files of an earlier run: {', '.join(str(numbered(path, number)) for path in existing)}")


def lock(file, path):
    """Locks an open file for as long as it is open; UserError where another process holds it."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{path}: another run is writing to this folder; choose another --output_dir") from error
    return file
