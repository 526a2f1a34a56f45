"""What the tests share: import path, a tiny synthetic data folder, ways to run the scripts, HDF5 in one line."""
import importlib
import io
import json
import os
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

# Read when torch is imported. Tests in this process would otherwise use a GPU.
if os.environ.get("TEST_DEVICE") != "cuda":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:2"      # without it, CUDA's LSTMs differ from run to run
os.environ.setdefault("OMP_NUM_THREADS", "1")      # several tests at once: each on one core

import h5py  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
sys.path[:0] = [str(ROOT), str(TESTS)]

TINY = ("--train 24 --val 9 --test 7 --background 5 --categories 4 --segments 6 --audio_dim 12 --map_size 3 "
        "--visual_dim 20 --difficulty 0").split()
SHORT = "--train --nb_epoch 4 --check_epoch 2 --batch_size 12".split()
MAIN = {"fully": "fully_supervised_main.py", "weakly": "weakly_supervised_main.py"}
RELEASED = "model/released_training.py"
QUIRKS = {"fully": "released_order,stale_avps,initial_weights", "weakly": "fixed_batches,initial_weights"}


def published_key(path):
    return "order" if "order" in Path(path).name else "avadataset"


def read(path, key=None):
    with h5py.File(path, locking=False) as file:
        return file[key or published_key(path)][:]


def rewrite(path, array, key=None, **layout):
    with h5py.File(path, "w", locking=False) as file:
        file.create_dataset(key or published_key(path), data=array, **layout)


def change(name, function):
    """A change of one file's array, to be applied to a folder."""
    return lambda folder: rewrite(folder / name, function(read(folder / name)))


def set_attributes(path, **attributes):
    """Sets attributes of the array in a file of features."""
    with h5py.File(path, "a", locking=False) as file:
        file["avadataset"].attrs.update(attributes)


def with_value(array, position, value):
    array[position] = value
    return array


def close(actual, expected, tolerance=1e-8):
    """Asserts agreement relative to the norm of what is expected."""
    actual, expected = torch.as_tensor(actual).detach().numpy(), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.linalg.norm(actual - expected) <= tolerance * max(np.linalg.norm(expected), 1e-12)


@pytest.fixture(autouse=True)
def float32_again():
    """A run with --precision fp64 in this process changes PyTorch's default dtype."""
    yield
    torch.set_default_dtype(torch.float32)


def run_main(name, *options):
    """Runs a script in this process: (exit code, stdout, stderr)."""
    from utils import one_line_errors
    out, error, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(error):
        patch.setattr(sys, "argv", [name, *map(str, options)])
        try:
            with one_line_errors():
                importlib.import_module(name.removesuffix(".py").replace("/", ".")).main()
        except SystemExit as stop:
            code = stop.code
    return code, out.getvalue(), error.getvalue()


def run_quickly(name, *options, code=0):
    """The same, with an expected exit code."""
    ended, out, error = run_main(name, *options)
    assert ended == code, error
    return SimpleNamespace(stdout=out, stderr=error)


quick_script = pytest.fixture(lambda: run_quickly, name="quick_script")


def evaluate_run(folder, setting, data_dir, *options, code=0):
    """Evaluates the checkpoint in the output folder of a run."""
    return run_quickly(MAIN[setting], "--trained_model_path", folder / f"PSP_{setting}.pt", "--data_dir", data_dir,
                       *options, code=code)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A synthetic folder of sizes that are nobody's default; not to be changed."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    run_quickly("data/synthetic.py", "--output_dir", folder, *TINY)
    return folder


@pytest.fixture
def data_folder(tiny_folder, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(tiny_folder, tmp_path / "data")


@pytest.fixture
def bare_folder(tiny_folder, tmp_path):
    """Nothing but features."""
    for name in ("audio_feature.h5", "visual_feature.h5"):
        shutil.copy(tiny_folder / name, tmp_path)
    return tmp_path


@pytest.fixture
def train(tiny_folder, tmp_path):
    """Trains for four epochs, into tmp_path; options that are given take precedence. Quirks have their own script."""
    def run(setting, *options, code=0):
        script = (RELEASED, "--setting", setting) if "--quirks" in options else (MAIN[setting],)
        return run_quickly(*script, *SHORT, "--data_dir", tiny_folder, "--output_dir", tmp_path, *options, code=code)
    return run


@pytest.fixture(scope="session", params=MAIN)
def trained(request, tiny_folder, tmp_path_factory):
    """(setting, output folder, what was printed) of a run of eight epochs; not to be changed."""
    folder = tmp_path_factory.mktemp(request.param)
    done = run_quickly(MAIN[request.param], *SHORT, "--nb_epoch", 8, "--save_epoch", 3, "--data_dir", tiny_folder,
                       "--output_dir", folder)
    return request.param, folder, done.stdout


def read_log(folder, setting, model="PSP"):
    """(header, epochs, result) of a run; fails if the log holds NaN or infinite values, which JSON does not have."""
    lines = (folder / f"{model}_{setting}.jsonl").read_text().splitlines()
    first, *epochs, last = (json.loads(line, parse_constant=pytest.fail) for line in lines)
    return first["run"], epochs, last["result"]


def accuracy_line(folder, setting, model="PSP"):
    """As evaluation prints the test accuracy of the checkpoint, from the log."""
    return f"test accuracy: {100 * read_log(folder, setting, model)[2]['best']['test_accuracy']:.2f} %"


def assert_same_run(folder, other, setting):
    """Both folders hold the same log, and the same weights in checkpoint and state, bit for bit."""
    assert (folder / f"PSP_{setting}.jsonl").read_bytes() == (other / f"PSP_{setting}.jsonl").read_bytes()
    for name in (f"PSP_{setting}.pt", f"PSP_{setting}_state.pt"):
        states = (torch.load(place / name, weights_only=True, map_location="cpu") for place in (folder, other))
        torch.testing.assert_close(*(state["weights"] for state in states), rtol=0, atol=0)


@pytest.fixture(scope="session")
def real_ave():
    """Folder of the real annotation, label and order files, from the environment variable AVE_DATA."""
    return Path(os.environ.get("AVE_DATA") or pytest.skip("AVE_DATA names no folder of real AVE files"))
