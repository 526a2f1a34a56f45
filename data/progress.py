"""One kind of progress bar for all long work."""
import sys

from tqdm import tqdm


class _Lines:
    """Takes what tqdm draws over itself and prints each state as a line of its own."""

    def write(self, text):
        text = text.strip()
        if text:
            print(text, file=sys.stderr)

    def flush(self):
        sys.stderr.flush()


def progress_bar(**options):
    """A tqdm bar on standard error: redrawn on a terminal; elsewhere, in a log file say, a line every 30 seconds."""
    if sys.stderr.isatty():
        return tqdm(mininterval=0.5, **options)
    return tqdm(mininterval=30, file=_Lines(), **options)
