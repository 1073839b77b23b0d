"""Using a model: one video in, emotions or features out.

model.py        config.json and weights: exports, runs and .pth read alike
export.py       exports written, with a model card, and put on a model hub
formats.py      ONNX and torch.export, and an .onnx as a model
clips.py        which windows a model reads of a clip, whose faces, and these as tensors
speaker.py      which of several people in a film the sound belongs to
recognizer.py   EmotionRecognizer, which puts it all together, and its answers
pictures.py     scores over time as a picture; a copy of the film with the answers drawn in
timeline.py     a page with the film and its answers, subtitles, tiers for ELAN
app.py          hicmae-app, a page in the browser to try a model
cli.py          flags of hicmae-predict, hicmae-extract, hicmae-app and the export
commands.py     what they do
"""
