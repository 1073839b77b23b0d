"""hicmae-app: a page in the browser to try a model on a film or on oneself."""

import html
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio looks while it is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr  # noqa: E402

from hicmae.data.film import Film  # noqa: E402
from hicmae.data.media import NoPicture, NoSound, decode_sound, streams_of  # noqa: E402
from hicmae.inference.cli import Limits, Page  # noqa: E402
from hicmae.inference.clips import Clip, NoFace, View, detector  # noqa: E402
from hicmae.inference.commands import table, write_json  # noqa: E402
from hicmae.inference.formats import EXAMPLE  # noqa: E402
from hicmae.inference.pictures import write_overlay  # noqa: E402
from hicmae.inference.recognizer import EmotionRecognizer  # noqa: E402
from hicmae.inference.timeline import Moments, write_page  # noqa: E402
from hicmae.io import UnreadableClip, describe, write_csv  # noqa: E402

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
LEAST_SECONDS = 0.5  # of a film
MOST_WAITING = 16  # jobs
KEPT = 3600  # seconds that results stay for download where the page stays open
MOST_BYTES = 20 * 1000**2  # of the film inside an answer
# Small enough for slow computers: the page cuts off what is not encoded when a recording stops.
CAMERA = {"video": {"width": {"ideal": 640}, "height": {"ideal": 480}}}
WHO: dict[str, dict[str, Any]] = {
    "Main face": {"faces": "largest"},
    "Everybody": {"faces": "all"},
    "Everybody; who speaks has the sound": {"faces": "all", "speaker": "auto"},
    "The film is one face": {"faces": "cut"},
}
TOY = (
    "The model `toy`, which comes with the package, knows **drawn faces only**: its answers about "
    "people mean nothing. `hicmae-app --checkpoint FOLDER` takes one that was trained on people."
)
ADVICE = {
    NoFace: "No face was found. Show it larger, from the front and in good light. If the film is "
    "a face that was cut out already, choose 'The film is one face'.",
    NoSound: "There is no sound that can be used, but this model listens too. Record with a "
    "microphone, for at least half a second.",
    NoPicture: "There is no picture, but this model looks too. Choose a film.",
}
TEMPLATES = Path(__file__).with_name("templates")
PROGRESS = gr.Progress()  # gradio finds it as the default of an argument
HINT = '<div class="hint">The answer appears here.</div>'


def check_film(path: Path, limits: Limits) -> None:
    """Refuse a film before any work; UnreadableClip says by how much it is outside the limits."""
    size, name = path.stat().st_size / 1e6, str(path)
    if size > limits.max_mb:
        raise UnreadableClip(f"The film has {size:.0f} MB; up to {limits.max_mb:g} MB are allowed.")
    is_film = streams_of(name)[0]
    seconds = Film(name).clock.duration if is_film else decode_sound(name).seconds
    text = f"The film lasts {seconds:.1f} s"
    if seconds < LEAST_SECONDS:
        raise UnreadableClip(f"{text}, too short to judge: {LEAST_SECONDS:g} s are needed.")
    if seconds > limits.max_seconds:
        advice = "Cut it, or use hicmae-predict."
        raise UnreadableClip(f"{text}; up to {limits.max_seconds:g} s are allowed. {advice}")


@dataclass
class Demo:
    """What the page does. One model and one detector serve all, one job at a time."""

    recognizer: EmotionRecognizer
    limits: Limits
    folder: Path

    def answer(
        self, film: str | None, who: str, results: str | None, progress: Any = PROGRESS
    ) -> tuple[Any, ...]:
        """Answer about a film.

        Returns the answer as HTML; the folder of the results; then the csv, json, annotated copy
        and page to download; and the film, None where it was answered and deleted.
        """
        remove_results(results)
        if not film:
            return _told("Choose a film first, or record one.")
        path = Path(film)
        try:
            check_film(path, self.limits)
            folder = self._recognise(path, WHO.get(who, {}), progress)
        except (UnreadableClip, ValueError) as error:
            advice = next((text for kind, text in ADVICE.items() if isinstance(error, kind)), "")
            reason = describe(error).replace(str(path), path.name)
            return _told(advice or reason, reason if advice else "")
        page = html.escape((folder / "answer.html").read_text("utf-8"), quote=True)
        frame = f'<iframe id="answer" sandbox="allow-scripts" srcdoc="{page}"></iframe>'
        if path.parent.parent == self.folder:  # each upload has a folder of its own
            remove_results(str(path.parent))
        return frame, str(folder), *_buttons(folder), None

    def example(self) -> tuple[str, str]:
        """Return a film that `toy` understands, of a speaker it has not seen, and whom to read."""
        folder = Path(tempfile.mkdtemp(prefix="example-", dir=self.folder))
        film = shutil.copy(EXAMPLE, folder / "drawn_face.mp4")
        return str(film), "Main face"

    def _recognise(self, path: Path, who: dict[str, Any], progress: Any) -> Path:
        """Answer, and write all that can be seen and downloaded to a folder, which is returned."""
        progress(0, "Looking for faces")
        moments, done = Moments(), 0

        def see(clip: Clip, view: View) -> None:
            nonlocal done
            done += 1
            moments(clip, view)
            progress((done, len(clip.windows) * clip.num_people), "Watching and listening")

        found = next(self.recognizer.each([str(path)], on_view=see, **who))
        people = found if isinstance(found, list) else [found]
        progress(0.9, "Drawing")
        folder = Path(tempfile.mkdtemp(prefix="answer-", dir=self.folder))
        seen = moments.kept.get(str(path), {})
        write_page(people, folder / "answer.html", seen, most_bytes=MOST_BYTES)
        write_overlay(path, people, folder / "answer.mp4")
        named = [replace(person, file=path.name) for person in people]
        write_json(folder / "answer.json", [person.to_dict() for person in named])
        write_csv(folder / "answer.csv", *table(named, self.recognizer.names, by_window=True))
        return folder


def remove_results(folder: str | None) -> None:
    """Delete the results of the job before, or of a page that was closed."""
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


def _told(text: str, more: str = "") -> tuple[Any, ...]:
    """Return what `Demo.answer` does of a film that stays."""
    more = f"<small>{html.escape(more)}</small>" if more else ""
    shown = f'<div class="told" role="alert">{html.escape(text)}{more}</div>'
    return shown, None, *_buttons(None), gr.skip()


DOWNLOADS = {"csv": "Table (csv)", "json": "All (json)", "mp4": "Film with answers", "html": "Page"}


def _buttons(folder: Path | None) -> list[Any]:
    """Return the buttons for the results in a folder; None hides them."""
    files = {e: None if folder is None else str(folder / f"answer.{e}") for e in DOWNLOADS}
    look: Any = {"visible": folder is not None, "size": "sm"}
    return [gr.DownloadButton(DOWNLOADS[e], value=file, **look) for e, file in files.items()]


def build(demo: Demo, is_toy: bool) -> gr.Blocks:
    """Lay out the page."""
    names, limits = ", ".join(demo.recognizer.names), demo.limits
    both = demo.recognizer.streams == "av"
    choices = [name for name, options in WHO.items() if both or "speaker" not in options]
    with gr.Blocks(title="HiCMAE", analytics_enabled=False, delete_cache=(60, KEPT)) as page:
        gr.Markdown(f"# Emotions in face and voice\n\nThis model knows: {names}.")
        if is_toy:
            gr.Markdown(TOY)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                film = gr.Video(
                    sources=["upload", "webcam"],
                    include_audio=True,
                    label="Film or recording",
                    webcam_options=gr.WebcamOptions(mirror=False, constraints=CAMERA),
                    height=300,
                )
                who = gr.Radio(choices, value="Main face", label="Who")
                start = gr.Button("Recognise", variant="primary")
                if is_toy:
                    example = gr.Button("Take a drawn face", size="sm")
                    example.click(demo.example, None, [film, who], api_visibility="private")
                gr.Markdown(
                    f"Up to {limits.max_mb:g} MB and {limits.max_seconds:g} s. Films stay on this "
                    "computer and are deleted once answered. A recognised expression is not a felt "
                    "emotion."
                )
            with gr.Column(scale=5, min_width=480):
                with gr.Row():
                    buttons = _buttons(None)
                shown = gr.HTML(HINT)
        results = gr.State(None, time_to_live=KEPT, delete_callback=remove_results)
        given, back = [film, who, results], [shown, results, *buttons, film]
        told: Any = {"concurrency_limit": 1, "api_visibility": "private"}
        start.click(demo.answer, given, back, show_progress_on=shown, **told)
    page.queue(max_size=MOST_WAITING, default_concurrency_limit=1)
    return page


@contextmanager
def upload_folder() -> Iterator[Path]:
    """Yield a folder of one's own for uploads and results; it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="hicmae-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        yield Path(folder).resolve()


def launch(page: gr.Blocks, limits: Limits, port: int | None, share: bool = False) -> str:
    """Start the server and return its address; other settings than these have no say."""
    font = ["system-ui", "sans-serif"]
    options = ("run_history", "enable_monitoring", "mcp_server", "ssr_mode", "pwa")
    switched_off: Any = dict.fromkeys(options, False)
    _, local, public = page.launch(
        server_name=HOST,
        server_port=port,
        share=share,
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        max_file_size=round(limits.max_mb * 1e6),
        allowed_paths=[],
        theme=gr.themes.Soft(font=font, font_mono=["monospace"]),
        css_paths=TEMPLATES / "app.css",
        head_paths=TEMPLATES / "app_head.html",
        **switched_off,
    )
    return public or local


def serve(asked: Page, limits: Limits) -> None:
    """Serve the page until the process is stopped."""
    path = asked.checkpoint
    recognizer = EmotionRecognizer.from_checkpoint(path, device=asked.device)
    if recognizer.config.task == "pretraining":
        raise ValueError(f"'{path}' is a pre-training checkpoint, which knows no emotions")
    try:
        detector()
    except FileNotFoundError as error:
        logger.warning("%s", error)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with upload_folder() as folder, suppress(KeyboardInterrupt):
        page = build(Demo(recognizer, limits, folder), is_toy=path == "toy")
        try:
            logger.info("%s  (Ctrl-C ends it)", launch(page, limits, asked.port, asked.share))
            threading.Event().wait()
        finally:
            page.close(verbose=False)
