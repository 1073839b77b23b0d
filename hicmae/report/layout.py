"""Reports as tables and pictures: in Markdown, LaTeX, one HTML page, and JSON."""

import base64
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from operator import methodcaller
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike
from sklearn.metrics import ConfusionMatrixDisplay

from hicmae.inference.style import OKABE_ITO, figure_to_png, styled, styled_images, template
from hicmae.report.scores import KINDS, TOTAL, Comparison, Report, metric_name

WORDS = ("score", "test")  # columns that do not hold figures
FEW_CLASSES = 7  # whose confusion matrix can be read at half the width of the page
# What Markdown would read as a table border, emphasis or markup, and LaTeX as a command; a bracket
# at the start of a row would be an argument of the row above.
MARKDOWN = str.maketrans({sign: f"\\{sign}" for sign in "\\|*_`<"})
LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "{}$&#_%"}
    | {sign: f"${sign}$" for sign in "<>|"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "[": "{}["}
)


class Section(NamedTuple):
    """A heading, tables of text, remarks below them, and the report they are of, to draw it."""

    heading: str
    tables: dict[str, pd.DataFrame]  # by caption; the index is named
    notes: list[str]
    report: Report | None = None


def document(reports: Sequence[Report], comparisons: Sequence[Comparison] = ()) -> list[Section]:
    """Lay out everything, with notes: the comparison if there is one, then report by report."""
    first, sections, method = reports[0], list[Section](), list[str]()
    plan = first.plan
    if len(first.rows) > 1:
        method.append("mean and std: over folds, sample standard deviation (n - 1)")
    if plan.resamples:
        speakers = len(set(first.pooled[first.kinds[0]].speakers))
        method.append(
            f"{plan.confidence:g}% CI: percentile bootstrap of Total, {plan.resamples} resamples "
            f"of {f'speakers ({speakers})' if speakers else 'clips'} within folds, seed {plan.seed}"
        )
    if len(reports) > 1:
        tables = {"Total of every run, in percent.": summary_table(reports)}
        sections.append(Section("Runs side by side", tables, method))
        method = []
    if comparisons:
        caption = f"Differences to '{comparisons[0].baseline}', in percentage points."
        tables = {caption: comparison_table(comparisons)}
        sections.append(Section("Differences", tables, _comparison_notes(comparisons[0])))
    for report in reports:
        what = "Outputs" if report.is_regression else "Recall of the classes"
        tables = {
            "Scores in percent; Total: all clips pooled.": main_table(report),
            f"{what}, all folds pooled, in percent.": detail_table(report),
        }
        sections.append(Section(report.title, tables, [*report.notes, *method], report))
    return sections


def percent(value: float, signs: str = ".2f") -> str:
    """Return a fraction in percent with two digits, "-" where there is none."""
    return "-" if math.isnan(value) else f"{100.0 * value:{signs}}"


def interval(low: float, high: float) -> str:
    """Return an interval in percent, "-" where there is none."""
    return "-" if math.isnan(low) else f"[{percent(low)}, {percent(high)}]"


def chance(p_value: float) -> str:
    """Return a p-value with four digits."""
    if math.isnan(p_value):
        return "-"
    return "<0.0001" if p_value < 0.0001 else f"{p_value:.4f}"


def main_table(report: Report) -> pd.DataFrame:
    """Lay out one row a fold, mean and deviation, and Total with its interval."""
    columns = list(itertools.product(report.kinds, report.metrics))
    spread = report.spread() if len(report.rows) > 1 else None
    parts = report.frame.loc[report.rows], spread, report.frame.loc[[TOTAL]]
    table = pd.concat(parts)[columns].map(percent)
    if report.plan.resamples:
        bounds = [interval(*report.intervals[kind][metric]) for kind, metric in columns]
        table.loc[f"{report.plan.confidence:g}% CI"] = bounds
    table.columns = pd.Index([f"{metric_name(metric)} {kind}" for kind, metric in columns])
    counts = {n: str(found["count"]) for s in report.scores.values() for n, found in s.items()}
    table.insert(0, "clips", [counts.get(name, "") for name in table.index])
    return table.rename_axis("fold")


def estimate(report: Report, kind: str, score: str) -> str:
    """Return a pooled score with its interval, e.g. "84.94 [82.10, 87.03]"."""
    value, *bounds = report.total(kind, score)
    return f"{percent(value)} {interval(*bounds)}" if report.plan.resamples else percent(value)


def detail_table(report: Report) -> pd.DataFrame:
    """Lay out the pooled scores of every class (recall) or output, with their intervals."""
    table = pd.DataFrame(index=pd.Index(report.names, dtype=object, name="output"))
    metrics = report.metrics
    if not report.is_regression:
        confusion = np.array(report.scores[report.kinds[0]][TOTAL]["confusion"])
        table["clips"], metrics = list(map(str, confusion.sum(1))), ("recall",)
        table.index.name = "class"
    for kind, metric in itertools.product(report.kinds, metrics):
        cells = [estimate(report, kind, f"{metric} {k}") for k in range(len(table))]
        table[f"{metric_name(metric)} {kind}"] = cells
    return table


def summary_table(reports: Sequence[Report]) -> pd.DataFrame:
    """Lay out Total of every run with its interval, for the epochs that all have."""
    first, titles = reports[0], [report.title for report in reports]
    table = pd.DataFrame(index=pd.Index(titles, dtype=object, name="run"))
    table["clips"] = [str(len(report.pooled[report.kinds[0]].clips)) for report in reports]
    shared = [kind for kind in first.kinds if all(kind in report.kinds for report in reports)]
    for kind, metric in itertools.product(shared, first.metrics):
        cells = [estimate(report, kind, metric) for report in reports]
        table[f"{metric_name(metric)} {kind}"] = cells
    return table


def comparison_table(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """Lay out every difference to the first run with its interval and p-value."""
    found = pd.concat([compared.differences for compared in comparisons])
    tested = [(c, metric) for c in comparisons for metric in c.differences["metric"]]
    columns: dict[str, Any] = {
        "score": [f"{metric_name(metric, c.names)} {c.kind}" for c, metric in tested],
        "first": found["baseline"].map(percent),
        "value": found["value"].map(percent),
        "difference": [percent(gap, "+.2f") for gap in found["value"] - found["baseline"]],
        "CI": list(map(interval, found["low"], found["high"])),
        "p": found["p_value"].map(chance),
        "p (Holm)": found["p_adjusted"].map(chance),
        "test": found["test"],
    }
    if len({compared.title for compared in comparisons}) == 1:
        del columns["p (Holm)"]
    titles = [c.title * (k == 0) for c in comparisons for k in range(len(c.differences))]
    return pd.DataFrame(columns).set_axis(pd.Index(titles, dtype=object, name="run"))


def _comparison_notes(first: Comparison) -> list[str]:
    tests = " ".join(first.differences["test"])
    notes = [f"the same {first.num_clips} clips in all runs; CI: paired bootstrap; p: two-sided"]
    if "McNemar" in tests:
        notes.append("McNemar exact, a : b: clips that only the run, or only the first, gets right")
    if "permutation" in tests:
        unit = "speaker by speaker" if first.by_speaker else "clip by clip"
        notes.append(
            f"permutation: the predictions of both runs are swapped at random, {unit}, "
            f"{first.resamples} times, so p is at least 1 / {first.resamples + 1}"
        )
    return notes


def _escaped(table: pd.DataFrame, signs: Mapping[int, str]) -> pd.DataFrame:
    """Escape cells, names and headings."""
    escape = methodcaller("translate", signs)
    return table.map(escape).rename(index=escape, columns=escape)


def _sides(table: pd.DataFrame) -> list[str]:
    return ["left", *("left" if name in WORDS else "right" for name in table)]


def as_markdown(sections: Sequence[Section]) -> str:
    """Return aligned pipe tables, to be read as they are or rendered."""
    blocks = []
    for section in sections:
        blocks.append(f"# {section.heading.translate(MARKDOWN)}")
        for caption, table in section.tables.items():
            text = _escaped(table, MARKDOWN)
            text = text.to_markdown(disable_numparse=True, colalign=_sides(table))
            blocks += [caption.translate(MARKDOWN), text]
        blocks.append("\n".join(f"- {note.translate(MARKDOWN)}" for note in section.notes))
    return "\n\n".join(filter(None, blocks)) + "\n"


def as_latex(sections: Sequence[Section]) -> str:
    r"""Return tables to be read by \input; they need the package booktabs."""
    blocks = [r"% needs \usepackage{booktabs}"]
    for section in sections:
        for caption, table in section.tables.items():
            text = _escaped(table, LATEX).rename_axis(index=None, columns=table.index.name)
            sides = "".join(side[0] for side in _sides(table))
            title = f"{section.heading}: {caption}".translate(LATEX)
            look = {"position": "t", "position_float": "centering", "hrules": True}
            blocks.append(text.style.to_latex(column_format=sides, caption=title, **look).strip())
        blocks.append("\n".join(f"% {note}" for note in section.notes))
    return "\n\n".join(filter(None, blocks)) + "\n"


def as_html(sections: Sequence[Section]) -> str:
    """Return one page that needs nothing else: pictures are inside it."""
    title = " / ".join(s.report.title for s in sections if s.report) or "report"
    parts = [(s, list(_pictures(s.report)) if s.report else []) for s in sections]
    return template("hicmae.report", "page.html").render(title=title, parts=parts, words=WORDS)


def as_json(reports: Sequence[Report], comparisons: Sequence[Comparison] = ()) -> str:
    """Return everything, scores as fractions; of one run without the list around it."""
    pairs = [c._asdict() | {"differences": c.differences.to_dict("records")} for c in comparisons]
    runs = list(map(_figures_of, reports))
    content = runs[0] if len(runs) == 1 else {"runs": runs, "comparisons": pairs}
    plain = json.loads(json.dumps(content), parse_constant=lambda _: None)  # JSON has no nan
    return json.dumps(plain, indent=2) + "\n"


def _figures_of(report: Report) -> dict[str, Any]:
    plan, spread, first = report.plan, report.spread(), report.pooled[report.kinds[0]]
    *folds, total = (
        {"name": name} | {kind: report.scores.get(kind, {}).get(name) for kind in KINDS}
        for name in (*report.rows, TOTAL)
    )
    means = {k: {m: spread[k][m].tolist() for m in report.metrics} for k in report.kinds}
    bootstrap = {"resamples": plan.resamples, "confidence": plan.confidence / 100}
    return {
        "folder": str(report.folder),
        "title": report.title,
        "names": report.names,
        "folds": folds,
        "total": total,
        "mean_and_std_over_folds": means,
        "intervals": report.intervals,
        "bootstrap": bootstrap | {"seed": plan.seed, "speakers": bool(first.speakers)},
        "notes": report.notes,
    }


def _pictures(report: Report) -> Iterator[tuple[str, str, bool]]:
    """Draw a report: titles, addresses, and whether pictures take the width of the page."""
    count = len(report.names)
    for kind, table in report.pooled.items():
        if report.is_regression:
            title, wide = "Predictions", count > 1
            figure = scatter_figure(table.labels, table.predictions, report.names)
        else:
            title, wide = "Confusion matrix", count > FEW_CLASSES
            figure = confusion_figure(report.scores[kind][TOTAL]["confusion"], report.names)
        data = base64.b64encode(figure_to_png(figure)).decode("ascii")
        yield f"{title}, {kind} epoch", f"data:image/png;base64,{data}", wide


@styled
def scatter_figure(truth: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw one panel an output, (n, K) against (n, K), with the line of right predictions."""
    figure = Figure((2.5 * len(names), 2.7))
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name, *both in zip(panels, names, truth.T, predicted.T, strict=True):
        axes.plot(*both, "o", color=OKABE_ITO[0], ms=2.5, alpha=0.5)
        axes.axline((np.min(both), np.min(both)), slope=1, ls="--", color="#888888", lw=1)
        axes.set(aspect="equal", adjustable="datalim", title=name, xlabel="true value")
    panels[0].set_ylabel("predicted value")
    return figure


@styled_images
def confusion_figure(confusion: ArrayLike, names: Sequence[str], title: str = "") -> Figure:
    """Draw (K, K) counts, row = true class, coloured by the share of each true class.

    The row of a class without clips has no colour.
    """
    counts, num = np.asarray(confusion), len(names)
    if counts.shape != (num, num):
        raise ValueError(f"{num} class names for a confusion matrix of {counts.shape}")
    clips = counts.sum(1, keepdims=True)
    share, side = counts / np.where(clips > 0, clips, np.nan), 0.52 * num + 1.9
    figure = Figure((side + 0.5, side))
    axes = figure.subplots()
    display = ConfusionMatrixDisplay(share, display_labels=names)
    display.plot(ax=axes, colorbar=False, im_kw={"vmin": 0.0, "vmax": 1.0})
    for place, text in np.ndenumerate(display.text_):
        text.set_text(f"{100 * share[place]:.0f}%\n{counts[place]}" if counts[place] else "0")
        light = share[place] <= 0.6  # not where there are no clips
        text.set(color="white" if light else "black", fontsize=7, linespacing=1.3)
    if max(map(len, names)) > 4:
        axes.set_xticks(range(num), names, rotation=40, ha="right")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    label: Any = {"label": "share of the true class", "format": PercentFormatter(1.0)}
    bar = figure.colorbar(display.im_, fraction=0.046, pad=0.03, **label)
    bar.ax.spines["outline"].set_visible(False)
    return figure
