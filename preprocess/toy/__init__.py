"""The synthetic talking-face benchmark, in the order in which a clip is made.

speakers -> who: traits of a face and of a voice, drawn once per speaker
speech   -> what is said: syllables, pauses, loudness envelope, formants; knows no class
clips    -> one clip: class, expression (valence), voice settings (arousal), head motion, scene
voice    -> sound from the speech plan and the voice settings
portrait, hair, features, render -> frames from the traits, the expression and the motion
media    -> mp4, wav and face-frame folder; build -> the whole data set, its lists and its table

Lengths on a face are in face units: half the distance between the eyes is 25, the origin lies
midway between them, x to the right, y down. Colours are BGR as in OpenCV.
"""
