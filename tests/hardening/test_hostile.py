"""Hostile files: nothing in them runs, nothing is written outside, and no code asks for trouble."""

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import run_finetuning
from hicmae.training.checkpoint import CheckpointError
from tests.conftest import save_frames, save_wav

ROOT = Path(__file__).resolve().parents[2]
CODE = ("hicmae", "preprocess", "scripts")
SMALL = (
    "--model avit_dim512_patch16_160_a256 --depth 1 --depth_audio 1 --fusion_depth 1 --device cpu "
    "--input_size 32 --input_size_audio 32 32 --num_frames 4 --sampling_rate 1 --batch_size 2 "
    "--epochs 1 --num_workers 0 --nb_classes 2 --warmup_epochs 0 --aa none"
).split()


# What the code never does


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
    # The weights of a pip package, whose SHA-256 is compared before.
    assert bad == [("hicmae/faces/detector.py", "joblib.load")]
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


# What files try


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Lists of four small clips, two a class."""
    lines = []
    for index in range(4):
        video = save_frames(tmp_path / f"v{index}", 6, (32, 32))
        lines.append(f"{video} {save_wav(tmp_path / f'a{index}.wav', 8000)} {index % 2}\n")
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text("".join(lines))
    return tmp_path


def finetune(data: Path, *flags: str) -> None:
    folders = ["--data_path", str(data), "--output_dir", str(data / "run")]
    run_finetuning.main([*SMALL, *folders, *flags])


@pytest.mark.parametrize("flag", ["--finetune", "--resume"])
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_bomb_in_a_checkpoint_does_not_go_off(data: Path, flag: str, form: str) -> None:
    bomb, target = data / "bomb.pth", data / "went_off"
    content = {"model": Bomb(target)}
    if form == "torch":
        torch.save(content, bomb)
    else:
        bomb.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match="bomb.pth'.* (is refused|no torch checkpoint)") as it:
        finetune(data, flag, str(bomb))
    assert not target.exists() and "\n" not in str(it.value)


def test_names_with_shell_characters_are_only_names(data: Path) -> None:
    names = ["$(touch went_off)", "`touch went_off`", "; touch went_off #", "| touch went_off", "&"]
    lines = []
    for index, name in enumerate(names):
        video = save_frames(data / "shell" / name, 6, (32, 32))
        lines.append(f'"{video}" {save_wav(data / f"s{index}.wav", 8000)} {index % 2}\n')
    for name in ("train.csv", "test.csv"):
        (data / name).write_text("".join(lines))
    finetune(data)
    assert (data / "run").is_dir()
    assert list(data.rglob("went_off")) == [] and not (Path.cwd() / "went_off").exists()
