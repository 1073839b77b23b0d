"""What the commands of inference do once their flags are parsed, see `cli`."""

import argparse
import importlib.util
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tabulate import tabulate

from hicmae import io
from hicmae.config import Options
from hicmae.config.flags import from_flags
from hicmae.data.clip_list import AnyClip, Clip, find_list, name_of, read_rows
from hicmae.data.media import find_clips
from hicmae.inference import formats
from hicmae.inference.cli import Limits, Model, Page, Unsaid
from hicmae.inference.clips import Window
from hicmae.inference.model import ModelConfig
from hicmae.inference.recognizer import EmotionRecognizer, Failure, Prediction
from hicmae.training.checkpoint import WEIGHTS, find

logger = logging.getLogger(__name__)

LISTS = (".csv", ".txt", ".list")
OF_ONE_FILM = ("plot", "overlay", "html", "srt", "vtt", "elan")  # results for each film


def _load(args: argparse.Namespace) -> tuple[EmotionRecognizer, dict[str, Any]]:
    """Load the model that a command line names; returns it and how it reads clips."""
    reading, options = (vars(from_flags(vars(args), kind)) for kind in (Options, Model))
    if contrast := getattr(args, "speaker_checkpoint", None):
        if reading["speaker"] not in ("auto", "contrast"):
            text = "--speaker_checkpoint is for --speaker auto and contrast, got --speaker"
            raise ValueError(f"{text} {reading['speaker']}; change one of them")
        options["speaker_checkpoint"] = contrast
    options |= {"missing_modality": reading.pop("missing_modality"), "progress": not args.quiet}
    return EmotionRecognizer.from_checkpoint(options.pop("checkpoint"), **options), reading


def predict(args: argparse.Namespace) -> int:
    """Answer about videos and write what is asked for; returns the exit code."""
    wanted = _check_results(args)
    files = [file for name in args.videos for file in find_clips(name)]
    if args.audio and len(files) > 1:
        raise ValueError(f"--audio goes with one video, got {len(files)}")
    recognizer, reading = _load(args)
    journal, clips, all_drawn, moments = Journal(args, len(files)), list[list[Any]](), True, None
    if args.html:
        from hicmae.inference.timeline import Moments

        moments = Moments()
    ask = partial(recognizer.each, on_error="return", on_view=moments, **reading)
    taken: set[str] = set()
    try:
        for file, people, is_known in journal.answers(files, args.audio, ask):
            stem = Path(file).stem
            names = (f"{stem}-{number}" if number > 1 else stem for number in count(1))
            name = next(name for name in names if name not in taken)  # its own
            taken.add(name)
            seen = moments.kept.pop(file, {}) if moments else {}
            if not is_known and isinstance(people[0], Prediction):
                own = f"-{name}" if len(files) > 1 else ""
                paths = {k: path.with_stem(f"{path.stem}{own}") for k, path in wanted.items()}
                if not paths or _draw(people, paths, seen, not args.quiet):
                    journal.add(file, people)
                else:
                    all_drawn = False
            clips.append(people)
        journal.remove()
    except KeyboardInterrupt:
        answered = sum(not isinstance(people[0], Failure) for people in clips)
        text = "interrupted: %d clips are answered, the others are left out%s"
        again = "; the same command goes on from there" if journal.path else ""
        logger.warning(text, answered, again)
        clips.append([Failure("", "interrupted")])
    results = [result for people in clips for result in people]
    for path, by_window in ((args.csv, False), (args.windows_csv, True)):
        if path:
            io.write_csv(path, *table(results, recognizer.names, by_window))
    if args.json:
        write_json(args.json, [result.to_dict() for result in results])
    if not args.quiet:
        sys.stdout.write(short_table(results) + "\n")
    return int(not all_drawn or any(isinstance(people[0], Failure) for people in clips))


def _check_results(args: argparse.Namespace) -> dict[str, Path]:
    """Return the results that are asked for of each film, once all results can be written."""
    wanted = {kind: Path(path) for kind in OF_ONE_FILM if (path := getattr(args, kind))}
    for path in filter(None, (args.csv, args.windows_csv, args.json)):
        io.check_writable(path)
    if wanted:
        from hicmae.inference import pictures, style  # bring matplotlib

        endings = {"plot": style.FORMATS, "overlay": pictures.FILMS, "html": (".html", ".htm")}
        for kind, path in wanted.items():
            io.check_writable(path, endings.get(kind, ()))
    return wanted


def _draw(people: list[Prediction], paths: dict[str, Path], seen: Any, progress: bool) -> bool:
    """Write results of one film, of which `Moments` has `seen`; returns whether all were made."""
    from hicmae.inference import pictures, timeline

    file, drawn = people[0].file, True
    make: dict[str, Callable[[Path], object]] = {
        "plot": lambda path: pictures.draw_timeline(people, path),
        "overlay": lambda path: pictures.write_overlay(file, people, path, progress),
        "html": lambda path: timeline.write_page(people, path, seen, progress),
        "srt": lambda path: timeline.write_subtitles(people, path),
        "vtt": lambda path: timeline.write_subtitles(people, path, for_web=True),
        "elan": lambda path: timeline.write_elan(people, path),
    }
    for kind, path in paths.items():
        try:
            make[kind](path)
        except (io.UnreadableClip, OSError, ValueError) as error:
            logger.error("no %s of '%s': %s", kind, file, io.describe(error))
            drawn = False
    return drawn


class Journal:
    """The answers of a command about several files, beside its first result until it ends.

    A line of JSON for each file; the first line says which command, with which weights. Another
    command, and a file that has changed, begin anew.
    """

    def __init__(self, args: argparse.Namespace, num_files: int) -> None:
        outputs = (getattr(args, k) for k in ("csv", "windows_csv", "json", *OF_ONE_FILM))
        first = next(filter(None, outputs), None)
        self.path = Path(f"{first}.unfinished") if first and num_files > 1 else None
        asked = {k: v for k, v in vars(args).items() if k not in ("videos", "quiet", "device")}
        self.head = json.dumps([asked, _stamp(find(args.checkpoint))])
        self.known: dict[str, tuple[list[int], list[Prediction]]] = {}
        known = self.path.read_text("utf-8") if self.path and self.path.is_file() else ""
        head, *lines = known.split("\n")
        self.goes_on = head == self.head
        for line in lines if self.goes_on else ():
            with suppress(json.JSONDecodeError):  # the line of a process that was killed
                file, stamp, people = json.loads(line)
                for person in people:
                    person["windows"] = tuple(Window(**window) for window in person["windows"])
                    person["notes"] = tuple(person["notes"])
                self.known[file] = stamp, [Prediction(**person) for person in people]

    def answers(
        self, files: Sequence[str], audio: str | None, ask: Callable[..., Iterator[Any]]
    ) -> Iterator[tuple[str, list[Any], bool]]:
        """Yield each file, its people or its Failure, and whether that was known; else `ask`."""
        before = [self.answer(file) for file in files]
        asked = [(f, audio) for f, known in zip(files, before, strict=True) if known is None]
        if len(asked) < len(files):
            text = "%d of %d videos are answered already; to ask again, delete '%s'"
            logger.info(text, len(files) - len(asked), len(files), self.path)
        found = ask(asked)
        for file, known in zip(files, before, strict=True):
            answer = known or next(found)
            yield file, answer if isinstance(answer, list) else [answer], known is not None

    def answer(self, file: str) -> list[Prediction] | None:
        """Return the people of a file that is answered, without their boxes."""
        stamp, people = self.known.get(file, (None, None))
        return people if stamp == _stamp(file) else None

    def add(self, file: str, people: Sequence[Prediction]) -> None:
        """Note the answers about one file."""
        if self.path is None:
            return
        line = json.dumps([file, _stamp(file), people], default=_plain)
        with self.path.open("a" if self.goes_on else "w", encoding="utf-8") as out:
            out.write(f"{'' if self.goes_on else self.head}\n{line}\n")
        self.goes_on = True

    def remove(self) -> None:
        """Delete it at the end of the command."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _plain(item: Any) -> dict[str, Any]:
    """Return the fields of an answer that JSON holds: those that are compared, no arrays."""
    return {field.name: getattr(item, field.name) for field in fields(item) if field.compare}


def _stamp(file: str | Path) -> list[int]:
    status = Path(file).stat() if Path(file).exists() else None
    return [status.st_size, status.st_mtime_ns] if status else [0, 0]


def table(results: Iterable[Any], names: Sequence[str], by_window: bool) -> tuple[list[str], list]:
    """Return the header, and a row for each person, or for each window of each person."""
    rows: list[dict[str, Any]] = []
    for result in results:
        if isinstance(result, Failure):
            rows += [] if by_window else [result.to_dict()]
            continue
        for part in result.windows if by_window else [result]:
            label = part.label if result.task == "classification" else None
            row = {"file": result.file, "person": result.person, "label": label}
            row |= {"seconds": f"{result.duration:.2f}", "reason": "; ".join(result.notes)}
            row |= {"status": part.status if by_window else "done"}
            if by_window:
                row |= {"start": f"{part.start:.3f}", "end": f"{part.end:.3f}"}
            if part.speaker is not None:
                row |= {"speaker": int(part.speaker) if by_window else f"{part.speaker:.3f}"}
            rows.append(row | {name: f"{score:.6f}" for name, score in part.scores.items()})
    own = ["start", "end", "status"] if by_window else ["status", "reason", "seconds"]
    own += ["speaker"] if any("speaker" in row for row in rows) else []
    columns = ["file", "person", *own, "label", *names]
    return columns, [[row.get(name) for name in columns] for row in rows]


def short_table(results: Iterable[Any]) -> str:
    """Return a table for the terminal."""
    rows = []
    for result in results:
        name = Path(result.file).name
        if isinstance(result, Failure):
            rows.append([name, "", "", result.reason])
            continue
        name += f" (person {result.person + 1})" if result.person else ""
        rows.append([name, f"{result.duration:.1f}", result.answer, "; ".join(result.notes)])
    return tabulate(rows, ["file", "s", "answer", "note"], tablefmt="plain", disable_numparse=True)


def write_json(path: str | Path, content: Sequence[Any]) -> None:
    """Write all that is known, as UTF-8."""
    text = io.encodable(json.dumps(content, indent=2, ensure_ascii=False))
    io.write_whole(path, text + "\n")


def extract(args: argparse.Namespace) -> int:
    """Write the features of a list of clips; returns the exit code."""
    output = Path(args.output)
    io.check_writable(output, (".npz",))
    items = read_items(args.data_path, args.data_root)
    recognizer, reading = _load(args)
    rows, failures, clips = [], [], [clip for clip, _ in items]
    answers = recognizer.each(clips, features=True, on_error="return", **reading)
    for (clip, label), found in zip(items, answers, strict=True):
        if isinstance(found, Failure):
            logger.warning("%s", found.reason)
            failures.append(found)
            continue
        named = {"clip": name_of(clip), "label": label}
        parts = [found.mean()]
        if args.per_window:
            windows = {"start": found.start, "end": found.end, **found.arrays}
            parts = [{n: a[k] for n, a in windows.items()} for k in range(len(found.start))]
        rows += [named | part for part in parts]
    if not rows:
        reason = failures[-1].reason
        raise ValueError(f"none of {len(items)} clips could be read; the last: {reason}")
    columns = _columns(rows)
    with io.whole_file(output) as part:
        np.savez(part, **columns)  # type: ignore[arg-type]  # the stub takes all for its flag
    levels = ", ".join(f"{n} {a.shape}" for n, a in columns.items() if a.dtype == np.float32)
    logger.info("written: %s: %s", output, levels)
    if failures:
        failed = output.with_name(output.name + ".failed.csv")
        io.write_csv(failed, ("file", "reason"), ((f.file, f.reason) for f in failures))
        logger.warning("%d of %d clips failed, see %s", len(failures), len(items), failed)
    return int(bool(failures))


def read_items(path: str, data_root: str = "") -> list[tuple[AnyClip, list[str]]]:
    """Read a list, the one of a folder, or shards, or find the clips in a folder or a film."""
    for place in (Path(path), Path(path) / "test.csv", Path(path) / "train.csv"):
        is_list = place.suffix.lower() in LISTS or place.is_dir() or place.name.endswith(".json")
        if is_list and find_list(place):
            return read_rows(place, data_root)
    if not Path(path).exists():
        raise FileNotFoundError(f"'{path}' does not exist")
    return [(Clip(file, None, None), []) for file in find_clips(path)]


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Put rows into columns; levels that a row lacks are nan, labels numbers where all are."""
    labels = [row.pop("label") for row in rows]
    columns = {"clip": np.array([row.pop("clip") for row in rows])}
    if all(labels):
        words = columns["label"] = np.array([" ".join(label) for label in labels])
        for values, kind in ((labels, float), (words, int)):  # (n, K) values, (n,) classes
            with suppress(ValueError):
                columns["label"] = np.array(values).astype(kind)
    for name, like in {name: value for row in rows for name, value in row.items()}.items():
        nothing = np.full_like(like, np.nan)
        columns[name] = np.stack([row.get(name, nothing) for row in rows])
    return columns


def app(args: argparse.Namespace) -> int:
    """Serve the page to try a model; returns the exit code."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("hicmae-app needs the package gradio: pip install 'hicmae[app]'")
    from hicmae.inference.app import serve

    serve(from_flags(vars(args), Page), from_flags(vars(args), Limits))
    return 0


def export(args: argparse.Namespace) -> int:
    """Export one model, or the last and the best of a run; returns the exit code."""
    path, output, kind = Path(args.checkpoint), Path(args.output), args.format
    if kind != "onnx" and args.int8:
        raise ValueError(f"--int8 is of --format onnx, got --format {kind}; leave it out")
    facts = {name: told for name in ("license", "data_license") if (told := getattr(args, name))}
    unsaid = vars(from_flags(vars(args), Unsaid))
    from hicmae.inference.export import export_checkpoint, export_run, write_card  # bring scipy

    is_run = not (path / WEIGHTS).is_file() and any(path.glob("checkpoint-*.pth"))
    export_it: Callable[..., Any] = export_run if is_run else export_checkpoint
    make = partial(export_it, path, class_names=args.class_names, facts=facts, **unsaid)
    if kind == "hub":
        make(output=output)
        logger.info("exported %s to %s", path, output)
        return 0
    name = "int8" if args.int8 else kind
    usual = Path(formats.FORMATS[name].file)
    output = output if output.suffix else output / usual
    io.check_writable(output, (usual.suffix,))
    with TemporaryDirectory() as folder:
        make(output=folder)
        recognizer = EmotionRecognizer.from_checkpoint(folder, "cpu", "fp32")
    clips, reading = _clips_to_compare(args.data_path, args.data_root, recognizer.config)
    formats.write(recognizer, output, name, clips, **reading)
    if output.name == usual.name:
        write_card(output.parent, recognizer.config)
    return 0


def _clips_to_compare(path: str | None, root: str, config: ModelConfig) -> tuple[list, dict]:
    """Return clips and how to read them: of a path, of the run's test list, or of the package."""
    told = config.training.get("settings", {})
    own = Path(told.get("data_path") or "", "test.csv")
    if path is None and not own.is_file():
        logger.info("no test list of the run is here: compared on the film of the package")
        return [str(formats.EXAMPLE)], {"faces": "cut"}
    if path is None:
        path, root = str(own), root or told.get("data_root") or ""
    items = read_items(path, root)
    logger.info("compared on clips of '%s'", path)
    return [clip for clip, _ in formats.spread(items)], {}
