"""No code asks for trouble: no shell, no pickle, no unpacking to disk."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = ("hicmae", "preprocess", "scripts")


def sources() -> Iterator[Path]:
    for folder in CODE:
        yield from sorted((ROOT / folder).rglob("*.py"))
    yield from sorted(ROOT.glob("*.py"))


def calls() -> Iterator[tuple[str, str, dict[str, object]]]:
    """Yield (file:line, dotted name, constant keywords) of every call in the tree."""
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                keywords = {
                    k.arg: k.value.value if isinstance(k.value, ast.Constant) else "..."
                    for k in node.keywords
                    if k.arg
                }
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                yield where, ast.unparse(node.func), keywords


def test_no_shell_runs_and_nothing_is_unpickled() -> None:
    forbidden = {
        *("os.system", "os.popen", "eval", "exec", "pickle.load", "pickle.loads", "dill.load"),
        *("joblib.load", "cPickle.load", "yaml.load", "marshal.loads", "shelve.open"),
        *("pickle.Unpickler", "subprocess.getoutput", "subprocess.getstatusoutput"),
    }
    found = list(calls())
    assert len(found) > 3000  # the search itself works
    bad = [(where.split(":")[0], name) for where, name, _ in found if name in forbidden]
    assert bad == []
    assert [where for where, _, keywords in found if keywords.get("shell", False)] == []
    assert [where for where, _, keywords in found if keywords.get("allow_pickle", False)] == []


def test_torch_loads_in_one_place_and_weights_only() -> None:
    loads = [(where, words) for where, name, words in calls() if name == "torch.load"]
    assert any(where.startswith("hicmae/training/checkpoint.py") for where, _ in loads)
    assert [where for where, words in loads if words.get("weights_only") is not True] == []
    package = {where.split(":")[0] for where, _ in loads if where.startswith("hicmae/")}
    assert package == {"hicmae/training/checkpoint.py"}


def test_archives_are_never_unpacked_to_disk() -> None:
    names = (".extractall", "archive.extract", "tar.extract", "shutil.unpack_archive")
    assert [where for where, name, _ in calls() if name.endswith(names)] == []
