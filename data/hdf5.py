"""Reads and writes one HDF5 file of numbers; whatever may be wrong with a file ends in a UserError that names it."""
import math
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path

import h5py
import numpy as np

from data.files import UserError, naming, one_line

BLOCK_VALUES = 2**24      # that are read at once


# --------------------------------------------------------------------------------------------- reading

@contextmanager
def open_h5(path, key, content):
    """The HDF5 dataset `key` of the file; content: what it should hold, for a person.

    Raises UserError where it cannot be read, is not numbers, or was not written to its end.
    """
    with ExitStack() as stack:
        with refusing(path):
            # A cache that holds one chunk of any reasonable file, so that a chunk is decompressed once.
            file = stack.enter_context(h5py.File(path, "r", rdcc_nbytes=2**28))
            dataset = _whole_dataset(path, key, content, file)
        yield dataset


@contextmanager
def refusing(path):
    """Turns whatever a broken file leads HDF5 into, inside the block, into a UserError that names the file."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except BlockingIOError as error:
        raise UserError(f"{path}: another process is writing to it; wait until that is done") from error
    except PermissionError as error:
        raise UserError(f"{path}: may not be read (permission denied)") from error
    except Exception as error:
        raise UserError(f"{path}: cannot be read as HDF5 ({one_line(error)}); download or make it again") from error


def _whole_dataset(path, key, content, file):
    if isinstance(file.get(key, getlink=True), h5py.ExternalLink):
        raise UserError(f"{path}: '{key}' is a link to another file; name that file instead")
    dataset = file.get(key)
    if not isinstance(dataset, h5py.Dataset):
        others = ", ".join(str(other) for other in file if other != key)[:100] or "nothing else"
        raise UserError(f"{path}: has no HDF5 dataset '{key}' (it has: {others}); it should hold {content}")
    if dataset.dtype.kind not in "fiu":
        raise UserError(f"{path}: '{key}' holds {dataset.dtype}, not numbers")
    if not dataset.shape:
        raise UserError(f"{path}: '{key}' is a single value or nothing; it should hold {content}")
    if dataset.is_virtual or dataset.external:
        raise UserError(f"{path}: '{key}' has its numbers in other files; copy them into one (h5repack does)")
    if dataset.chunks is None:
        missing = dataset.nbytes - dataset.id.get_storage_size()
    else:
        chunks = math.prod(-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks))
        missing = chunks - dataset.id.get_num_chunks()
        # HDF5 ends the whole program where a chunk is too short for its checksum.
        if dataset.fletcher32 and dataset.id.chunk_iter(lambda chunk: chunk.size < 4 or None):
            missing = 1
    if missing > 0:
        raise UserError(f"{path}: is incomplete: it was not written to its end; download or make it again")
    return dataset


def read_rows(path, dataset, rows):
    """dataset[rows] for a slice of rows, as the file holds them; UserError where they cannot be read."""
    with refusing(path):
        return dataset[rows]


def read_finite_rows(path, dataset, rows):
    """As `read_rows`, floats as float32; UserError where a value is NaN or infinite."""
    block = read_rows(path, dataset, rows)
    with np.errstate(over="ignore", invalid="ignore"):
        if block.dtype.kind == "f":
            block = block.astype(np.float32, copy=False)      # what is too large for it becomes infinite
        # NaN and infinity both survive a sum, so that one pass without a copy is enough for nearly all blocks.
        if np.isfinite(block.sum()):
            return block
    wrong = np.argwhere(~np.isfinite(block))
    if len(wrong):
        row, *position = map(int, wrong[0])
        raise UserError(f"{path}: contains NaN or infinite values (first in video row {row + rows.start}, at "
                        f"{tuple(position)}); extract or download it again")
    return block


def blocks_of(dataset):
    """Slices of rows, of about `BLOCK_VALUES` values each, that cover the dataset."""
    step = max(1, BLOCK_VALUES // max(1, math.prod(dataset.shape[1:])))
    return [slice(start, min(start + step, len(dataset))) for start in range(0, len(dataset), step)]


# --------------------------------------------------------------------------------------------- writing

@contextmanager
def new_h5(path, shape, dtype, key="avadataset"):
    """A new HDF5 dataset to be filled; the file gets its name only once it is whole.

    Its room on the disk is reserved first: HDF5 can end the whole program where it runs out while it writes.
    """
    partial = Path(f"{path}.partial")
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        reserve_room(partial, path, size)
        with h5py.File(partial, "w") as file:
            dataset = file.create_dataset(key, shape, dtype)
            if size:
                dataset[:1] = np.zeros((), dtype)      # HDF5 lays out a dataset when it is first written to
                file.flush()
                reserve_room(partial, path, partial.stat().st_size)
            yield dataset
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def reserve_room(partial, path, size):
    """Takes the disk blocks of a file of that size; OSError that names `path` where there are too few."""
    if size and hasattr(os, "posix_fallocate"):
        with naming(path), open(partial, "ab") as file:
            os.posix_fallocate(file.fileno(), 0, size)


def write_h5(path, array, key="avadataset"):
    """Writes a whole file."""
    with new_h5(path, array.shape, array.dtype, key) as dataset:
        dataset[...] = array
