"""Every command explains itself: --help ends with code 0 and has a text for each flag."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [
    path.relative_to(ROOT)
    for folder in ("preprocess", "scripts")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if '__name__ == "__main__"' in path.read_text()
]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in sorted((ROOT / "hicmae").rglob("*.py"))
    if (path.name == "__main__.py" or '__name__ == "__main__"' in path.read_text())
    and path.stem != "memory"  # a process of the benchmark, which is told what to do on its stdin
]
PARTS = {
    "hicmae.visualize": "reconstruction tsne attention retrieval radar layer_weights curves "
    "confusion".split(),
    "hicmae.benchmark": "pretrain finetune infer loader feed ranks table".split(),
}
COMMANDS = [
    *([name] for name in ("run_pretraining.py", "run_finetuning.py")),
    *([str(path)] for path in SCRIPTS),
    *([name] for name in MODULES),
    *([module, part] for module, parts in PARTS.items() for part in parts),
]


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


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.filterwarnings("ignore:.* found in sys.modules:RuntimeWarning")  # other tests use it
def test_help_has_a_text_for_each_flag(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [*command, "--help"])
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as end:
        if command[0].endswith(".py"):
            monkeypatch.setattr(sys, "path", [str(Path(command[0]).resolve().parent), *sys.path])
            runpy.run_path(command[0], run_name="__main__")
        else:
            runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    text = capsys.readouterr().out
    assert end.value.code in (0, None) and text.startswith("usage: ")
    assert without_text(text) == []
    assert "see above" not in text


def test_a_flag_without_a_text_is_found():
    page = "usage: x\n\noptions:\n  -h, --help  show this\n  --bare DIR\n  --default N\n"
    page += " " * 12 + "(3)\n  --long_name DIR\n" + " " * 12 + "says what\n"
    assert without_text(page) == ["--bare DIR", "--default N"]
