"""Command lines of inference: hicmae-predict, hicmae-extract, hicmae-app and the export."""

import argparse
import gc
from functools import partial

from hicmae.config import ACTIVATIONS, METRICS, PRECISIONS, Options
from hicmae.config.flags import Settings, command, option
from hicmae.data.clip_list import DATA_SETS
from hicmae.data.video import MODALITIES

PREDICT = """Predict emotions in videos with a trained model.

    hicmae-predict VIDEO... --checkpoint FOLDER [--csv FILE --html FILE --overlay FILE ...]

VIDEO is a video file, a folder of videos (searched with its subfolders), a folder of face frames,
or, with a model that reads sound only, a sound file. FOLDER is the output folder of
run_finetuning.py, or export/best or export/last in it. After an interruption the same command does
not ask again about what it has answered.

Without installation: python -m hicmae.inference predict. Exit code: 0; 1 where a clip could not be
read, which the table and the files say; 2 where the command is wrong.
"""
EXTRACT = """Write the features of a list of clips, by a model of either stage.

    hicmae-extract --data_path PATH --checkpoint PATH --output features.npz

--data_path is a list (<video> [<audio.wav>] [<label> ...]), a folder of lists (test.csv, else
train.csv) or shards, a video, a folder of videos or of face frames. In lists of pre-training the
wav beside the video is heard, where there is one. The output has a row for each clip, the mean over
its windows, or with --per_window a row for each window:

    clip, label (where the list has any), start, end (with --per_window, in seconds)
    video_layers, audio_layers   (rows, blocks, width): every block's output, averaged over tokens
    video, audio                 (rows, width): their mix by the learned layer weights
    fusion_video, fusion_audio   (rows, width): of the fusion encoder
    fused                        (rows, 4 * width): what the head reads

A pre-training checkpoint has the layers and the fusion. Clips that cannot be read are named in
OUTPUT.failed.csv. Exit codes are those of hicmae-predict.
"""
EXPORT = """Turn a checkpoint into what others can use: a folder of a model hub, ONNX, torch.export.

    hicmae-export CHECKPOINT OUTPUT [--format hub | onnx | torch] [--int8]

CHECKPOINT is the output folder of a finished run, a .pth of this project or of the original
authors, or an export whose classes are to be renamed. OUTPUT becomes a folder in the layout of a
model hub: README.md (the model card), config.json and model.safetensors; of a run it gets two of
them, last/ and best/, as run_finetuning.py makes them in <output_dir>/export/.

--format onnx writes model.onnx there (--int8: model_int8.onnx, a quarter of the size), --format
torch model.pt2, of the best epoch of a run; an OUTPUT that ends in .onnx or .pt2 is that file. The
answers of the file are compared with PyTorch's on 16 clips: of --data_path, else of the run's test
list, else on a film of the package. What disagrees is not written: probabilities may differ by
0.0001, with --int8 by 0.15 and in the class of one window of ten.
hicmae-predict --checkpoint OUTPUT/model.onnx reads an .onnx. It needs
pip install onnx onnxscript onnxruntime (to predict, onnxruntime).
"""
APP = """Serve a page to try a model on a film, or on oneself with camera and microphone.

    hicmae-app [--checkpoint FOLDER]

Open the address that it prints. It answers from this computer only; films stay here and are
deleted once answered. Needs pip install "hicmae[app]".
"""
MODELS = "export folder, output folder of a run, model.safetensors, .onnx or .pth"
DEVICES = "auto, cpu, cuda[:n] or mps"
STREAMS = """streams to read (default: those of the model); one stream of a model of both needs
 --missing_modality"""
KNOWN = ", ".join(dict.fromkeys(name for name, _ in DATA_SETS))
NAMES = f"names of the classes or outputs; or a file with a name a line; or a data set: {KNOWN}"
SPEAKERS = "pre-training that tells who speaks, for --speaker auto and contrast"
FORMATS = ("hub", "onnx", "torch")
COMPARED = "clips to compare with: list, folder of lists or shards, video (the run's test list)"
LICENCE = "licence of the weights, as model hubs call it, e.g. mit (default: other, unknown)"
needed, place = partial(option, "", required=True), partial(option, positional=True)
root = partial(option, "", "start of relative names", metavar="DIR")
quiet = partial(option, False, "no progress bars, no table")
result = partial(option, None, metavar="FILE")


class Computing(Settings):
    """Model."""

    checkpoint: str = needed(MODELS, metavar="PATH")
    device: str = option("auto", DEVICES)
    batch_size: int = option(8, "windows at once")


class Model(Computing):
    """Model."""

    precision: str = option("auto", "auto: bf16 if a GPU has it, else fp32", choices=PRECISIONS)
    modality: str | None = option(None, STREAMS, choices=MODALITIES)


class Videos(Settings):
    """Videos."""

    videos: tuple[str, ...] = place((), "video, or folder of frames", metavar="VIDEO")
    audio: str | None = result("sound to hear instead of the video's own")
    speaker_checkpoint: str | None = option(None, SPEAKERS, metavar="PATH")
    quiet: bool = quiet()


class Results(Settings):
    """Results; with several videos their names are put in."""

    csv: str | None = result("a row for each video")
    windows_csv: str | None = result("a row for each window")
    json: str | None = result("all there is")
    plot: str | None = result("scores over time: .png, .pdf or .svg, one for each video")
    overlay: str | None = result("annotated copy: .mp4, for each video")
    html: str | None = result("page with film, faces, timeline, for each video; needs no server")
    srt: str | None = result("subtitles of the answers, for each video")
    vtt: str | None = result("the same for web pages")
    elan: str | None = result("csv for ELAN, for each video: tier, begin and end in seconds, label")


class Features(Settings):
    """Clips and their features."""

    data_path: str = needed("list, folder of lists or shards, video", metavar="PATH")
    data_root: str = root()
    output: str = needed(".npz", metavar="FILE")
    per_window: bool = option(False, "a row for each window, not for each clip")
    quiet: bool = quiet()


class Page(Settings):
    """The page."""

    checkpoint: str = option("toy", f"{MODELS}; toy knows drawn faces only", metavar="PATH")
    device: str = option("auto", DEVICES)
    port: int | None = option(None, "of the address (default: the first free one from 7860 on)")
    share: bool = option(False, "also give a public address, by gradio's servers, for 72 hours")


class Limits(Settings):
    """What a film may be."""

    max_mb: float = option(100.0, "largest film in megabytes", "> 0 and < 1e6")
    max_seconds: float = option(120.0, "longest film", "> 0 and < 1e6")


class Export(Settings):
    """What to export."""

    checkpoint: str = place("", "run, .pth, export folder or model.safetensors")
    output: str = place("", "folder to make, or a name that ends in .onnx or .pt2")
    class_names: tuple[str, ...] = option((), NAMES, metavar="NAME")
    format: str = option("hub", "hub: config.json, model.safetensors", choices=FORMATS)
    int8: bool = option(False, "with --format onnx: weights of 8 bits")
    data_path: str | None = option(None, COMPARED, metavar="PATH")
    data_root: str = root()
    license: str | None = option(None, LICENCE, metavar="NAME")
    data_license: str | None = option(None, "licence of the training data (default: unknown)")


class Unsaid(Settings):
    """Settings that a .pth does not say."""

    num_frames: int | None = option(None, "video frames of a clip (default: 16)")
    sampling_rate: int | None = option(None, "frames from one sampled to the next (default: 4)")
    input_size: int | None = option(None, "height and width of a face in pixels (default: 160)")
    frame_rate: float | None = option(None, "of the films in training (default: measured, else 25)")
    input_size_audio: tuple[int, int] | None = option(None, "steps, mel bins (default: 256 128)")
    task: str | None = option(None, "of the head (default: classification)", choices=[*METRICS])
    head_activation: str | None = option(None, "of outputs (default: none)", choices=ACTIVATIONS)


def _run(name: str, args: argparse.Namespace) -> int:
    gc.disable()  # a million objects come to stay: looking for waste among them takes half a second
    from hicmae.inference import commands  # brings torch, for which no --help should wait

    gc.freeze()  # they are not looked through at the end either
    gc.enable()
    return int(getattr(commands, name)(args))


predict, extract, app, export = (
    command(usage, partial(_run, name), *configs, prog=f"hicmae-{name}")
    for name, usage, *configs in (
        ("predict", PREDICT, Videos, Model, Options, Results),
        ("extract", EXTRACT, Features, Model, Options),
        ("app", APP, Page, Limits),
        ("export", EXPORT, Export, Unsaid),
    )
)
