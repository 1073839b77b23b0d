"""Faces in videos: found and placed (detector), followed and cut out (tracking)."""
