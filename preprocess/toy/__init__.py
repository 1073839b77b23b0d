"""The synthetic talking-face benchmark.

plan  -> who speaks and what happens in a clip, as named numbers; the class enters here only
voice -> sound of a plan; face -> frames of a plan, and aligned faces
build -> files of a clip; the whole data set, its lists and its table; a contact sheet

Face and voice share who speaks, the movement of the lips and the energy. Valence is only in the
face, arousal only in the voice. Lengths on a face are in face units: half the distance between the
eyes is 25, the origin lies midway between them, x to the right, y down. Colours are RGB 0..255.
"""
