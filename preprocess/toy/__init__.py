"""The synthetic talking-face benchmark, whose files toy_av.py makes.

plan says who speaks and what happens in a clip, voice makes the sound of it, face the frames. Face
and voice share who speaks, the movement of the lips and the energy. Valence is only in the face,
arousal only in the voice. Lengths on a face are in face units: half the distance between the eyes
is 25, the origin lies midway between them, x to the right, y down. Colours are RGB 0..255.
"""
