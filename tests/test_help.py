"""Every command explains itself: --help ends with code 0 and has a text for each flag."""

import argparse
import importlib
import re
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "timm", "pandas", "matplotlib", "sklearn", "scipy"}


def programs():
    """Return how each program of the repository is called, as arguments of Python."""
    found = []
    for folder in ("", "hicmae", "preprocess", "scripts"):
        for path in sorted((ROOT / folder).glob("**/*.py" if folder else "*.py")):
            name = path.relative_to(ROOT)
            if path.name == "__main__.py" or '__name__ == "__main__"' in path.read_text():
                module = ".".join(name.with_suffix("").parts).removesuffix(".__main__")
                found.append(module if folder == "hicmae" else str(name))
    return found


def answer(command, *words):
    """Run a program, or an installed command; return its exit code, parsers and what it prints."""
    parsers, show = [], argparse.ArgumentParser.print_help

    def note(self, *arguments):
        parsers.append(self)
        return show(self, *arguments)

    module, _, function = command.partition(":")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as shown:
        patch.setattr(argparse.ArgumentParser, "print_help", note)
        patch.setattr(sys, "argv", [command, *words])
        patch.syspath_prepend(str(Path(command).resolve().parent))
        with pytest.raises(SystemExit) as end, redirect_stderr(StringIO()):
            if function:
                sys.exit(getattr(importlib.import_module(module), function)())
            elif command.endswith(".py"):
                runpy.run_path(command, run_name="__main__")
            else:
                runpy.run_module(command, run_name="__main__", alter_sys=True)
    return end.value.code or 0, parsers, shown.getvalue()


def check_help(command, *part):
    """Also of each part of a program, such as `python -m hicmae.visualize tsne`."""
    code, (parser,), text = answer(command, *part, "--help")
    assert code == 0 and text.startswith("usage: ") and parser.description, command
    flags = {name: action.help for action in parser._actions for name in action.option_strings}
    abbreviates = command.startswith("preprocess/")  # as it was; elsewhere nothing is guessed
    assert parser.allow_abbrev == abbreviates or len(flags) == 2, (command, part)  # --help alone
    alone = re.compile(r"\(\S+\)")  # a default alone is no text
    assert [n for n, text in flags.items() if not text or alone.fullmatch(text)] == [], command
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name in action.choices:
                check_help(command, name)


def check_all():
    text = (ROOT / "pyproject.toml").read_text()
    installed = re.findall(r'^hicmae-\w+ = "([\w.]+:\w+)"', text, re.M)
    assert len(installed) >= 7
    assert {"run_finetuning.py", "hicmae.inference", "scripts/benchmark.py"} <= {*programs()}
    for command in (*installed, *programs()):
        if command == "scripts/launch.py":  # its flags are torchrun's
            assert answer(command, "--help")[0] == 0
        else:
            check_help(command)
        assert not HEAVY & sys.modules.keys(), command
    for command in installed:
        assert answer(command, "--no_such_flag")[0] == 2 and not HEAVY & sys.modules.keys(), command


def test_every_flag_has_a_text_and_no_help_waits_for_what_computes():
    """In a process of its own, whose modules tell what was loaded; nor does a wrong flag wait."""
    asked = [sys.executable, "-c", "from tests.test_help import check_all; check_all()"]
    result = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
