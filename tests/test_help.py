"""Every command explains itself: --help ends with code 0 and has a text for each flag."""

import argparse
import re
import runpy
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def commands():
    """Return how each program of the repository is called, as arguments of Python."""
    found = []
    for folder in ("", "hicmae", "preprocess", "scripts"):
        for path in sorted((ROOT / folder).glob("**/*.py" if folder else "*.py")):
            name = path.relative_to(ROOT)
            starts = path.name == "__main__.py" or '__name__ == "__main__"' in path.read_text()
            if starts:
                module = ".".join(name.with_suffix("").parts).removesuffix(".__main__")
                found.append(module if folder == "hicmae" else str(name))
    return found


def without_text(text):
    """Return the flags and arguments of a --help page that nothing is said about."""
    lines = text.split("\n\n", 1)[1].splitlines() + [""]  # without the usage line
    return [
        line.strip()
        for line, following in zip(lines, lines[1:], strict=False)
        if line.startswith("  -")
        and not re.search(r"\S  +\S", line.strip())
        and not re.match(r" {10,}(?! |\(\S+\)$)", following)  # a default alone is no text
    ]


def help_of(command, *parts):
    """Return what a program, or a part of it, prints for --help, and the parts that it has."""
    names = []

    def add_parser(self, name, **options):
        names.append(name)
        return add(self, name, **options)

    add = argparse._SubParsersAction.add_parser
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as shown:
        patch.setattr(argparse._SubParsersAction, "add_parser", add_parser)
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", [command, *parts, "--help"])
        patch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as end:
            if command.endswith(".py"):
                patch.syspath_prepend(str(Path(command).resolve().parent))
                runpy.run_path(command, run_name="__main__")
            else:
                runpy.run_module(command, run_name="__main__", alter_sys=True)
    assert end.value.code in (0, None)
    return shown.getvalue(), names


@pytest.mark.parametrize("command", commands())
@pytest.mark.filterwarnings("ignore:.* found in sys.modules:RuntimeWarning")  # other tests use it
def test_help_has_a_text_for_each_flag(command):
    """Also of each part of a program, such as `python -m hicmae.visualize tsne`."""
    text, parts = help_of(command)
    for page in (text, *(help_of(command, part)[0] for part in parts)):
        assert page.startswith("usage: ")
        assert without_text(page) == []
        assert "see above" not in page


@pytest.mark.filterwarnings("ignore:.* found in sys.modules:RuntimeWarning")
def test_programs_and_their_parts_are_found():
    assert {"run_pretraining.py", "run_finetuning.py", "hicmae.visualize"} <= set(commands())
    assert "tsne" in help_of("hicmae.visualize")[1]


def test_a_flag_without_a_text_is_found():
    page = "usage: x\n\noptions:\n  -h, --help  show this\n  --bare DIR\n  --default N\n"
    page += " " * 12 + "(3)\n  --long_name DIR\n" + " " * 12 + "says what\n"
    assert without_text(page) == ["--bare DIR", "--default N"]
