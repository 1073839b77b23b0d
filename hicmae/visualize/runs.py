"""Pictures of what runs have written: curves, confusion, calibration, scores across data sets."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from hicmae.config.flags import flat_settings
from hicmae.data.clip_list import names_of_run
from hicmae.data.video import natural_key
from hicmae.inference.style import MARKERS, colour, figure_to_image, save_figure, styled
from hicmae.io import encodable
from hicmae.report.layout import confusion_figure
from hicmae.report.scores import KINDS, TOTAL, Report, build, matched, metric_name, pool, read_json
from hicmae.training.evaluate import calibration, tempered
from hicmae.training.logs import read_lines
from hicmae.training.resampling import Plan, read_predictions

# What log.txt holds beside curves worth drawing; there is nothing to see in bad steps of zero.
NOT_CURVES = {"n_parameters", "step", "count", "clips", "memory_mib", "weight_decay"}
SPLITS = {"train": ("training", "-"), "val": ("validation", "--"), "test": ("test", ":")}
FEWEST_AXES = 3
BINS = 15  # of confidence, as the ECE has


def curves(output_dirs: Sequence[str | Path]) -> Figure:
    """Draw losses and scores over the epochs of runs, from their log.txt."""
    logs = {}
    for folder in sorted(map(Path, output_dirs), key=lambda path: natural_key(path.name)):
        records = [record for record in read_lines(folder / "log.txt") if "epoch" in record]
        if not records:
            raise FileNotFoundError(f"'{folder / 'log.txt'}' holds no finished epoch yet")
        name = encodable(folder.name)
        logs[name if name not in logs else encodable(str(folder))] = records
    return curves_figure(logs)


@styled
def curves_figure(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw the log.txt of runs, a dictionary an epoch: one panel a quantity, one colour a run.

    Keys `train_x`, `val_x` and `test_x` share the panel x, with solid, dashed and dotted lines.
    """
    runs = [pd.DataFrame(log).set_index("epoch").select_dtypes("number") for log in logs.values()]
    runs = [run.where(np.isfinite(run)) for run in runs]
    panels: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for run in runs for key in run):
        split, _, rest = key.partition("_")
        quantity = rest if split in SPLITS else key
        values = pd.concat([run[key] for run in runs if key in run]).dropna()
        drawable = values.any() if quantity == "bad_steps" else len(values)
        if drawable and not {quantity, key} & NOT_CURVES:
            panels.setdefault(quantity, []).append(key)
    if not panels:
        raise ValueError("the logs hold no numbers to draw; is one epoch finished?")
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    figure = Figure((2.9 * columns, 2.1 * rows))
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (quantity, keys) in zip(grid, panels.items(), strict=False):
        _draw_panel(axes, quantity, keys, runs)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[: len(panels)][-columns:]:  # the lowest of each column
        axes.set_xlabel("epoch")
    if len(runs) > 1:
        lines = [Line2D([], [], color=colour(number)) for number in range(len(runs))]
        figure.legend(lines, list(logs), loc="outside lower center", ncols=min(len(runs), 6))
    return figure


def _draw_panel(axes: Axes, quantity: str, keys: list[str], runs: Sequence[pd.DataFrame]) -> None:
    """Draw one quantity; splits of it are told apart by dashes, a single one needs none."""
    splits = [SPLITS.get(key.split("_")[0], ("", "-")) for key in keys]
    dashes: list[Any] = [dash if len(keys) > 1 else "-" for _, dash in splits]
    for number, run in enumerate(runs):
        for key, dash in zip(keys, dashes, strict=True):
            points = run[key].dropna() if key in run else pd.Series(dtype=float)
            (line,) = axes.plot(points.index, points, dash, color=colour(number), linewidth=1.3)
            line.set(marker="o" if len(points) < 3 else "", markersize=3)
    name = quantity.upper() if quantity in ("uar", "war") else quantity.replace("_", " ")
    axes.set_title(f"{splits[0][0]} {name}".strip() if len(keys) == 1 else name)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    if "lr" in quantity.split("_"):
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    if len(keys) > 1:
        lines = [Line2D([], [], color="#555555", linestyle=dash) for dash in dashes]
        axes.legend(lines, [s or k for (s, _), k in zip(splits, keys, strict=True)], fontsize=8)


def confusion(pred_files: Sequence[str | Path], class_names: Sequence[str] = ()) -> Figure:
    """Draw the confusion matrix of prediction files, or those of runs, put together."""
    paths = [p / KINDS["last"] if p.is_dir() else p for p in map(Path, pred_files)]
    pooled = pool([read_predictions(path) for path in paths])
    if pooled.is_regression:
        raise ValueError(f"'{paths[0]}' is of a regression; it has no confusion matrix")
    scores = pooled.scores()
    settings = flat_settings(read_json(paths[0].parent / "config.json"))
    settings |= {"class_names": class_names} if class_names else {}
    names = names_of_run(settings, "classification", pooled.num_outputs)
    title = f"{scores['count']} clips, UAR {scores['uar']:.2%}, WAR {scores['war']:.2%}"
    return confusion_figure(scores["confusion"], list(map(encodable, names)), title)


def confusion_image(metrics: Mapping[str, Any], names: Sequence[str]) -> np.ndarray:
    """Draw the confusion matrix among the metrics of a classifier, (H, W, 3) uint8."""
    title = f"UAR {metrics['uar']:.1%}, WAR {metrics['war']:.1%}"
    return figure_to_image(confusion_figure(metrics["confusion"], names, title))


@styled
def draw_reliability(
    labels: ArrayLike, scores: np.ndarray, temperature: float, path: str | Path
) -> None:
    """Write a picture of probabilities (n, K) before and after a temperature.

    It shows the share of right answers by confidence, which ends on the dashed line where they can
    be believed, and how many clips have that confidence, below.
    """
    edges, after = np.linspace(0.0, 1.0, BINS + 1), tempered(scores, temperature)
    panels = {"before": scores, f"after the temperature, {temperature:.2f}": after}
    figure = Figure((2.7 * len(panels), 3.4))
    shape: Any = {"sharex": True, "sharey": "row", "height_ratios": (3, 1)}
    grid = figure.subplots(2, len(panels), **shape)
    for (upper, lower), (title, values) in zip(grid.T, panels.items(), strict=True):
        confidence, right = values.max(1), values.argmax(1) == np.asarray(labels)
        counts, hits = (np.histogram(x, edges)[0] for x in (confidence, confidence[right]))
        look: Any = {"width": 1 / BINS, "align": "edge", "edgecolor": "white"}
        upper.bar(edges[:-1], hits / counts.clip(1), color=colour(0), **look)
        upper.plot([0, 1], [0, 1], "--", color="#555555", linewidth=1)
        lower.bar(edges[:-1], counts, color="#999999", **look)
        found = calibration(labels, values, BINS)
        upper.set(title=f"{title}\nECE {found['ece']:.3f}, NLL {found['nll']:.3f}", ylim=(0, 1))
        lower.set(xlabel="confidence", xlim=(0, 1), xticks=(0, 0.25, 0.5, 0.75))
    grid[0, 0].set_ylabel("share of right answers")
    grid[1, 0].set_ylabel("clips")
    save_figure(figure, path)


def scores_of_folders(
    entries: Sequence[str], metrics: Sequence[str] = (), kind: str = "last"
) -> pd.DataFrame:
    """Score the finished folds of experiments, in percent: a row a method, (data set, metric).

    Entries are "DATASET=FOLDER", or "DATASET/METHOD=FOLDER"; metrics those of `hicmae.report`, WAR
    or CCC if empty; "recall" is one axis a class, nan for a class without clips.
    """
    methods: dict[str, dict[tuple[str, str], float]] = {}
    firsts = dict[str, Report]()  # of each data set; its other methods have its clips
    named = [metric for metric in metrics if metric != "recall"]
    for entry in entries:
        name, _, folder = entry.partition("=")
        if not name or not folder:
            raise ValueError(f"expected DATASET=FOLDER or DATASET/METHOD=FOLDER, got '{entry}'")
        dataset, _, method = encodable(name).partition("/")
        report = build(folder, plan=Plan(resamples=0), metrics=named, title=name)
        if kind not in report.kinds:
            raise ValueError(f"'{folder}' has no predictions of its {kind} epoch")
        first, found = firsts.setdefault(dataset, report), methods.setdefault(method, {})
        matched(first.pooled[kind], report.pooled[kind], first.title, report.title)
        if dataset in {axis[0] for axis in found}:
            raise ValueError(f"'{name}' is given twice; name the methods apart")
        if "recall" in metrics and report.is_regression:
            raise ValueError(f"'{folder}' is a regression; it has no recall of classes")
        axes = {metric_name(m): m for m in named or ([] if metrics else report.metrics[-1:])}
        if "recall" in metrics:
            axes |= {name: f"recall {k}" for k, name in enumerate(report.names)}
        total = 100 * report.frame[kind].loc[TOTAL]
        found |= {(dataset, axis): total[score] for axis, score in axes.items()}
    return pd.DataFrame(methods).T


@styled
def radar_figure(scores: pd.DataFrame) -> Figure:
    """Draw one polygon a method, a row of the scores (methods, axes); nan is a gap in it."""
    names = scores.columns.to_frame()
    if len(names) < FEWEST_AXES:
        text = f"a radar plot needs at least {FEWEST_AXES} axes (data sets times metrics)"
        raise ValueError(f"{text}, got {len(names)}; add some, or see python -m hicmae.report")
    top = max(10 * math.ceil((scores.max(axis=None) - 1e-9) / 10), 10)
    angles = np.linspace(0, 2 * math.pi, len(names), endpoint=False)
    varies = names.nunique() > 1  # axes are named by what differs; what they share is the title
    gaps = scores.isna().all().map({True: "\n(no clips)", False: ""})
    figure = Figure((4.0, 3.7))
    axes = cast(PolarAxes, figure.add_subplot(projection="polar"))
    axes.set_theta_offset(math.pi / 2)  # the first axis points up, the others go clockwise
    axes.set_theta_direction(-1)
    for number, (method, row) in enumerate(scores.clip(lower=0).iterrows()):
        look: Any = {"color": colour(number), "marker": MARKERS[number % len(MARKERS)]}
        closed = np.append(angles, angles[0]), np.append(row, row.iloc[0])
        axes.plot(*closed, ms=4, lw=1.4, label=method, **look)
        axes.fill(angles[row.notna()], row.dropna(), color=colour(number), alpha=0.08)
    axes.set_xticks(angles, names.loc[:, varies].agg("\n".join, axis=1) + gaps)
    axes.tick_params(axis="x", pad=6)
    for label, angle in zip(axes.get_xticklabels(), angles, strict=True):
        side = math.sin(angle)  # clockwise from the top: positive on the right
        label.set(ha="center" if abs(side) < 0.1 else "left" if side > 0 else "right")
    axes.set_title(" ".join(names.loc[:, ~varies].iloc[0]), pad=16)
    ticks = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(0, top)[1:]
    axes.set_ylim(0, top)
    axes.set_yticks(ticks, [f"{tick:g}%" for tick in ticks], fontsize=8, color="#555555")
    axes.set_rlabel_position(180 / len(angles))
    axes.spines["polar"].set_color("#aaaaaa")
    if any(scores.index):
        figure.legend(loc="outside lower center", ncols=min(len(scores), 3))
    return figure


def radar(sources: Sequence[str], metrics: Sequence[str] = (), kind: str = "last") -> Figure:
    """Draw scores across data sets, a polygon a method; arguments as for `scores_of_folders`."""
    return radar_figure(scores_of_folders(sources, metrics, kind))
