"""What all pictures share: colours that the colour-blind tell apart, sizes for print, and how a picture is saved."""
import sys
from pathlib import Path

try:
    import matplotlib
except ModuleNotFoundError:
    print(f"{Path(sys.argv[0]).name}: error: the package matplotlib is missing; pip install matplotlib==3.11.2",
          file=sys.stderr)
    sys.exit(2)

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.ticker import LogLocator  # noqa: E402
from run_logs import common_curve  # noqa: E402

BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"      # of Okabe and Ito
LIGHT_BLUE, LIGHT_ORANGE, GREY = "#a6d0e8", "#f2b690", "0.87"      # behind text
SMALL = 7      # points: the smallest text that still reads in print

pyplot.rcParams.update({
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": SMALL,
    "xtick.labelsize": SMALL, "ytick.labelsize": SMALL, "axes.linewidth": 0.6, "lines.linewidth": 1.2,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "hatch.linewidth": 0.6})


def draw_band(axes, curves, style, colour, label, logarithmic=False):
    """Mean and standard deviation of several {epoch: value}, see `common_curve`."""
    epochs, mean, low, high = common_curve(curves, logarithmic)
    axes.plot(epochs, mean, style, color=colour, markersize=3, label=label)
    axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if logarithmic:
        log_scale(axes)


def log_scale(axes):
    """Makes the y axis logarithmic, with ticks that are written as plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="both", length=3)


def save(figure, path):
    """Writes the picture as a PNG and says where."""
    figure.savefig(path, dpi=200, format="png")
    pyplot.close(figure)
    print(path)
