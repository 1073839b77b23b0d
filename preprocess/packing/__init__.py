"""Clips packed into WebDataset shards; `preprocess/pack_clips.py` is the command.

encode     one clip: its frames as images, its sound, its description
shards     the tar files, whole or not there, and their indexes
verify     compare shards with their indexes, byte by byte
"""
