"""Every command explains itself: --help ends with code 0 and has a text for each flag."""

import argparse
import os
import re
import runpy
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch

import run_pretraining
from hicmae.io import choose_device

ROOT = Path(__file__).parents[1]


def commands():
    """Return how each program of the repository is called, as arguments of Python."""
    found = []
    for folder in ("", "hicmae", "preprocess", "scripts"):
        for path in sorted((ROOT / folder).glob("**/*.py" if folder else "*.py")):
            name = path.relative_to(ROOT)
            if path.name == "__main__.py" or '__name__ == "__main__"' in path.read_text():
                module = ".".join(name.with_suffix("").parts).removesuffix(".__main__")
                found.append(module if folder == "hicmae" else str(name))
    return found


def parser_of(command, *parts):
    """Run a program, or a part of it, with --help; return its parser and what it prints."""
    parsers = []

    def note(self, *arguments):
        parsers.append(self)
        return show(self, *arguments)

    show = argparse.ArgumentParser.print_help
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as shown:
        patch.setattr(argparse.ArgumentParser, "print_help", note)
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", [command, *parts, "--help"])
        with pytest.raises(SystemExit) as end:
            if command.endswith(".py"):
                patch.syspath_prepend(str(Path(command).resolve().parent))
                runpy.run_path(command, run_name="__main__")
            else:
                runpy.run_module(command, run_name="__main__", alter_sys=True)
    assert end.value.code in (0, None)
    return parsers[-1], shown.getvalue()


def parts_of(parser):
    kinds = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return [name for action in kinds for name in action.choices]


# The flags of launch.py are torchrun's.
@pytest.mark.parametrize("command", [name for name in commands() if name != "scripts/launch.py"])
@pytest.mark.filterwarnings("ignore:.* found in sys.modules:RuntimeWarning")  # other tests use it
def test_help_has_a_text_for_each_flag(command):
    """Also of each part of a program, such as `python -m hicmae.visualize tsne`."""
    page = parser_of(command)
    for parser, text in (page, *(parser_of(command, part) for part in parts_of(page[0]))):
        assert text.startswith("usage: ") and "see above" not in text and parser.description
        flags = {name: action.help for action in parser._actions for name in action.option_strings}
        alone = re.compile(r"\(\S+\)")  # a default alone is no text
        assert [n for n, text in flags.items() if not text or alone.fullmatch(text)] == []


# Each installed command, then each program; the modules of the process tell what they loaded.
ASK = """
import importlib, runpy, sys

words, heavy = sys.argv[1:], {"torch", "timm", "pandas", "matplotlib", "sklearn", "scipy"}
for flag, code in ("--help", 0), ("--no_such_flag", 2):
    for command in words:
        module, _, function = command.partition(":")
        try:
            sys.argv = [command, flag]
            if function:
                getattr(importlib.import_module(module), function)()
            elif code == 0:
                runpy.run_path(command, run_name="__main__")
            else:
                continue
            ended = None
        except SystemExit as end:
            ended = end.code
        assert (ended or 0) == code, (command, flag, ended)
        assert not heavy & sys.modules.keys(), (command, flag, heavy & sys.modules.keys())
"""


def test_neither_help_nor_a_wrong_flag_waits_for_what_computes():
    text = (ROOT / "pyproject.toml").read_text()
    installed = re.findall(r'^hicmae-\w+ = "([\w.]+:\w+)"', text, re.M)
    assert len(installed) >= 7
    programs = [name for name in commands() if name.endswith(".py")]
    assert {"run_pretraining.py", "run_finetuning.py", "scripts/benchmark.py"} <= set(programs)
    asked = [sys.executable, "-c", ASK, *installed, *programs]
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "scripts", ROOT / "preprocess")))
    result = subprocess.run(
        asked, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_the_gpu_of_a_mac_is_taken_where_torch_has_one_and_refused_in_one_line_elsewhere(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("mps").type == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    flags = ["--data_path", str(tmp_path), "--device", "mps", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="--device mps, .* use --device auto or cpu"):
        run_pretraining.main(flags)
