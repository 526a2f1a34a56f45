"""Published weight files: where each comes from, and whether a file is the right one."""
import hashlib
from pathlib import Path
from typing import NamedTuple

from data.files import UserError


class WeightsFile(NamedTuple):
    """One published file."""
    what: str          # for a person
    default: Path      # where it is looked for
    source: str
    megabytes: int
    algorithm: str     # of the digest
    digest: str        # hexadecimal; its first digits where no more are published


def find_missing(files):
    """Raises UserError with one message for all that do not exist. files: (WeightsFile, path) pairs."""
    missing = [f"  {path}: {file.what}, {file.megabytes} MB, from\n      {file.source}"
               for file, path in files if not Path(path).is_file()]
    if missing:
        raise UserError("\n".join([f"{len(missing)} weight file{'s' * (len(missing) > 1)} not found:", *missing,
                                   "Put them there, or name them with --vgg19_weights and --vggish_weights.",
                                   "To try it without them: --random_weights (features that mean nothing)."]))


def check_digest(path, file):
    """Raises UserError unless the content of `path` has the digest of the published file."""
    with open(path, "rb") as content:
        digest = hashlib.file_digest(content, lambda: hashlib.new(file.algorithm, usedforsecurity=False)).hexdigest()
    if not digest.startswith(file.digest):
        raise UserError(f"{path}: is not {file.what}: its {file.algorithm.upper()} is {digest[:len(file.digest)]}, "
                        f"expected {file.digest}; download it again from {file.source}")
