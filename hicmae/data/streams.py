"""Open the video and the sound of a clip, wherever they are."""

from collections.abc import Callable

from hicmae.data.audio import SAMPLE_RATE, Wav, WavFile
from hicmae.data.clip_list import Clip
from hicmae.data.decoding import Video, open_video
from hicmae.data.packed import open_packed
from hicmae.data.shard_index import PackedClip

FRAME_RATE = 25  # frames a second that are assumed where only the audio is read

AnyClip = Clip | PackedClip


def open_streams(clip: AnyClip) -> tuple[Video, Callable[[], Wav]]:
    """Open the video of a clip; its sound is opened when it is called for."""
    if isinstance(clip, PackedClip):
        video, sound = open_packed(clip)
        return video, lambda: sound
    return open_video(clip.video), lambda: WavFile(clip.audio)


def open_wanted(clip: AnyClip, modality: str) -> tuple[Video | None, Wav | None, int]:
    """Open the streams that a modality reads; return them and the number of frames."""
    video: Video | None
    sound: Wav | None
    if isinstance(clip, PackedClip):
        video, sound = open_packed(clip)
    else:
        sound = WavFile(clip.audio) if "a" in modality else None
        video = open_video(clip.video) if "v" in modality else None
    if "v" not in modality:
        return None, sound, max(round(len(sound or ()) * FRAME_RATE / SAMPLE_RATE), 1)
    return video, sound if "a" in modality else None, len(video or ())
