"""TensorBoard files, written in place: no thread or buffer whose loss could cost or hang a run."""

import io
import re
import socket
import struct
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX.proto import event_pb2
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboardX.proto.tensor_pb2 import TensorProto
from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboardX.record_writer import masked_crc32c

from hicmae.training.appending import AppendFile

PATTERN = "events.out.tfevents.*"


class Board:
    """One event file; a new one is made for each start of a run.

    Args:
        folder: of the event files.
        purge_step: what earlier files hold of this and later steps is hidden; None: nothing.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = AppendFile(folder / _next_name(folder))
        self._write(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        if purge_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(event_pb2.Event(wall_time=time.time(), step=purge_step, session_log=start))

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Add a number."""
        self._add(Summary.Value(tag=tag, simple_value=value), step)

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Add a picture, (H, W, 3) uint8."""
        height, width, _ = image.shape
        content = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=_compressed(image)
        )
        self._add(Summary.Value(tag=tag, image=content), step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Add a text, which the Text tab reads as Markdown."""
        content = text.encode("utf-8", "backslashreplace")  # file names need not be UTF-8
        tensor = TensorProto(
            dtype="DT_STRING",
            string_val=[content],
            tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
        )
        self._add(Summary.Value(tag=tag, metadata=_metadata("text"), tensor=tensor), step)

    def plugin(self, tag: str, name: str, content: bytes) -> None:
        """Add what only the plugin called `name` reads."""
        self._add(Summary.Value(tag=tag, metadata=_metadata(name, content)), 0)

    def sync(self) -> None:
        """Have the system put the file on the disk."""
        self._file.sync()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _add(self, value: Summary.Value, step: int) -> None:
        self._write(
            event_pb2.Event(wall_time=time.time(), step=step, summary=Summary(value=[value]))
        )

    def _write(self, event: event_pb2.Event) -> None:
        """Append one record: length, its check sum, content, its check sum."""
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
        self._file.write(length + sums[0] + content + sums[1])


def _metadata(plugin: str, content: bytes = b"") -> SummaryMetadata:
    return SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name=plugin, content=content)
    )


def _compressed(image: np.ndarray) -> bytes:
    """Encode for a file that gets a picture every epoch: drawings as PNG, photographs as JPEG."""
    picture = Image.fromarray(image)
    png, jpeg = io.BytesIO(), io.BytesIO()
    picture.quantize(256).save(png, "PNG", optimize=True)
    picture.save(jpeg, "JPEG", quality=85, subsampling=0, optimize=True)
    return min(png.getvalue(), jpeg.getvalue(), key=len)


def _next_name(folder: Path) -> str:
    """Name a file that sorts behind all others, as readers expect, even if clocks went back."""
    stamps = [
        int(match[1])
        for path in folder.glob(PATTERN)
        if (match := re.match(r"events\.out\.tfevents\.(\d+)\.", path.name))
    ]
    stamp = max([int(time.time()), *(stamp + 1 for stamp in stamps)])
    return f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}"
