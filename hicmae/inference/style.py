"""How every picture and page looks and how it is written: colours, fonts, resolution, templates.

Colours are told apart by colour-blind readers (Okabe-Ito; viridis and inferno for values).
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from hicmae.io import check_writable, encodable, whole_file

DPI = 200
FORMATS = (".png", ".pdf", ".svg")
UNDATED = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}  # the same picture: one file
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#888888",
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.dpi": DPI,
    "figure.dpi": DPI,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "hicmae",
}
# Decorators of functions that draw: plots, and images, which a grid would cover.
styled = rc_context(STYLE)
styled_images = rc_context(STYLE | {"axes.grid": False})


def colour(number: int) -> str:
    """Return the colour of a class, run or method; they repeat after eight."""
    return OKABE_ITO[number % len(OKABE_ITO)]


def template(package: str, name: str) -> Template:
    """Return a page template of a package; whatever it is given is escaped."""
    look: Any = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    pages = Environment(loader=PackageLoader(package), undefined=StrictUndefined, **look)
    return pages.get_template(name)


def _with_plain_names(figure: Figure) -> Figure:
    """Escape what no font has, bytes that are not UTF-8; what is between two $ is no formula."""
    for text in figure.findobj(Text):
        text.set_text(encodable(text.get_text()))
        text.set_parse_math(False)
    return figure


def figure_to_image(figure: Figure, dpi: int = 100) -> np.ndarray:
    """Render a figure to (H, W, 3) uint8, for TensorBoard."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(_with_plain_names(figure))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def figure_to_png(figure: Figure, dpi: int = 140) -> bytes:
    """Render a figure to a PNG file without background, for pages."""
    buffer = io.BytesIO()
    options: Any = {"dpi": dpi, "bbox_inches": "tight", "transparent": True}
    _with_plain_names(figure).savefig(buffer, format="png", **options)
    return buffer.getvalue()


@styled
def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure, by the ending of the name as bitmap (200 dpi) or vectors."""
    check_writable(path, FORMATS)
    options: Any = {"bbox_inches": "tight", "pad_inches": 0.04}
    options["metadata"] = UNDATED.get(Path(path).suffix.lower())
    with whole_file(path) as part:
        _with_plain_names(figure).savefig(part, **options)
    return Path(path)
