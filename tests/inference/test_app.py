"""hicmae-app: answers, refusals, what the server gives out, and the page in a browser."""

import html
import importlib.util
import json
import re
import shutil
import socket
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import av
import pytest

from hicmae import EmotionRecognizer
from hicmae.inference import cli
from tests.conftest import free_port
from tests.preprocess.media_files import pictures, save_media
from tests.small_recognizers import FPS, NAMES, speech

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --use-fake-device-for-media-stream "
    "--use-fake-ui-for-media-stream"
).split()
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def app() -> ModuleType:
    """Import gradio, which takes seconds, where it is used."""
    return pytest.importorskip("hicmae.inference.app", reason="pip install 'hicmae[app]'")


@pytest.fixture
def demo(app, recognizer, tmp_path: Path) -> Iterator["app.Demo"]:
    """A page's functions, with a tiny model and small limits."""
    with app.upload_folder() as folder:
        yield app.Demo(recognizer(), app.Limits(max_mb=0.5, max_seconds=5), folder)


def uploaded(demo: "app.Demo", film: str | Path) -> str:
    """Put a film where the page would, in a folder of its own."""
    folder = demo.folder / uuid.uuid4().hex
    folder.mkdir()
    return str(shutil.copy(film, folder))


def quiet(*_: object) -> None:
    """Take the progress of a job."""


def test_an_answer_is_a_page_and_files_and_nothing_stays(demo, video):
    film = uploaded(demo, video)
    steps: list[object] = []
    shown, results, *buttons, left = demo.answer(
        film, "The film is one face", None, lambda *step: steps.append(step[0])
    )
    assert left is None and not Path(film).exists()
    page = html.unescape(re.search(r'sandbox="allow-scripts" srcdoc="([^"]*)"', shown)[1])
    assert 'id="bytes"' in page and (5, 5) in steps
    files = {Path(b.value["path"]).suffix: Path(b.value["path"]) for b in buttons}
    told = json.loads(files[".json"].read_text())[0]
    assert told["file"] == "clip.mp4" and set(told["probabilities"]) == set(NAMES)
    assert len(files[".csv"].read_text().splitlines()) == 6 and files[".html"].read_text() == page
    with av.open(str(files[".mp4"])) as copy:
        assert copy.duration == pytest.approx(4e6, rel=0.05)
    # the next job of the same page deletes what the last one left
    again = demo.answer(None, "Main face", results, quiet)
    assert "role=" in again[0] and not Path(results).exists()
    assert not list(demo.folder.iterdir()) and not any(b.visible for b in again[2:-1])


@pytest.mark.parametrize(
    "seconds, sound, faces, told",
    [
        (2, True, "Main face", "No face was found"),
        (2, False, "The film is one face", "no sound"),
        (0.2, True, "The film is one face", "0.2 s"),
        (8, True, "The film is one face", "up to 5 s"),
        (0, True, "Everybody", "1 MB"),
    ],
)
def test_what_is_wrong_with_a_film_is_said_and_it_stays(
    demo, tmp_path, seconds, sound, faces, told
):
    path, heard = tmp_path / "<a>.mp4", speech(seconds)[None] if sound else None
    if seconds:
        save_media(path, pictures(int(seconds * FPS)), heard, fps=FPS)
    else:
        path.write_bytes(bytes(700_000))
    film = uploaded(demo, path)
    shown, results, *_ = demo.answer(film, faces, None, quiet)
    assert told in html.unescape(shown) and results is None
    assert Path(film).exists() and str(demo.folder) not in shown


def status_of(address: str, data: bytes | None = None, **headers: str) -> int:
    request = urllib.request.Request(address, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_server_gives_out_no_file_but_uploads_and_listens_here_only(app, demo, monkeypatch):
    monkeypatch.setenv("GRADIO_SHARE", "true")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    page = app.build(demo, is_toy=False)
    try:
        port = free_port()
        address = app.launch(page, demo.limits, port).rstrip("/")
        assert address == f"http://127.0.0.1:{port}" and page.share is False
        assert not page.analytics_enabled and page.config["analytics_enabled"] is False
        with socket.socket() as other:  # not even under another address of this machine
            assert other.connect_ex(("127.0.0.2", port)) != 0
        upload = Path(uploaded(demo, ROOT / "LICENSE"))
        at = f"{address}/gradio_api/file="
        assert status_of(at + str(upload)) == 200
        climb = f"{upload.parent}/../../../etc/passwd"
        names = ("/etc/passwd", f"{ROOT}/pyproject.toml", "pyproject.toml")
        for name in (*names, climb, climb.replace("/", "%2f"), climb.replace("..", "%2e%2e")):
            assert status_of(at + name) in (403, 404), name
        border = (
            b"--b\r\nContent-Disposition: form-data; name=files; filename=%s\r\n\r\n%s\r\n--b--\r\n"
        )
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        large = border % (b"a.mp4", bytes(600_000))
        assert status_of(f"{address}/gradio_api/upload", large, **kind) == 413
        odd = border % (b"../../../../a.mp4", b"0")
        assert status_of(f"{address}/gradio_api/upload", odd, **kind) == 200
        assert [p.name for p in demo.folder.rglob("a.mp4")] == ["a.mp4"]
    finally:
        page.close(verbose=False)


def test_what_is_wrong_with_the_command_is_one_line(app, models, monkeypatch, caplog):
    assert cli.app(["--checkpoint", str(models / "pretrained.pth")]) == 2
    assert cli.app(["--max_mb", "0"]) == 2
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.app([]) == 2
    told = ("pre-training checkpoint", "--max_mb must be > 0", "pip install 'hicmae[app]'")
    for record, text in zip(caplog.records, told, strict=True):
        assert text in record.message and "\n" not in record.message


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or google-chrome on the PATH")
def test_the_page_answers_in_a_browser_about_a_film_and_a_recording(app):
    """The drawn face is answered, the timeline seeks, and camera and microphone are heard."""
    browsers = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    toy = EmotionRecognizer.from_checkpoint("toy", device="cpu")
    limits = app.Limits()
    with app.upload_folder() as folder, browsers.sync_playwright() as player:
        page = app.build(app.Demo(toy, limits, folder), is_toy=True)
        options = {"executable_path": CHROMIUM, "headless": True, "args": FLAGS}
        browser = player.chromium.launch(**options)
        try:
            address = app.launch(page, limits, free_port())
            tab = browser.new_page(viewport={"width": 1360, "height": 1400})
            outside: list[str] = []
            tab.on("request", lambda r: None if address in r.url else outside.append(r.url))
            tab.set_default_timeout(120_000)
            tab.goto(address)
            tab.get_by_role("button", name="Take a drawn face").click()
            tab.locator("video").first.wait_for()
            tab.get_by_role("button", name="Recognise").click()
            tab.locator("#answer").wait_for()
            frame = tab.frame_locator("#answer")
            frame.locator("video").evaluate(
                "v => v.readyState || new Promise(r => v.onloadeddata = r)"
            )
            line = frame.locator(".line")
            box = line.bounding_box()
            line.click(position={"x": box["width"] / 2, "y": box["height"] / 2})
            tab.wait_for_function("true")
            length, at = frame.locator("video").evaluate("v => [v.duration, v.currentTime]")
            assert at == pytest.approx(length / 2, rel=0.05)
            assert float(line.get_attribute("aria-valuenow")) == pytest.approx(at, abs=0.1)
            assert frame.locator("#moment img.faces").evaluate("i => i.naturalWidth") > 100
            with tab.expect_download() as download:
                tab.get_by_role("button", name="All (json)").click()
            told = json.loads(download.value.path().read_text())[0]
            assert len(told["windows"]) > 10 and told["file"] == "drawn_face.mp4"

            tab.get_by_label("Capture from camera").click()
            tab.get_by_text("Click to Access Webcam").click()
            tab.get_by_role("button", name="start recording").click()
            tab.wait_for_timeout(8000)
            tab.get_by_role("button", name="start recording").click()  # it is now called "Stop"
            tab.get_by_text("Main face", exact=True).click()
            tab.get_by_role("button", name="Recognise").click()
            tab.locator(".told").wait_for()
            assert "No face" in tab.locator(".told").inner_text()
            tab.get_by_text("The film is one face", exact=True).click()
            tab.get_by_role("button", name="Recognise").click()
            tab.locator("#answer").wait_for()
            assert not [url for url in outside if not url.startswith(("blob:", "data:"))]
        finally:
            browser.close()
            page.close(verbose=False)
    assert not folder.exists()
