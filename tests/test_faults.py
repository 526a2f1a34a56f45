"""Faults of disks, folders and other processes: one clear line, and nothing lost or overwritten."""
import os
import resource
import subprocess
import sys

import h5py
import pytest

from conftest import TINY
from data.progress import progress_bar
from model.released import read_file
from model.run import Run


def run_with_file_limit(script, limit, name, *options):
    """Runs a script in a process whose files may not grow beyond `limit` bytes, as on a full disk."""
    return subprocess.run(script.command(name, *options), capture_output=True, text=True, env=script.environment(),
                          timeout=120,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))


def train_options(data, output):
    return ("--train", "--nb_epoch", 3, "--check_epoch", 1, "--batch_size", 8, "--data_dir", data,
            "--output_dir", output)


def clear_line(done):
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return [line for line in done.stderr.splitlines() if "error:" in line][0]


def test_no_room_for_a_checkpoint_or_a_log_line_loses_nothing(script, main_in_process, tiny_folder, tmp_path):
    assert main_in_process("fully_supervised_main.py", *train_options(tiny_folder, tmp_path / "whole"))[0] == 0
    state_size = (tmp_path / "whole" / "PSP_fully_state.pt").stat().st_size
    first_log_line = len((tmp_path / "whole" / "PSP_fully.jsonl").read_bytes().split(b"\n")[0])
    for limit, what in ((state_size - 10**6, "PSP_fully_state.pt"), (first_log_line + 60, "")):
        output = tmp_path / str(limit)
        error = clear_line(run_with_file_limit(script, limit, "fully_supervised_main.py",
                                               *train_options(tiny_folder, output)))
        assert what in error and "File too large" in error
        assert not list(output.glob("*.partial"))
        assert main_in_process("fully_supervised_main.py", *train_options(tiny_folder, output), "--resume")[0] == 0
        assert (output / "PSP_fully.jsonl").read_bytes() == (tmp_path / "whole" / "PSP_fully.jsonl").read_bytes()


def test_an_earlier_checkpoint_survives_a_full_disk(script, main_in_process, tiny_folder, tmp_path):
    assert main_in_process("fully_supervised_main.py", *train_options(tiny_folder, tmp_path))[0] == 0
    before = (tmp_path / "PSP_fully.pt").read_bytes()
    clear_line(run_with_file_limit(script, 10**6, "fully_supervised_main.py", *train_options(tiny_folder, tmp_path)))
    assert (tmp_path / "PSP_fully.1.pt").read_bytes() == before
    assert read_file(tmp_path / "PSP_fully.1.pt")["setting"] == "fully"


def test_no_room_for_synthetic_data_leaves_no_file_that_looks_whole(script, tmp_path):
    done = run_with_file_limit(script, 200_000, "data/synthetic.py", "--output_dir", tmp_path, *TINY)
    assert "visual_feature.h5" in clear_line(done)
    assert not (tmp_path / "visual_feature.h5").exists()
    assert not list(tmp_path.glob("*.partial"))


def test_a_file_that_another_process_writes_is_named(script, data_folder):
    path = data_folder / "visual_feature.h5"
    program = f"import h5py; file = h5py.File({str(path)!r}, 'a'); print(1, flush=True); input()"
    writer = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              env={**os.environ, "HDF5_USE_FILE_LOCKING": "TRUE"})
    writer.stdout.readline()
    done = script("fully_supervised_main.py", *train_options(data_folder, data_folder / "out"), code=2)
    writer.communicate(b"\n")
    assert "visual_feature.h5: another process is writing" in done.stderr


def test_data_that_was_replaced_is_noticed_on_resume(main_in_process, data_folder, tmp_path):
    options = train_options(data_folder, tmp_path / "out")
    assert main_in_process("fully_supervised_main.py", *options)[0] == 0
    with h5py.File(data_folder / "visual_feature.h5", "a") as file:
        file["avadataset"][:] *= 1.5
    code, _, error = main_in_process("fully_supervised_main.py", *options, "--resume")
    assert code == 2 and "digest" in error and "other options or data" in error


def test_an_output_folder_that_cannot_be_written(main_in_process, tiny_folder, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, error = main_in_process("fully_supervised_main.py", *train_options(tiny_folder, tmp_path / "file"))
    assert code == 2 and str(tmp_path / "file") in error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_output_folder(script, tiny_folder, tmp_path):
    tmp_path.chmod(0o500)
    done = script("fully_supervised_main.py", *train_options(tiny_folder, tmp_path), code=2)
    tmp_path.chmod(0o700)
    assert "Permission denied" in clear_line(done)


def test_data_that_is_replaced_between_epochs_changes_nothing(main_in_process, data_folder, tmp_path, monkeypatch):
    whole, replaced = tmp_path / "whole", tmp_path / "replaced"
    assert main_in_process("fully_supervised_main.py", *train_options(data_folder, whole))[0] == 0
    end_epoch = Run.end_epoch

    def replace_and_end(run):
        (data_folder / "visual_feature.h5").write_bytes(b"something else")
        end_epoch(run)
    monkeypatch.setattr(Run, "end_epoch", replace_and_end)
    assert main_in_process("fully_supervised_main.py", *train_options(data_folder, replaced))[0] == 0
    assert (data_folder / "visual_feature.h5").read_bytes() == b"something else"
    assert (replaced / "PSP_fully.jsonl").read_bytes() == (whole / "PSP_fully.jsonl").read_bytes()


def test_progress_in_a_log_file_is_a_line_now_and_then(capsys):
    """Three states of a bar are three whole lines, without carriage returns."""
    with progress_bar(total=3, desc="work", unit="step") as bar:
        bar.update()      # too soon after the first line
        bar.mininterval = 0
        bar.update()
        bar.update()
    error = capsys.readouterr().err
    assert "\r" not in error
    lines = error.splitlines()
    assert 2 <= len(lines) <= 4 and "0/3" in lines[0] and "3/3" in lines[-1] and "1/3" not in error
