"""Sound that is read with a frame is the sound that was heard when it was seen."""

import numpy as np
import pytest

from hicmae.data.film import Film, open_video
from hicmae.inference.sources import open_source
from tests.media.clock_films import FILMS, heard_at, save_film, seen_at


def offsets(path: str) -> list[float]:
    """Return by how many seconds sound is ahead of the picture, at frames with sound."""
    source = open_source(path)
    times, samples = source.times, source.sound
    wanted = [k for k, time in enumerate(times) if 0.3 < time < times[-1] - 0.3][::5]
    found = []
    for k, image in zip(wanted, source.frames(wanted), strict=True):
        time = heard_at(samples[round(times[k] * 16000) - 800 :][:1600])
        found += [] if time is None else [time - seen_at(image)]
    assert len(found) > 5
    return found


@pytest.mark.parametrize("name", FILMS)
def test_what_is_seen_is_heard(tmp_path, name):
    options, expected = FILMS[name]
    path = save_film(tmp_path / name, **options)
    assert np.abs(np.array(offsets(path)) - expected).max() < 0.04


def test_a_damaged_sound_packet_costs_that_packet_only(tmp_path, caplog):
    path = save_film(tmp_path / "a.mp4", bad=(50,))
    assert np.abs(offsets(path)).max() < 0.04
    whole = open_source(save_film(tmp_path / "b.mp4")).sound
    assert abs(len(open_source(path).sound) - len(whole)) < 400


def test_frames_are_those_of_their_times_in_every_reader(tmp_path):
    for name in ("variable.mp4", "late picture.mkv", "bframes.avi"):
        path = save_film(tmp_path / name, **FILMS[name][0])
        whole = Film(path).read(range(len(Film(path))))
        picked = open_video(path).read([3, 40, 60])
        for index, image in zip([3, 40, 60], picked, strict=True):
            np.testing.assert_array_equal(image, whole[index])
