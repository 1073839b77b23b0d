"""Draw figs/architecture.{png,svg,pdf}: the method, pre-training above, fine-tuning below.

    python scripts/figures/architecture.py [FOLDER]

The frames and spectrograms in it are drawn by formula, not taken from any data set.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path as Outline

WIDTH, HEIGHT = 124.0, 84.0  # units of the drawing; ten are an inch
# Okabe-Ito, which colour-blind readers can tell apart; the pale one fills, the full one outlines.
VIDEO, AUDIO, FUSION, CONTRAST = "#0072B2", "#D55E00", "#007A5A", "#A8437E"
PALE = {VIDEO: "#D6E8F5", AUDIO: "#FBE3D3", FUSION: "#D3EEE5", CONTRAST: "#F6E1EE"}
INK, MUTED, MASK = "#222222", "#5A5A5A", "#9A9A9A"
SMALL, NORMAL, LARGE = 7.0, 8.2, 10.0


class Stream:
    """How one modality is drawn: its colour, its row, and the side its connections run on."""

    def __init__(self, name: str, colour: str, y: float, outward: int) -> None:
        self.name, self.colour, self.y, self.outward = name, colour, y, outward


def write(
    axes: Axes, x: float, y: float, text: str, size: float = SMALL, colour: str = INK, **options
) -> None:
    axes.text(x, y, text, size=size, color=colour, **{"ha": "center", "va": "center"} | options)


def box(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    colour: str,
    text: str = "",
    **options,
) -> None:
    """A rounded box centred on (x, y)."""
    shape = FancyBboxPatch(
        (x - width / 2, y - height / 2),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.8",
        facecolor=PALE[colour],
        edgecolor=colour,
        linewidth=1.1,
        zorder=3,
    )
    axes.add_patch(shape)
    if text:
        write(axes, x, y, text, zorder=4, **options)


def arrow(
    axes: Axes, start: tuple, end: tuple, colour: str = INK, style: str = "-|>", **options
) -> None:
    defaults = {"linewidth": 1.1, "mutation_scale": 8, "shrinkA": 0, "shrinkB": 0, "zorder": 2}
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle=style, color=colour, **defaults | options)
    )


def path(axes: Axes, corners: Sequence[tuple], colour: str, radius: float = 1.2, **options) -> None:
    """A line through the corners, which it rounds, with an arrow head at its end."""
    points = [np.array(corner, float) for corner in corners]
    vertices, codes = [points[0]], [Outline.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        for side in (before, after):
            toward = (side - corner) / np.linalg.norm(side - corner) * radius
            vertices.append(corner + toward)
            codes.append(Outline.LINETO if side is before else Outline.CURVE3)
        vertices.insert(-1, corner)
        codes.insert(-1, Outline.CURVE3)
    defaults = {"linewidth": 1.1, "zorder": 2}
    outline = Outline([*vertices, points[-1]], [*codes, Outline.LINETO])
    axes.add_patch(PathPatch(outline, fill=False, edgecolor=colour, **defaults | options))
    last = points[-1] - points[-2]
    tail = points[-1] - last / np.linalg.norm(last)
    arrow(axes, tuple(tail), tuple(points[-1]), colour)


def face(size: int = 100) -> np.ndarray:
    """A drawn face, (size, size, 3) in [0, 1]."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    image = np.empty((size, size, 3))
    image[:] = np.array([0.80, 0.86, 0.90])
    image[(x / 0.62) ** 2 + ((y + 0.10) / 0.80) ** 2 < 1] = (0.30, 0.22, 0.20)
    skin = np.array([0.93, 0.76, 0.64]) * (1 - 0.12 * np.clip(x + 0.2, 0, 1))[..., None]
    inside = (x / 0.52) ** 2 + ((y - 0.06) / 0.68) ** 2 < 1
    image[inside] = skin[inside]
    for side in (-0.21, 0.21):
        eye = ((x - side) / 0.09) ** 2 + ((y + 0.08) / 0.055) ** 2 < 1
        brow = (abs(x - side) < 0.13) & (abs(y + 0.25 + 0.6 * (x - side) ** 2) < 0.03)
        image[eye | brow] = (0.15, 0.11, 0.10)
    curve = 0.40 - 0.9 * x**2
    image[(abs(x) < 0.24) & (abs(y - curve) < 0.045)] = (0.62, 0.20, 0.20)
    image[(abs(x) < 0.035) & (abs(y - 0.17) < 0.03)] = (0.78, 0.58, 0.48)
    return image


def spectrogram(size: int = 96) -> np.ndarray:
    """Harmonics under moving formants, (size, size) in [0, 1], low frequencies at the bottom."""
    frequency, time = np.mgrid[1 : 0 : size * 1j, 0 : 1 : size * 1j]
    pitch = 0.055 * (1 + 0.25 * np.sin(5.5 * time))
    harmonics = 0.5 + 0.5 * np.cos(2 * np.pi * frequency / pitch)
    first = np.exp(-(((frequency - 0.16 - 0.07 * np.sin(9 * time)) / 0.09) ** 2))
    second = 0.8 * np.exp(-(((frequency - 0.48 + 0.16 * np.cos(7 * time)) / 0.10) ** 2))
    voiced = np.clip(1.6 * abs(np.sin(3.4 * np.pi * time)), 0, 1)
    return (0.10 + 0.9 * (first + second) * harmonics) * (0.25 + 0.75 * voiced)


def hidden_cells(rows: int, columns: int, share: float) -> np.ndarray:
    """A mask of int(share * cells) cells, True = masked."""
    mask = np.zeros(rows * columns, bool)
    mask[np.random.default_rng(21).permutation(mask.size)[: int(share * mask.size)]] = True
    return mask.reshape(rows, columns)


def picture(
    axes: Axes, stream: Stream, x: float, y: float, hide: np.ndarray | None = None, size: float = 9
) -> None:
    """The stream's input as a picture centred on (x, y); masked cells grey."""
    is_video = stream.name == "video"
    for shift in (1.4, 0.7, 0.0) if is_video else (0.0,):
        extent = (x - size / 2 + shift, x + size / 2 + shift, y - size / 2 + shift)
        extent = (*extent, y + size / 2 + shift)
        if is_video:
            axes.imshow(face(), extent=extent, zorder=3 - shift / 10, interpolation="lanczos")
        else:
            axes.imshow(spectrogram(), extent=extent, cmap="magma", zorder=3)
        if hide is not None:
            height, width = hide.shape
            for row, column in np.argwhere(hide):
                corner = (extent[0] + column * size / width, extent[3] - (row + 1) * size / height)
                cell = Rectangle(corner, size / width, size / height, facecolor="#B9B9B9")
                cell.set(edgecolor="white", linewidth=0.35, zorder=3.02 - shift / 10)
                axes.add_patch(cell)
        frame = Rectangle((extent[0], extent[2]), size, size, fill=False, edgecolor=stream.colour)
        frame.set(linewidth=0.9, zorder=3.05 - shift / 10)
        axes.add_patch(frame)
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))


def cross(axes: Axes, x: float, upper: Stream, lower: Stream) -> None:
    """The fusion encoder: two blocks, each with the other's input as context."""
    middle = (upper.y + lower.y) / 2
    box(axes, x, middle, 14.4, upper.y - lower.y + 8.6, FUSION)
    for stream in (upper, lower):
        block = FancyBboxPatch(
            (x - 6, stream.y - 2.7),
            12,
            5.4,
            boxstyle="round,pad=0,rounding_size=0.6",
            facecolor="white",
            edgecolor=stream.colour,
            linewidth=1.0,
            zorder=4,
        )
        axes.add_patch(block)
        write(axes, x, stream.y, "cross-attention,\nself-attention", zorder=5)
    for side, (start, end) in ((-5.2, (upper, lower)), (5.2, (lower, upper))):
        toward = np.sign(end.y - start.y) * 2.7
        arrow(
            axes,
            (x + side, start.y + toward),
            (x + side, end.y - toward),
            start.colour,
            zorder=4,
        )
    lines = "cross-modal\nfusion\n\u00d7 2 layers"
    write(axes, x, middle, lines, NORMAL, FUSION, zorder=6, weight="bold")


LEVELS = ((31.0, "blocks\n0\u20133"), (42.7, "blocks\n4\u20136"), (54.4, "blocks\n7\u20139"))
FUSION_X = 73.2
DECODER_X = (88.5, 95.3, 102.1, 108.9)


def encoder(axes: Axes, stream: Stream) -> list[float]:
    """The encoder in three parts; returns where the three kept levels leave it."""
    nodes = []
    arrow(axes, (24.6 if stream.outward > 0 else 23.5, stream.y), (LEVELS[0][0] - 3.5, stream.y))
    for index, (x, text) in enumerate(LEVELS):
        box(axes, x, stream.y, 7, 8, stream.colour, text)
        node = x + 5.8
        end = LEVELS[index + 1][0] - 3.5 if index < 2 else FUSION_X - 7.2
        arrow(axes, (x + 3.5, stream.y), (end, stream.y))
        dot = Circle((node, stream.y), 0.85, facecolor=stream.colour, edgecolor="white", zorder=5)
        axes.add_patch(dot)
        nodes.append(node)
    heading(axes, nodes[0] - 1.2, stream, 6.9, "encoder", "ViT, 10 blocks", ha="right")
    return nodes


def heading(
    axes: Axes, x: float, stream: Stream, distance: float, part: str, detail: str, **options
) -> None:
    """The name of a part of a stream, and a second line, on the stream's outer side."""
    y = stream.y + stream.outward * distance
    write(
        axes, x, y + 0.9, f"{stream.name} {part}", NORMAL, stream.colour, weight="bold", **options
    )
    write(axes, x, y - 0.9, detail, SMALL, MUTED, **options)


def contrast(axes: Axes, nodes: Sequence[float], upper: Stream, lower: Stream) -> None:
    """InfoNCE between the two encoders at each kept level."""
    middle = (upper.y + lower.y) / 2
    for index, x in enumerate(nodes):
        for stream, side in ((upper, 1), (lower, -1)):
            arrow(axes, (x, stream.y - side * 0.9), (x, middle + side * 2.2), CONTRAST)
        box(axes, x, middle, 8.0, 4.4, CONTRAST, f"InfoNCE\nlevel {index + 1}")
    note = "cross-modal\ncontrast of\ntoken means"
    write(axes, 27.6, middle, note, NORMAL, CONTRAST, weight="bold")


def decoder(axes: Axes, stream: Stream, nodes: Sequence[float]) -> None:
    """The decoder, its skip connections and its mask tokens."""
    arrow(axes, (FUSION_X + 7.2, stream.y), (DECODER_X[0] - 2.5, stream.y))
    for index, x in enumerate(DECODER_X):
        box(axes, x, stream.y, 5, 8, stream.colour, f"block\n{index}")
        arrow(axes, (x + 2.5, stream.y), (x + (4.3 if index < 3 else 4.6), stream.y))
    # The deepest level goes to block 1, the shallowest to the last, so the connections nest.
    for depth, (node, x) in enumerate(zip(reversed(nodes), DECODER_X[1:], strict=True)):
        lane = stream.y + stream.outward * (6.6 + 1.9 * depth)
        start = (node, stream.y + stream.outward * 0.9)
        corners = [start, (node, lane), (x, lane), (x, stream.y + stream.outward * 4.1)]
        path(axes, corners, stream.colour, linestyle=(0, (4, 1.6)))
    inner, x = stream.y - stream.outward * 7.4, 83.7
    for shift in (-1.8, -0.6, 0.6, 1.8):
        token = Rectangle((x + shift - 0.5, inner - 0.5), 1.0, 1.0, facecolor="#B9B9B9")
        token.set(edgecolor=MASK, linewidth=0.6, zorder=3)
        axes.add_patch(token)
    arrow(axes, (x, inner + stream.outward * 0.7), (x, stream.y), MASK)
    write(axes, x + 2.9, inner, "mask tokens", SMALL, MUTED, ha="left")
    name = f"{stream.name} decoder: 4 blocks"
    y = stream.y - stream.outward * 5.5
    write(axes, 98.7, y, name, NORMAL, stream.colour, weight="bold")


def pretraining(axes: Axes) -> None:
    """The upper half."""
    video, audio = Stream("video", VIDEO, 67.8, 1), Stream("audio", AUDIO, 47.8, -1)
    masks = {"video": hidden_cells(10, 10, 0.9), "audio": hidden_cells(8, 16, 0.8)}
    notes = {
        "video": ("16 frames, 160\u00d7160", "90 % of tubes masked,\n80 of 800 tokens visible"),
        "audio": ("2.56 s, 128 mel bins", "80 % masked,\n26 of 128 tokens visible"),
    }
    goals = {
        "video": "MSE on masked\npatches: pixels,\nframe differences",
        "audio": "MSE on masked\nspectrogram\npatches",
    }
    title(axes, HEIGHT - 1.6, "a", "Pre-training on unlabelled clips")
    nodes: list[float] = []
    for stream in (video, audio):
        picture(axes, stream, 6.2, stream.y, size=8.6)
        arrow(axes, (12.2 if stream is video else 10.7, stream.y), (14.4, stream.y))
        picture(axes, stream, 18.9, stream.y, masks[stream.name], size=8.6)
        for x, drop, note in zip((6.2, 19.2), (5.7, 6.5), notes[stream.name], strict=True):
            write(axes, x, stream.y - drop, note, SMALL, MUTED)
        nodes = encoder(axes, stream)
        decoder(axes, stream, nodes)
        write(axes, 118.9, stream.y, goals[stream.name])
    contrast(axes, nodes, video, audio)
    cross(axes, FUSION_X, video, audio)
    middle = (video.y + audio.y) / 2
    loss = r"loss = MSE$_{video}$ + MSE$_{audio}$ + 0.0025 $\cdot \Sigma_{levels}$ InfoNCE"
    write(axes, 103.5, middle, loss, NORMAL)
    write(axes, 71, video.y + 12.1, "hierarchical skip connections", SMALL, MUTED)


def title(axes: Axes, y: float, letter: str, text: str) -> None:
    """The letter and the name of a half."""
    write(axes, 1, y, letter, LARGE, weight="bold", ha="left")
    write(axes, 3.2, y, text, LARGE, ha="left")


def layers(axes: Axes, stream: Stream, weights: np.ndarray) -> float:
    """Ten encoder layers, each with its learned weight; returns the row of their weighted sum."""
    line = stream.y + stream.outward * 5.2
    for index, weight in enumerate(weights):
        x = 20.6 + 3.1 * index
        box(axes, x, stream.y, 2.4, 6.4, stream.colour, str(index))
        if index:
            arrow(axes, (x - 1.9, stream.y), (x - 1.2, stream.y), mutation_scale=5)
        foot = (x, stream.y + stream.outward * 3.2)
        arrow(axes, foot, (x, line), MUTED, mutation_scale=5, linewidth=0.8)
        height = stream.outward * (0.4 + 2.4 * weight)
        axes.add_patch(Rectangle((x - 0.8, line), 1.6, height, facecolor=stream.colour, zorder=3))
    axes.plot([19.0, 50.0], [line, line], color=MUTED, linewidth=0.8)
    note = "softmax of one\nweight a layer"
    write(axes, 18.4, line + stream.outward * 1.5, note, SMALL, MUTED, ha="right")
    return line + stream.outward * 1.5


def finetuning(axes: Axes) -> None:
    """The lower half."""
    video, audio = Stream("video", VIDEO, 21.3, 1), Stream("audio", AUDIO, 9.7, -1)
    weights = {  # invented: the shape of what may be learned
        "video": np.array([0.05, 0.10, 0.16, 0.26, 0.40, 0.60, 0.85, 1.0, 0.90, 0.70]),
        "audio": np.array([0.05, 0.08, 0.20, 0.45, 0.75, 1.0, 0.92, 0.70, 0.45, 0.30]),
    }
    origin = "encoders and fusion start from pre-training, all tokens are visible"
    title(axes, 33.2, "b", f"Fine-tuning on labelled clips: {origin}")
    for stream in (video, audio):
        picture(axes, stream, 6.2, stream.y, size=8.0)
        arrow(axes, (11.9 if stream is video else 10.4, stream.y), (19.2, stream.y))
        count = "800 tokens" if stream is video else "128 tokens"
        write(axes, 15.3, stream.y + 1.2, count, SMALL, MUTED)
        level = layers(axes, stream, weights[stream.name])
        arrow(axes, (49.7, stream.y), (FUSION_X - 13.2, stream.y))
        arrow(axes, (50.6, level), (84.7, level), stream.colour)
        arrow(axes, (FUSION_X + 1.2, stream.y), (84.7, stream.y), stream.colour)
        note = "hierarchical feature fusion: weighted sum of the layers' token means"
        write(axes, 67.3, level + stream.outward * 1.2, note, SMALL, stream.colour)
        write(axes, 79.5, stream.y + 1.2, "token mean", SMALL, MUTED)
        for y, kind in ((level, "all layers"), (stream.y, "fused")):
            box(axes, 89, y, 8.6, 4.0, stream.colour, f"{stream.name},\n{kind}")
            arrow(axes, (93.3, y), (96.7, y), stream.colour)
    cross(axes, FUSION_X - 6, video, audio)
    middle = (video.y + audio.y) / 2
    box(axes, 99.2, middle, 5, 29.4, FUSION, "concatenate, LayerNorm", size=NORMAL, rotation=90)
    arrow(axes, (101.7, middle), (104.4, middle))
    box(axes, 107.4, middle, 6, 6, FUSION, "head", size=NORMAL)
    arrow(axes, (110.4, middle), (112.8, middle))
    write(axes, 118.4, middle, "emotion class,\nor valence,\narousal,\ndominance", NORMAL)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", default="figs", help="gets the pictures (figs)")
    folder = parser.parse_args().folder
    plt.rcParams.update({"font.family": "DejaVu Sans", "svg.fonttype": "none", "pdf.fonttype": 42})
    figure = plt.figure(figsize=(WIDTH / 10, HEIGHT / 10))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="equal")
    axes.axis("off")
    pretraining(axes)
    finetuning(axes)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for ending in ("png", "svg", "pdf"):
        figure.savefig(Path(folder) / f"architecture.{ending}", dpi=200, facecolor="white")


if __name__ == "__main__":
    main()
