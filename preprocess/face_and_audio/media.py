"""Open the picture or the sound of a file with FFmpeg's libraries (PyAV)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, Literal, overload

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from preprocess.face_and_audio.inputs import ClipError


@overload
def open_stream(
    path: str, kind: Literal["audio"]
) -> contextlib.AbstractContextManager[tuple[InputContainer, AudioStream]]: ...


@overload
def open_stream(
    path: str, kind: Literal["video"]
) -> contextlib.AbstractContextManager[tuple[InputContainer, VideoStream]]: ...


@contextlib.contextmanager
def open_stream(path: str, kind: Literal["audio", "video"]) -> Iterator[tuple[InputContainer, Any]]:
    """Yield a file's container and its first stream of a kind.

    Raises OSError where the file cannot be read, and ClipError where it holds no such stream or,
    in the body of the `with` as well, cannot be decoded.
    """
    with open(path, "rb") as file:  # for the operating system's own words on what is wrong
        if not file.read(1):
            raise ClipError("is an empty file")
    try:
        # An absolute name, as FFmpeg takes "a:b.mp4" for a protocol; and no others than files, as
        # what calls itself a video may be a playlist of addresses.
        with av.open(
            os.path.abspath(path),
            metadata_errors="replace",
            options={"protocol_whitelist": "file"},
        ) as container:
            streams = [s for s in getattr(container.streams, kind) if not _is_cover(s)]
            if not streams:
                raise ClipError(f"has no {'sound' if kind == 'audio' else 'picture'}")
            streams[0].codec_context.thread_count = 1  # the processes share the cores
            yield container, streams[0]
    except av.FFmpegError as error:
        raise ClipError(f"cannot be decoded: {error.strerror}") from None


def _is_cover(stream: Stream) -> bool:
    return bool(stream.disposition & Disposition.attached_pic)
