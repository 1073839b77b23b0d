"""The synthetic talking-face benchmark, in the order in which a clip is made.

speech   -> what is said: syllables, pauses, loudness envelope, formants; knows no class
clips    -> who speaks, and one clip: expression (valence), delivery (arousal), motion, scene
voice    -> sound from the speech plan and the delivery
portrait -> the still head and its background; frames -> what moves on it, the aligned faces
build    -> files of a clip; the whole data set, its lists and its table; a contact sheet

Lengths on a face are in face units: half the distance between the eyes is 25, the origin lies
midway between them, x to the right, y down. Colours are BGR as in OpenCV.
"""
