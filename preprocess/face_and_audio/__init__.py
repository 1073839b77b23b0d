"""Faces and sound of any number of clips: folders of aligned face frames, and 16 kHz wavs.

extract_audio.py makes the wavs, extract_face.py the faces (what finds and follows them is in
hicmae/faces). batch.py is what both do with many clips.
"""
