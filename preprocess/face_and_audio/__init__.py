"""Faces and sound of clips: aligned face frames and 16 kHz wavs, for any number of files.

extract_audio.py   any file with sound -> mono 16 kHz wav
extract_face.py    any video -> folder of aligned faces, by openface.py (a program) or by
    hicmae/faces/  detector (MTCNN), tracking, alignment: inference uses them too
batch.py           what both do with many clips: in parallel, resumable, reported; flags
    inputs.py      which clips: folder, list or file; shards
    staging.py     results appear whole or not at all
media.py           open the picture or the sound of a file; programs.py: run a program on it
benchmark.py       clips a second of each step
"""
