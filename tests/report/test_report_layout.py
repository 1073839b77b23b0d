"""Reports as Markdown, LaTeX, JSON and HTML, and the command that writes them."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from hicmae.report.__main__ import main
from hicmae.report.layout import as_html, as_json, as_latex, as_markdown, document
from hicmae.report.scores import build, compare_all
from hicmae.training.resampling import Plan
from tests.report.fold_files import cells_of, write_fold, write_predictions, write_regression

QUICK = Plan(resamples=100)
NAMES = ["anger", "joy|glee", "f_ear & 100%"]


@pytest.fixture
def report(tmp_path):
    for k in (1, 2):
        write_fold(tmp_path / "exp" / f"fold{k}", k, 11)
    return build(tmp_path / "exp", names=NAMES, plan=QUICK)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    labels = rng.integers(0, 3, 40)
    clips = [f"clip{i}" for i in range(40)]
    for name in ("base", "new", "newer"):
        guesses = np.where(rng.random(40) < 0.6, labels, rng.integers(0, 3, 40))
        write_predictions(folder / name / "fold1" / "pred.csv", clips, labels, guesses)
    write_predictions(folder / "base" / "fold1" / "pred_best.csv", clips, labels, labels)
    built = [build(folder / n, plan=QUICK, names=NAMES) for n in ("base", "new", "newer")]
    return built, compare_all(built)


def test_markdown_escapes_what_would_break_a_table(report):
    text = as_markdown(document([report]))
    assert re.search(r"^\| fold +\| +clips \| +UAR last \| +WAR last \|$", text, re.M)
    assert re.search(r"^\|:-+\|(-+:\|){3}$", text, re.M)
    assert "joy\\|glee" in text and "f\\_ear & 100%" in text
    assert "Total: all clips pooled" in text and "100 resamples of clips within folds" in text
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_latex_has_booktabs_tables_with_every_special_character_escaped(report):
    text = as_latex(document([report]))
    assert text.startswith(r"% needs \usepackage{booktabs}")
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    assert r"f\_ear \& 100\% &" in text and r"joy$|$glee &" in text and r"95\% CI &" in text
    for table in re.findall(r"\\toprule(.*?)\\bottomrule", text, re.S):
        rows = [line for line in table.splitlines() if line.strip() not in ("", r"\midrule")]
        assert all(row.endswith(r" \\") for row in rows)
        assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
    assert r"& {}[" in text  # a bracket after \\ would be an argument
    name = "a\\b{c}$d&e#f^g_h~i%j<k>"
    changed = report._replace(names=[name, "x", "y"], notes=["100% of a"])
    text = as_latex(document([changed]))
    assert r"a\textbackslash{}b\{c\}\$d\&e\#f\textasciicircum{}g\_h\textasciitilde{}i\%j" in text
    assert r"$<$k$>$ & " in text and "\n% 100% of a\n" in text


def test_json_has_every_figure_and_no_nan(report):
    data = json.loads(as_json([report]))
    assert data["total"]["last"]["count"] == 22 and data["total"]["best"] is None
    assert [fold["name"] for fold in data["folds"]] == ["fold1", "fold2"]
    mean, std = data["mean_and_std_over_folds"]["last"]["uar"]
    assert mean == pytest.approx(np.mean([fold["last"]["uar"] for fold in data["folds"]]))
    low, high = data["intervals"]["last"]["uar"]
    assert std > 0 and low < data["total"]["last"]["uar"] < high
    expected = {"resamples": 100, "confidence": 0.95, "seed": 0, "speakers": False}
    assert data["bootstrap"] == expected


def test_page_holds_everything_itself_and_escapes_names(report, tmp_path):
    text = as_html(document([report._replace(title="<b>mine</b>")]))
    addresses = re.findall(r'(?:src|srcset|href)="([^"]*)"', text)
    assert text.count("<figure") == 1
    assert [address[:22] for address in addresses] == ["data:image/png;base64,"]
    assert not re.search(r"https?://|url\(|@import|<script|<link|<b>", text)
    for part in ("&lt;b&gt;mine&lt;/b&gt;", "joy|glee", "Total", "95% CI"):
        assert part in text
    write_regression(tmp_path / "fold1", 1, 12)
    text = as_html(document([build(tmp_path, plan=QUICK)]))
    assert text.count("<figure") == 1 and "Predictions," in text


def test_comparison_comes_first_in_every_format(compared):
    sections = document(*compared)
    headings = ["Runs side by side", "Differences", "base", "new", "newer"]
    assert [section.heading for section in sections] == headings
    cells = cells_of(*sections[1].tables.values())
    columns = "run score first value difference CI p".split()
    assert cells[0] == [*columns, "p (Holm)", "test"]
    rows = [" ".join(row[:2]) for row in cells[1:]]  # of the epochs that all have
    assert rows == ["new UAR last", " WAR last", "newer UAR last", " WAR last"]
    assert float(cells[2][4]) == pytest.approx(float(cells[2][3]) - float(cells[2][2]), abs=0.011)
    assert cells[2][8].startswith("McNemar exact, ") and cells[1][8] == "permutation"
    assert any("clip by clip" in note for note in sections[1].notes)
    texts = [write(sections) for write in (as_html, as_markdown, as_latex)]
    assert all("p (Holm)" in text for text in texts) and texts[0].count("<figure") == 4
    data = json.loads(as_json(*compared))
    assert [c["title"] for c in data["comparisons"]] == ["new", "newer"] and len(data["runs"]) == 3
    built, comparisons = compared  # two runs need no adjustment
    (table,) = document(built[:2], comparisons[:1])[1].tables.values()
    assert "p (Holm)" not in table


def test_command_prints_the_table_and_writes_it_beside_the_folds_or_where_told(tmp_path, capsys):
    folder = tmp_path / "exp"
    for k in (1, 2):
        write_fold(folder / f"fold{k}", k, 9)
    (tmp_path / "classes.txt").write_text("anger\njoy|glee\nfear\n")
    main([str(folder), "--resamples", "50", "--class_names", str(tmp_path / "classes.txt")])
    shown = capsys.readouterr().out
    assert "Total" in shown and "joy\\|glee" in shown
    names = [f"report.{ending}" for ending in ("html", "json", "md", "tex")]
    assert sorted(path.name for path in folder.glob("*.*")) == names  # nothing half-written
    assert all(name in shown for name in names)
    assert all("Total" in (folder / name).read_text() for name in names if "json" not in name)
    data = json.loads((folder / "report.json").read_text())
    assert data["total"]["last"]["count"] == 18 and data["names"] == ["anger", "joy|glee", "fear"]
    out = tmp_path / "new" / "table.tex"
    main([str(folder / "fold1"), "--latex", str(out), "--resamples", "0"])
    assert "95" not in out.read_text() and r"\toprule" in out.read_text()
    assert not list((folder / "fold1").glob("report.*"))


def test_command_compares_folders_and_draws_speakers(tmp_path, capsys):
    clips, labels = [f"/faces/s{i // 5}_{i}_aligned" for i in range(20)], np.arange(20) % 3
    lists = tmp_path / "lists" / "split01"
    lists.mkdir(parents=True)
    rows = ["clip,speaker", *(f"s{i // 5}_{i},{i // 5}" for i in range(20))]
    (lists.parent / "clip_speakers.csv").write_text("\n".join(rows) + "\n")
    for name, guesses in (("a", labels), ("b", np.zeros(20, int))):
        write_predictions(tmp_path / name / "fold1" / "pred.csv", clips, labels, guesses)
        settings = json.dumps({"data": {"data_path": str(lists)}})
        (tmp_path / name / "fold1" / "config.json").write_text(settings)
    folders, shown = [str(tmp_path / "a"), str(tmp_path / "b")], []
    for speakers in (["--speaker_pattern", "^(s[0-9])"], ["--by_speaker"]):
        main([*folders, "--titles", "ours", "theirs", *speakers, "--resamples", "200",
              "--confidence", "90"])  # fmt: skip
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert "Differences to 'ours'" in shown[0] and "speaker by speaker" in shown[0]
    assert "90% CI" in shown[0] and "speakers (4) within folds" in shown[0]
    assert "written" not in shown[0] and not list((tmp_path / "a").glob("report.*"))
    main([*folders[:1], "--baseline", folders[1], "--resamples", "0"])
    assert "Differences to 'b'" in capsys.readouterr().out


def test_odd_names_pass_under_a_strict_locale(tmp_path):
    folder = tmp_path / os.fsdecode(b"\xe9 $x_")
    for fold in (b"fold1", b"fold\xe92"):
        write_fold(folder / os.fsdecode(fold), 1, 9, prefix=os.fsdecode(b"\xe9"))
    names = tmp_path / "classes.txt"
    names.write_text("neutre\nfâché\n$gai_\n", encoding="utf-8")
    flags = [folder, "--resamples", "9", "--class_names", names]
    strict = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "hicmae.report", *flags]
    done = subprocess.run(command, env=strict, capture_output=True)
    assert done.returncode == 0, done.stderr
    page = (folder / "report.html").read_text(encoding="utf-8")
    for text in ("\\udce9 $x_", "fâché", "fold\\udce92", "\\udce9/clip 0, a"):
        assert text in page
    assert {p.suffix for p in folder.iterdir() if p.is_file()} == {".html", ".json", ".md", ".tex"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["gone"], "'gone' is no folder; give the one that holds the folds"),
        (["exp", "--class_names", "none.txt"], "'none.txt' is no file; expected the names"),
        (["exp", "--confidence", "0"], "--confidence must be > 0 and < 100, got 0"),
        (["exp", "--by_speaker", "--speaker_pattern", "b"], "give one of --by_speaker, --speaker"),
        (["exp", "--by_speaker"], "nor the folder above holds clip_speakers.csv"),
        (["exp", "--speaker_file", "a"], "'a' does not exist"),
        (["exp", "--speaker_pattern", "(z)"], "9 of 9 clips have no known speaker, first 'fold1"),
        (["exp", "exp"], "two of the folders are called alike"),
        (["exp", "other"], "9 of 'exp' are not in 'other', first 'fold1/clip 0, a'"),
        (["exp", "--titles", "a", "b"], "got 2 --titles for 1 folders"),
        (["exp", "--resamples", "9"], "'exp/report.md' is a folder, expected a file to write"),
    ],
)
def test_command_ends_with_one_line_on_bad_input(tmp_path, caplog, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_fold(tmp_path / "exp" / "fold1", 1, 9)
    write_fold(tmp_path / "other" / "fold1", 1, 8, prefix="y")
    (tmp_path / "exp" / "report.md").mkdir()
    assert main(arguments) == 2
    assert caplog.text.count("\n") == 1 and message in caplog.text
    assert {path.name for path in (tmp_path / "exp").iterdir()} == {"fold1", "report.md"}
