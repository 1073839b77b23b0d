"""Faces in videos: found and placed (detector), followed (tracking), cut out (alignment)."""
