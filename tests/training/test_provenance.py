"""Command, state of the code, machine: right where they are known, absent where not."""

import logging
import shlex
import subprocess
import sys

import pytest
import torch

from hicmae.training import logs as provenance
from hicmae.training.logs import RunLogger
from tests.boards import texts


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "code"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "trunk")
    (folder / "a.py").write_text("1\n")
    git(folder, "add", "a.py")
    git(folder, "commit", "-q", "-m", "First | last")
    return folder


def test_the_command_can_be_pasted_into_a_shell(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = ["run_pretraining.py", "--data_path", "my clips", "--opt_betas", "0.9", "0.95", "--x"]
    monkeypatch.setattr(sys, "argv", words)
    text = provenance.command()
    assert all(line.startswith("    ") for line in text.splitlines())
    script = "".join(line[4:] + "\n" for line in text.splitlines()).replace("\\\n", "")
    assert shlex.split(script) == ["cd", str(tmp_path), sys.executable, *words]
    assert "        --opt_betas 0.9 0.95 \\\n" in text


def test_a_clean_checkout_shows_commit_and_branch(checkout):
    text = provenance.git_state(checkout)
    assert git(checkout, "rev-parse", "HEAD") in text
    assert "First &#124; last" in text and "| branch | trunk |" in text
    assert "clean: as committed" in text and "a.py" not in text


def test_changed_and_new_files_are_listed_up_to_a_bound(checkout):
    (checkout / "a.py").write_text("2\n")
    for number in range(30):
        (checkout / f"new{number:02d}.py").write_text("")
    text = provenance.git_state(checkout)
    assert "| files | 31 changed or new |" in text
    assert "\n     M a.py\n" in text and "\n    ?? new00.py\n" in text
    assert "... and 11 more" in text and "new25" not in text


def test_without_git_or_a_checkout_or_an_answer_the_text_says_so(checkout, tmp_path, monkeypatch):
    assert "not in a git checkout" in provenance.git_state(tmp_path)
    (tmp_path / ".git").mkdir()  # which git refuses
    assert "not known" in provenance.git_state(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "not known" in provenance.git_state(checkout)
    (tmp_path / "git").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setattr(provenance, "TIMEOUT", 0.2)
    assert "takes too long" in provenance.git_state(checkout)


def test_a_checkout_without_a_commit_is_no_error(tmp_path):
    git(tmp_path, "init", "-q")
    assert "not known" in provenance.git_state(tmp_path)


def test_the_machine_is_described():
    text = provenance.environment(torch.device("cpu"), "bf16", 4)
    assert "| processes | 4 |" in text and "| precision | bf16 |" in text
    assert f"| torch | {torch.__version__} |" in text
    assert f"{torch.get_num_threads()} thread(s)" in text


def test_texts_reach_tensorboard_once_a_start_even_if_they_are_not_utf_8(tmp_path):
    for step, text in ((0, "first"), (4, "second"), (4, "third \udcff")):
        with RunLogger(tmp_path, resume_step=step) as log:
            log.texts(step, {"command": text}, prefix="run")
    assert texts(tmp_path, "run/command") == {0: "first", 4: "third \\udcff"}


def test_nothing_is_logged_or_raised_for_a_device_of_any_kind(caplog):
    with caplog.at_level(logging.WARNING):
        found = provenance.provenance(torch.device("cpu"), "fp32", 1)
    assert set(found) == {"command", "git", "environment"} and not caplog.records
