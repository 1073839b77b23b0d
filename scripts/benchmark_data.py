"""What scripts/benchmark.py measures of data: reading, faces, how training is fed, how it grows."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pandas as pd
import soundfile
import torch
from matplotlib.cbook import get_sample_data

from hicmae.config import PretrainConfigs
from hicmae.config.flags import as_dict, flat_settings, from_dict, new_parser
from hicmae.data.audio import SAMPLE_RATE
from hicmae.data.batches import ClipIndex, PretrainBatch
from hicmae.data.clip_list import Clip, ClipList, read_packed, read_pretrain_list, write_list
from hicmae.data.dataset import PretrainClips
from hicmae.data.film import Film
from hicmae.data.loader import ClipSampler, epoch_batches, item_generator, make_loader
from hicmae.faces import SMOOTHING
from hicmae.faces.detector import Detector
from hicmae.faces.tracking import fill_gaps, main_face, search, smooth
from hicmae.io import whole_file
from hicmae.pretraining import make_dataset, make_loss
from hicmae.training import distributed
from hicmae.training.loop import clip_loader
from hicmae.training.run import Precision, Run, choose_precision
from hicmae.training.state import describe_clips
from preprocess import pack_clips
from scripts import benchmark_models as models
from scripts.benchmark import NOT_SET, FacesConfig, FeedConfig, GrowthConfig, LoaderConfig
from scripts.benchmark_models import Mark, Step, TaskConfig, compared, measure_in_turns, trainer

CACHE = Path("saved/benchmarks/clips")  # where clips are kept
VOXCELEB2_CLIPS, EPOCHS = 1_091_581, 100  # of the published pre-training

# Clips like VoxCeleb2's: a moving face at a realistic bit rate

SIDE, FRAME_RATE, SECONDS = 224, 25, 8
BIT_RATE = 220_000  # of H.264; VoxCeleb2's files are about this large
# What ffmpeg takes by default, and what is usual in VoxCeleb2: few keyframes, three B-frames.
ENCODER = {"preset": "medium", "threads": "1"}
FACE_CENTRE = np.array([264, 220])  # of the portrait
EYES = np.array([[222.0, 189.6], [306.0, 186.6]])  # likewise, by eye
GRAIN = 5.0  # standard deviation of the camera's noise, in grey levels


def make_clips(count: int) -> list[Clip]:
    """Return `count` clips of the cache; those that an earlier call made are taken as they are."""
    clips = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        names = [str(CACHE / f"clip{seed:04d}-{SECONDS}s.{kind}") for kind in ("mp4", "wav")]
        for name, write in zip(names, (_write_video, _write_voice), strict=True):
            if not Path(name).exists():
                with whole_file(name) as part:
                    write(part, rng)
        clips.append(Clip(*names, None))
    return clips


def _write_video(path: Path, rng: np.random.Generator) -> None:
    """Film a face that sways and nods, by a noisy camera."""
    portrait = cv2.imread(str(get_sample_data("grace_hopper.jpg", asfileobj=False)))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE, options=ENCODER)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.bit_rate = "yuv420p", BIT_RATE
        for turn in camera(rng):
            picture = cv2.warpAffine(portrait, turn, (SIDE, SIDE), borderMode=cv2.BORDER_REFLECT)
            noisy = (picture + rng.normal(0, GRAIN, picture.shape)).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noisy, format="bgr24")))
        container.mux(stream.encode(None))


def camera(rng: np.random.Generator) -> np.ndarray:
    """Return the (frames, 2, 3) transforms that take the portrait to the frames of a clip."""
    index, phases = np.arange(FRAME_RATE * SECONDS)[:, None], rng.uniform(0, 2 * np.pi, 4)
    sway = np.sin(2 * np.pi * np.array([0.3, 0.5, 0.4, 0.25]) * index / FRAME_RATE + phases)
    centre = tuple(FACE_CENTRE.tolist())
    turns = [cv2.getRotationMatrix2D(centre, 6 * s[0], 0.6 + 0.03 * s[3]) for s in sway]
    shift = np.array([0, 0, 1]) * (SIDE / 2 - FACE_CENTRE + sway[:, 1:3] * [8, 5])[..., None]
    return np.stack(turns) + shift


def _write_voice(path: Path, rng: np.random.Generator) -> None:
    seconds = np.arange(SAMPLE_RATE * SECONDS) / SAMPLE_RATE
    voice = sum(0.1 / k * np.sin(2 * np.pi * 140 * k * seconds) for k in range(1, 20))
    voice = voice * np.sin(2 * np.pi * 3 * seconds) + rng.normal(0, 0.005, len(seconds))
    soundfile.write(path, voice, SAMPLE_RATE, subtype="PCM_16")


# Seconds of this process by what a first prediction does; arguments: those of hicmae-predict.
COLD = """
import functools, gc, importlib, json, sys, time
seconds = {"Python": time.process_time()}
def spend(name, work, *values, **options):
    start = time.process_time()
    result = work(*values, **options)
    seconds[name] = seconds.get(name, 0) + time.process_time() - start
    return result
gc.disable()  # as the command does
spend("torch", importlib.import_module, "torch")
commands = spend("other imports", importlib.import_module, "hicmae.inference.commands")
from hicmae.inference import cli, clips, recognizer
clips.find_people = functools.partial(spend, "decoding and faces", clips.find_people)
recognizer.load_model = functools.partial(spend, "model", recognizer.load_model)
compute = recognizer.EmotionRecognizer._compute
recognizer.EmotionRecognizer._compute = lambda *given: spend("network", compute, *given)
rest = "sound, cutting out, spectrograms"
spend(rest, cli.predict, [*sys.argv[1:], "--quiet"])
seconds[rest] -= sum(seconds[name] for name in ("model", "decoding and faces", "network"))
print(json.dumps(seconds), flush=True)
"""


def _cpu_of_children() -> float:
    spent = os.times()
    return spent.children_user + spent.children_system


def run_faces(config: FacesConfig) -> dict[str, Any]:
    """Time the stages of a first prediction, and faces by how often they are searched."""
    clip = make_clips(1)[0]
    asked = [clip.video, "--audio", clip.audio, "--checkpoint", config.checkpoint]
    command = [sys.executable, "-c", COLD, *asked, "--device", "cpu"]
    before, one_thread = _cpu_of_children(), os.environ | {"OMP_NUM_THREADS": "1"}
    seconds = json.loads(subprocess.check_output(command, env=one_thread).splitlines()[-1])
    seconds["exit"] = _cpu_of_children() - before - sum(seconds.values())
    torch.set_num_threads(1)
    frames, detector = Film(clip.video).read(range(FRAME_RATE * SECONDS)), Detector()
    found: dict[int, np.ndarray] = {}

    def follow(every: int) -> None:
        faces, size = search(frames, detector, every)
        found[every] = smooth(fill_gaps(main_face(faces, size))[0], SMOOTHING * FRAME_RATE)

    steps = {every: partial(follow, every) for every in config.detect_every}
    rows = compared(measure_in_turns(steps, config.steps, 1), min(config.detect_every))
    turns = camera(np.random.default_rng(0))
    eyes = np.einsum("fij,ej->fei", turns[:, :, :2], EYES) + turns[:, None, :, 2]
    apart = np.linalg.norm(eyes[:, 0] - eyes[:, 1], axis=1).mean()
    faces = pd.DataFrame({"films_per_s": 1 / rows.cpu_s, "faster": rows.ratio_cpu_time})
    off = {every: np.linalg.norm(at[:, :2] - eyes, axis=2).mean() for every, at in found.items()}
    faces["eye_error"] = pd.Series(off) / apart
    return {
        "device": f"{models.device_name()}, one core",
        "model": config.checkpoint,
        "cold_cpu_s": sum(seconds.values()),
        "cold_shares": {name: part / sum(seconds.values()) for name, part in seconds.items()},
        "faces": faces.sort_index().rename_axis("detect_every").reset_index().to_dict("records"),
    }


def run_loader(config: LoaderConfig) -> dict[str, Any]:
    """Measure the reading of clips, see `LoaderConfig`."""
    from tests.plain.loader import load_clip  # it needs decord

    clips, many = make_clips(config.num_clips), config.num_samples

    def load_plainly(item: ClipIndex) -> Any:
        clip = clips[item.index]
        return load_clip(clip.video, clip.audio, item_generator(0, item))

    torch.set_num_threads(1)  # as workers do
    with tempfile.TemporaryDirectory(prefix="hicmae-loader-") as folder:
        items = {"plain": endless(load_plainly, len(clips))}
        for kind, listed in {"mp4": clips, "shards": pack(clips, Path(folder))}.items():
            items |= {kind: own_items(listed, 1), f"{kind}_samples": own_items(listed, many)}
        steps = {name: source.__next__ for name, source in items.items()}
        times = measure_in_turns(steps, config.steps, 2)
    # All variants load the same windows, whose costs differ: totals compare, medians would not.
    samples = {name: many if name.endswith("samples") else 1 for name in steps}
    return {
        "device": f"{models.device_name()}, one core",
        "model": "pretraining clips",
        "num_samples": many,
        "variants": compared(times, "plain", samples, "mean").to_dict("index"),
    }


def endless(load: Callable[[ClipIndex], Any], num_clips: int) -> Iterator[Any]:
    """Yield what is loaded of the items of one epoch after the other."""
    return (load(ClipIndex(epoch, k)) for epoch in itertools.count() for k in range(num_clips))


def own_items(clips: list[Clip] | ClipList, num_samples: int) -> Iterator[PretrainBatch]:
    """Yield items of the pre-training data set, endlessly; with one sample, those of plain."""
    # Packed clips have their own order; by name it is that of the files.
    clips = sorted(clips, key=lambda clip: clip.video)
    dataset = PretrainClips(clips, num_samples=num_samples, seed=0, source_crop="voxceleb2")
    return endless(dataset.__getitem__, len(clips))


def pack(clips: list[Clip], folder: Path, quality: int = 95) -> ClipList:
    """Return the clips, packed into a folder, as JPEG of that quality."""
    write_list(folder / "clips.csv", clips)
    flags = f"--source_crop voxceleb2 --num_workers 1 --quality {quality} --output_dir".split()
    if pack_clips.main([str(folder / "clips.csv"), *flags, str(folder / "packed")]):
        raise RuntimeError("the clips could not be packed; see the lines above")
    return read_packed(folder / "packed")


def run_feed(*settings: Any) -> dict[str, Any]:
    """Measure how training is fed, see `FeedConfig`, the last of the settings."""
    configs, config = PretrainConfigs(*settings[:-1]), settings[-1]
    if configs.data.data_path == NOT_SET:
        if not config.make_clips:
            raise ValueError("no clips to read; give --data_path or --make_clips")
        data = replace(configs.data, data_path=str(CACHE / "made.csv"))
        write_list(data.data_path, make_clips(config.make_clips))
        configs = configs._replace(data=data)
    device = distributed.start(configs.run.device)
    run = Run(configs.run, choose_precision(configs.run.precision, device))
    dataset, processes = make_dataset(configs), distributed.world_size()
    # One epoch of all steps, and what is loaded in advance: of a short list clips come again, of a
    # long one they are spread over it.
    num_clips, optim, workers = len(dataset), configs.optim, configs.run.num_workers
    wanted = (config.warmup + config.steps) * optim.accum_iter + 2 * workers + 2
    wanted *= optim.batch_size * processes
    stride = max(num_clips // wanted, 1)
    dataset.clips = [dataset.clips[k * stride % num_clips] for k in range(wanted)]
    batches = epoch_batches(clip_loader(run, dataset, optim.batch_size), 0)
    first = next(batches)
    fixed, _ = train(configs, run.precision, itertools.repeat(first), config)
    fed, waits = train(configs, run.precision, batches, config)
    clips = len(first.names) * optim.accum_iter * processes
    told = flat_settings(as_dict(configs)) | {"precision": run.precision.name}
    names = ("model", "precision", "data_path", "batch_size", "accum_iter", "num_samples")
    return {
        "device": models.device_name(device),
        "processes": processes,
        **{name: told[name] for name in names},
        "num_workers": workers,
        "clips_in_list": num_clips,
        "times_read": wanted / num_clips,
        **feed_rates(pd.concat([fed, fixed.assign(variant="fixed")]), waits, clips),
    }


def first_step(flags: Sequence[str]) -> Step:
    """Return a step, always on the first clips of the list, by the flags of run_pretraining.py."""
    configs = from_dict(PretrainConfigs, new_parser("", PretrainConfigs).parse_args(flags))
    dataset = make_dataset(configs)
    items = [dataset[ClipIndex(0, index)] for index in range(configs.optim.batch_size)]
    step = trainer(configs, models.arithmetic(configs.run), make_loss(configs.loss))
    return partial(step, [dataset.collate(items)])


def train(
    configs: PretrainConfigs, precision: Precision, batches: Iterator[Any], config: FeedConfig
) -> tuple[pd.DataFrame, float]:
    """Train a fresh model of run_pretraining.py on batches, enough for all steps.

    Returns:
        The times of the steps, and the seconds in which they could only wait for their batches.
    """
    take_step, waits = trainer(configs, precision, make_loss(configs.loss)), []

    def step() -> None:
        asked = Mark(precision.device)
        group = list(itertools.islice(batches, configs.optim.accum_iter))
        waits.append((asked, Mark(precision.device)))
        take_step(group)

    times = measure_in_turns({"fed": step}, config.steps, config.warmup, precision.device)
    return times, sum(asked.until(given) for asked, given in waits[config.warmup :])


def feed_rates(times: pd.DataFrame, waits: float, clips: int) -> dict[str, float]:
    """Compare steps of so many clips fed by the loader with steps on a batch that is there.

    VoxCeleb2 x 100 epochs takes so many days on devices like those that were measured.
    """
    rows = compared(times, "fixed", clips, "mean")
    fed, fixed = rows.loc["fed"], rows.loc["fixed"]
    days = VOXCELEB2_CLIPS * EPOCHS / 86400 / rows.clips_per_s
    return {
        "wait_share": waits / times[times.variant == "fed"].wall.sum(),
        "slower_share": 1 - fed.ratio,
        "voxceleb2_days": days["fed"],
        "voxceleb2_days_if_fed": days["fixed"],
        **fed,
        **fixed.add_prefix("fixed_"),
    }


def run_growth(config: GrowthConfig) -> dict[str, Any]:
    """Measure how speed changes, see `GrowthConfig`."""
    clips, rows = make_clips(2), list[dict[str, Any]]()
    for model in config.models:
        how = TaskConfig(model=model, device="cpu", precision="fp32")
        steps = {count: models.our_step("pretrain", how, count) for count in config.batch_size}
        times = measure_in_turns(steps, config.steps, 1).groupby("variant", sort=False).median()
        for count, spent in times.iterrows():
            rows.append({"what": f"clips a step, {model}", "size": count, **spent})
    with tempfile.TemporaryDirectory(prefix="hicmae-growth-") as folder:
        path, out = Path(folder, "train.csv"), Path(folder, "step.json")
        for ranks in config.ranks:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command += [f"--nproc_per_node={ranks}", str(Path(__file__).with_name("benchmark.py"))]
            command += "pretrain --device cpu --model t --precision fp32 --batch_size 2".split()
            command += ["--warmup", "1", "--no-plain", "--no-more", "--steps", str(config.steps)]
            subprocess.run([*command, "--json", str(out)], check=True, stdout=subprocess.DEVNULL)
            found = json.loads(out.read_text(encoding="utf-8"))
            row = {"what": "processes (gloo), t", "size": ranks, "wall": found["step_s"]}
            rows.append(row | {"cpu": found["cpu_s"] * ranks})
        for lines in config.lines:
            write_list(path, (clips[k % len(clips)]._replace(audio=None) for k in range(lines)))
            rows += [{**row, "size": lines} for row in models.alone(start_epoch, str(path))]
    table = pd.DataFrame(rows)
    for ratio, seconds in (("ratio", "wall"), ("ratio_cpu_time", "cpu")):
        rate = table["size"] / table[seconds]
        table[ratio] = rate / rate.groupby(table.what).transform("first")
    table = table.astype(object).where(table.notna(), None)
    device, threads = models.device_name(), torch.get_num_threads()
    title = f"{device}, {pd.Timestamp.now().date()}, fp32, threads a process: {threads}"
    text = table.to_markdown(index=False, floatfmt=".4g", missingval="")
    return {"device": device, "rows": table.to_dict("records"), "text": f"{title}:\n\n{text}"}


def start_epoch(path: str) -> list[dict[str, Any]]:
    """Read a list and load a batch; return what the two took, in seconds and MB."""
    before, start = models.resident(), Mark()
    clips = read_pretrain_list(path)
    read = Mark()
    describe_clips(clips, "")
    sampler = ClipSampler(len(clips), shuffle=True, seed=0, pad=True)
    next(epoch_batches(make_loader(PretrainClips(clips), sampler, 2, 2, drop_last=True), 0))
    loaded, memory = Mark(), (models.resident() - before) / 1e6
    rows = ("to be read", start, read), ("from there to the first batch", read, loaded)
    return [
        {"what": f"lines, {what}", "wall": a.until(b), "cpu": b.cpu - a.cpu, "memory_mb": memory}
        for what, a, b in rows
    ]
