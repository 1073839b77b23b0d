"""Using a model: one video in, emotions or features out.

model_config.py   what inference must know about a model: config.json
names.py          names of classes and outputs: from files, from flags, of known data sets
export.py         a finished run or a .pth becomes a folder of config.json and model.safetensors
loading.py        and that folder, or a .pth, becomes a model; only the encoders that are needed
media.py          pictures and sound of a video, a folder of frames, or arrays
windows.py        which frames and samples each window reads
faces.py          who is seen in the frames, and the cut-out faces
views.py          windows as tensors
forward.py        scores and features, also where one stream is missing
recognizer.py     EmotionRecognizer, which puts it all together
results.py        what it returns; tables, CSV and JSON of it
timeline.py       the picture of scores over time; overlay.py: the annotated copy of a video
predict.py        command line hicmae-predict; extract.py: hicmae-extract
"""
