"""Command, state of the code, machine: right where they are known, said where not."""

import shlex
import subprocess
import sys

import pytest
import torch

from hicmae.training import logs
from hicmae.training.logs import RunLogger, code_version, command, provenance
from tests.boards import texts


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    words = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "code"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "a.py").write_text("1\n")
    git(folder, "add", "a.py")
    git(folder, "commit", "-q", "-m", "first")
    git(folder, "tag", "-a", "v1", "-m", "first")
    return folder


def test_the_command_can_be_pasted_into_a_shell(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = ["run_pretraining.py", "--data_path", "my --clips", "--opt_betas", "0.9", "0.95", "--x"]
    monkeypatch.setattr(sys, "argv", words)
    text = command()
    assert all(line.startswith("    ") for line in text.splitlines())
    script = "".join(line[4:] + "\n" for line in text.splitlines()).replace("\\\n", "")
    assert shlex.split(script) == ["cd", str(tmp_path), sys.executable, *words]
    assert "        --opt_betas 0.9 0.95 \\\n" in text


def test_the_code_is_named_by_its_commit_and_by_whether_it_was_changed(checkout):
    commit = git(checkout, "rev-parse", "HEAD")
    assert code_version(checkout) == f"commit {commit}"
    (checkout / "a.py").write_text("2\n")
    assert code_version(checkout) == f"commit {commit}-dirty"


def test_without_git_or_a_checkout_or_an_answer_the_text_says_so(checkout, tmp_path, monkeypatch):
    assert code_version(tmp_path) == "not in a git checkout"
    (tmp_path / ".git").mkdir()  # which git refuses
    assert code_version(tmp_path).startswith("unknown")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_version(checkout).startswith("unknown")
    (tmp_path / "git").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setattr(logs, "GIT_SECONDS", 0.2)
    assert code_version(checkout).startswith("unknown")


def test_texts_reach_tensorboard_once_a_start_even_if_they_are_not_utf_8(tmp_path):
    facts = provenance(torch.device("cpu"), "bf16", 4)
    for step, text in ((0, "first"), (4, "second"), (4, "third \udcff")):
        with RunLogger(tmp_path, resume_step=step) as log:
            log.texts(step, {**facts, "command": text}, prefix="run")
    assert texts(tmp_path, "run/command") == {0: "first", 4: "third \\udcff"}
    shown = texts(tmp_path, "run/environment")[4]
    assert "| processes | 4 |" in shown and "| precision | bf16 |" in shown
    assert f"torch {torch.__version__}" in shown
