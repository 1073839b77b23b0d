"""ONNX and torch.export: what is written agrees with PyTorch, and an .onnx answers like a model."""

import shutil
import sys

import numpy as np
import onnx.parser
import pytest
import torch

from hicmae import EmotionRecognizer
from hicmae.data.clip_list import Clip, write_list
from hicmae.inference import cli, formats
from hicmae.inference.model import load_model
from hicmae.training.checkpoint import METADATA
from tests.small_recognizers import NAMES

# The means of picture and sound times a number of each class, added.
ROWS = {"video": [1.0, -2.0, 0.5], "audio": [0.3, 0.1, -0.4]}
GRAPH = """
<ir_version: 10, opset_import: ["": 20]>
g (float[batch,c,t,h,w] video, float[batch,d,s,f] audio) => (float[batch,3] scores)
<int64[1] axes = {1}, float[1,3] of_video = {1, -2, 0.5}, float[1,3] of_audio = {0.3, 0.1, -0.4},
 float scale = {%s}> {
  pixels = Flatten(video)
  seen = ReduceMean(pixels, axes)
  levels = Flatten(audio)
  heard = ReduceMean(levels, axes)
  by_video = MatMul(seen, of_video)
  by_audio = MatMul(heard, of_audio)
  both = Add(by_video, by_audio)
  scores = Mul(both, scale)
}
"""


def make_graph(path, config, scale=1.0):
    model = onnx.parser.parse_model(GRAPH % scale)
    if config is not None:
        onnx.helper.set_model_props(model, {METADATA: config.to_json()})
    onnx.save(model, path)
    return path


@pytest.fixture
def config(models):
    return load_model(models / "av.pth")[1]


@pytest.fixture
def graph(tmp_path, config):
    return make_graph(tmp_path / "mödel.onnx", config)


def test_an_onnx_answers_with_its_own_numbers_and_without_its_network(
    graph, clip, config, monkeypatch
):
    monkeypatch.setattr("hicmae.inference.model.BUILDERS", {})
    frames, wav = clip
    seen = []
    mine = EmotionRecognizer.from_checkpoint(graph, device="cpu")
    assert (mine.names, mine.config) == (NAMES, config)
    found = mine.each([(frames, wav)], on_view=lambda _, view: seen.append(view))
    probabilities = [[*w.scores.values()] for w in next(iter(found)).windows]
    shift, scale = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for view, got in zip(seen, probabilities, strict=True):
        pixels = view.video.numpy() / 255
        video = ((np.moveaxis(pixels, 0, -1) - shift) / scale).mean()
        logits = video * np.array(ROWS["video"]) + view.audio.numpy().mean() * np.array(
            ROWS["audio"]
        )
        expected = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_what_an_onnx_cannot_do_is_one_line(graph, tmp_path, monkeypatch):
    load, broken = EmotionRecognizer.from_checkpoint, tmp_path / "broken.onnx"
    broken.write_bytes(graph.read_bytes()[:100])
    for refused, message in (
        (lambda: load(graph, precision="bf16"), "precision of an .onnx.*bf16"),
        (lambda: load(graph, missing_modality="drop"), "missing_modality of an .onnx.*drop"),
        (lambda: load(graph, device="mps"), "mps"),
        (lambda: load(make_graph(tmp_path / "bare.onnx", None)), "does not say which classes"),
        (lambda: load(broken), "damaged or no ONNX"),
        (lambda: load(graph).features("a.mp4"), "features need the checkpoint"),
        (lambda: load(graph).save_pretrained(tmp_path / "x"), "holds a part of its network"),
        (lambda: load_model(graph), "no weights to load"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            refused()
        assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="pip install onnx onnxscript onnxruntime"):
        load(graph)


@pytest.mark.parametrize("scale, agrees", [(1.0, True), (1.1, False)])
def test_only_what_agrees_is_written(graph, config, clip, tmp_path, monkeypatch, scale, agrees):
    other = make_graph(tmp_path / "other.onnx", config, scale)
    monkeypatch.setattr(formats, "write_onnx", lambda m, c, path, int8: shutil.copy(other, path))
    out = tmp_path / "out" / "model.onnx"
    recognizer = EmotionRecognizer.from_checkpoint(graph, device="cpu")
    frames, wav = clip
    if agrees:
        found = formats.write(recognizer, out, "onnx", [(frames, wav), ("missing.mp4", None)])
        assert found == {"clips": 1, "windows": found["windows"], "difference": 0, "same": 1}
        assert found["windows"] > 1
    else:
        with pytest.raises(ValueError, match="at most 0.0001.*is not written"):
            formats.write(recognizer, out, "onnx", [(frames, wav)])
    assert [path.name for path in out.parent.iterdir()] == ["model.onnx"] * agrees
    with pytest.raises(ValueError, match="none of 1 clips.*--data_path"):
        formats.write(recognizer, out, "onnx", [("missing.mp4", None)])


def test_flags_that_do_not_go_together_stop_at_once(models, tmp_path, caplog):
    export = [str(models / "av.pth"), str(tmp_path / "out")]
    assert cli.export([*export, "--int8"]) == 2
    assert cli.export([*export[:1], str(tmp_path / "x.bin"), "--format", "onnx"]) == 2
    pretrained = [str(models / "pretrained.pth"), str(tmp_path / "out"), "--format", "onnx"]
    assert cli.export(pretrained) == 2
    for text in ("--int8 is of --format onnx", "must end in .onnx", "expected a classifier"):
        assert text in caplog.text
    assert not (tmp_path / "out" / "model.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["av", "a", "v", "regression"])
def test_every_format_is_written_and_read(models, clip, tmp_path, name):
    frames, wav = clip
    write_list(tmp_path / "test.csv", [Clip(frames, wav, 0)])
    video = wav if name == "a" else frames
    flags = ["--data_path", str(tmp_path / "test.csv")]
    torch_answer = EmotionRecognizer.from_checkpoint(models / f"{name}.pth", device="cpu").predict(
        video, audio=wav
    )
    for form, tolerance in (("onnx", 1e-4), ("int8", 0.15)):
        path = tmp_path / f"{form}.onnx"
        int8 = ["--int8"] if form == "int8" else []
        command = [str(models / f"{name}.pth"), str(path), "--format", "onnx", *int8, *flags]
        assert cli.export(command) == 0
        answer = EmotionRecognizer.from_checkpoint(path, device="cpu").predict(video, audio=wav)
        assert answer.scores == pytest.approx(torch_answer.scores, abs=tolerance)
    command = [str(models / f"{name}.pth"), str(tmp_path / "pt"), "--format", "torch", *flags]
    assert cli.export(command) == 0
    assert {path.name for path in (tmp_path / "pt").iterdir()} == {"model.pt2", "README.md"}
    program = torch.export.load(tmp_path / "pt" / "model.pt2").module()
    shapes = {"v": (3, 4, 32, 32), "a": (1, 96, 128)}
    modality = name if name in ("a", "v") else "av"
    inputs = [torch.zeros(5, *shape) for stream, shape in shapes.items() if stream in modality]
    assert program(*inputs).shape == (5, 3)
