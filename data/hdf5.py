"""HDF5 files, written as a whole or not at all."""
import errno
import math
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np


@contextmanager
def new_h5(path, shape, dtype, key="avadataset"):
    """A new HDF5 dataset to be filled; the file gets its name only when it is whole.

    Raises OSError, with the path, if the folder cannot be written to or has no room for the whole file.
    """
    partial = Path(f"{path}.{os.getpid()}.partial")
    room = math.prod(shape) * np.dtype(dtype).itemsize + 2**16      # the values, and what describes them
    try:
        # HDF5 can end the whole program if it runs out of room.
        disk = shutil.disk_usage(partial.parent)
        if disk.total and disk.free < room:      # some network disks tell no size
            raise OSError(errno.ENOSPC, "")
        with open(partial, "wb") as file:
            if hasattr(os, "posix_fallocate"):      # a quota may leave less
                os.posix_fallocate(file.fileno(), 0, room)
        with h5py.File(partial, "w", locking=False) as file:
            yield file.create_dataset(key, shape, dtype)
        os.replace(partial, path)
    except OSError as error:
        found = re.search(r"errno = ([0-9]+)", str(error))      # h5py says it in its text
        number = int(found[1]) if found else error.errno
        if error.filename or not number:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def write_h5(path, array, key="avadataset"):
    """Writes a whole file. Raises OSError as `new_h5`."""
    with new_h5(path, array.shape, array.dtype, key) as dataset:
        dataset[...] = array
