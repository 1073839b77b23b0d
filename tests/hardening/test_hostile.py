"""No code asks for trouble: no shell, no pickle, no unpacking to disk."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {
    *("os.system", "os.popen", "eval", "exec", "pickle.load", "pickle.loads", "dill.load"),
    *("joblib.load", "cPickle.load", "yaml.load", "marshal.loads", "shelve.open"),
    *("pickle.Unpickler", "subprocess.getoutput", "subprocess.getstatusoutput"),
}
UNPACKING = (".extractall", "archive.extract", "tar.extract", "shutil.unpack_archive")


def calls() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield file, dotted name and keywords of every call in the tree."""
    folders = [ROOT / name for name in ("hicmae", "preprocess", "scripts")]
    for path in [*ROOT.glob("*.py"), *(file for f in folders for file in f.rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg}
                yield str(path.relative_to(ROOT)), ast.unparse(node.func), keywords


def test_no_call_runs_a_shell_unpickles_or_unpacks_to_disk() -> None:
    found = list(calls())
    assert len(found) > 3000  # the search itself works
    for path, name, keywords in found:
        assert name not in FORBIDDEN and not name.endswith(UNPACKING), path
        assert keywords.get("shell", "False") == keywords.get("allow_pickle", "False") == "False"
        assert name != "torch.load" or keywords.get("weights_only") == "True", path
    loading = {path for path, name, _ in found if name == "torch.load" and "hicmae/" in path}
    assert loading == {"hicmae/training/checkpoint.py"}
