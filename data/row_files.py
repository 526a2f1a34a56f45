"""HDF5 files that are written a row at a time, by a run that can be stopped at any moment and resumed.

While they grow, the files are named `FILE.partial`, and a log beside them has a line for each item that is done. A line
is written once its rows are in the files; a run that goes on does everything after the last whole line again.
"""
import json
import os
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np

from data.files import UserError, one_line
from data.hdf5 import new_h5, reserve_room

KEY = "avadataset"


class RowFiles:
    """The feature files of one run, to be used in a `with`.

    layouts: {path: (shape of a row, dtype)}; items: how many there are at most; log_path: the log's final name;
    settings: whatever must be the same in a run that goes on; attributes: of every dataset; fixed_rows: row i is item
    i, and 0 where that failed; else failed items have no row.

    Raises UserError where the partial files are of other settings.
    """

    def __init__(self, layouts, items, log_path, settings, attributes, fixed_rows):
        self.layouts, self.items, self.log_path, self.settings = layouts, items, log_path, settings
        self.attributes, self.fixed_rows = attributes, fixed_rows
        self._stack = ExitStack()

    def __enter__(self):
        log = partial(self.log_path)
        self.entries = read_log(log, self.settings)
        if self.entries is None:
            self.entries = []
            for path, (row_shape, dtype) in self.layouts.items():
                create(path, (self.items, *row_shape), dtype, self.attributes)
            log.write_text(_line(self.settings))
        self._log = self._stack.enter_context(open(log, "a"))
        self._files = []
        if len(self.entries) < self.items:
            self._files = [self._stack.enter_context(_open_to_write(partial(path))) for path in self.layouts]
        return self

    def __exit__(self, *_):
        self._stack.close()

    @property
    def failed(self):
        """Items without features, in their order."""
        return [item for item, entry in enumerate(self.entries) if entry["error"]]

    def add(self, entry, rows):
        """Writes the next item: its entry for the log, and a row for each file; None where it failed (`error`: why)."""
        if rows is not None or self.fixed_rows:
            row = len(self.entries) - (0 if self.fixed_rows else len(self.failed))
            for file, value in zip(self._files, rows or [0] * len(self._files)):
                file[KEY][row] = value
                file.flush()
        self.entries.append(entry)
        self._log.write(_line(entry))
        self._log.flush()

    def finish(self):
        """Gives the files their names, once all items are done."""
        self._stack.close()
        for path in self.layouts:
            if partial(path).exists():      # else it has its name already
                self._finish(path)
        os.replace(partial(self.log_path), self.log_path)

    def discard(self):
        """Removes everything, where no item has features."""
        self._stack.close()
        for path in [*self.layouts, self.log_path]:
            partial(path).unlink(missing_ok=True)

    def _finish(self, path):
        failed = self.failed
        if not self.fixed_rows and failed:
            with h5py.File(partial(path), "r") as file, \
                 new_h5(f"{path}.whole", (self.items - len(failed), *file[KEY].shape[1:]), file[KEY].dtype) as whole:
                whole.attrs.update(self.attributes)
                for row in range(len(whole)):
                    whole[row] = file[KEY][row]
            os.replace(f"{path}.whole", partial(path))
        elif failed:
            with h5py.File(partial(path), "r+") as file:
                file[KEY].attrs["rows_without_video"] = np.array(failed)
        os.replace(partial(path), path)


def partial(path):
    """Name of a file that is not whole yet."""
    return Path(f"{path}.partial")


def create(path, shape, dtype, attributes):
    """A partial file of zeros, contiguous, whose room on the disk is taken."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    partial(path).unlink(missing_ok=True)
    reserve_room(partial(path), path, size)
    with h5py.File(partial(path), "w") as file:
        dataset = file.create_dataset(KEY, shape, dtype)
        dataset.attrs.update(attributes)
        dataset[:1] = np.zeros((), dtype)      # HDF5 lays out a dataset when it is first written to
        file.flush()
        reserve_room(partial(path), path, partial(path).stat().st_size)


def _open_to_write(path):
    try:
        return h5py.File(path, "r+")
    except BlockingIOError as error:
        raise UserError(f"{path}: another run is writing to it; wait until that is done") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be resumed ({one_line(error)}); start again with --overwrite") from error


def read_log(path, settings):
    """Entries of the whole lines of a partial log, None where there is none; cuts off a line that is not whole.

    Raises UserError where the log is of a run with other settings.
    """
    content = path.read_bytes() if path.is_file() else b""
    whole = content[:content.rfind(b"\n") + 1]
    if not whole:
        return None
    try:
        before, *entries = map(json.loads, whole.splitlines())
        if not isinstance(before, dict) or not all("error" in entry for entry in entries):
            raise ValueError("a line is no entry")
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); start again with --overwrite") from error
    differing = [name for name in settings if json.loads(_line(settings))[name] != before.get(name)]
    if differing:
        raise UserError(f"{path}: the stopped run was of other {', '.join(differing)}; go on with the same, or "
                        "start again with --overwrite")
    os.truncate(path, len(whole))
    return entries


def _line(content):
    return json.dumps(content) + "\n"
