"""Measuring speed: `python -m hicmae.benchmark COMMAND`, one module a command.

What is measured against is the plain rendition of the method in `tests/plain`, in the same run.
"""
