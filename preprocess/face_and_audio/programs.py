"""Run another program on one clip: ffmpeg, OpenFace."""

from __future__ import annotations

import os
import shutil
import subprocess

from preprocess.face_and_audio.inputs import ClipError


def find_program(name: str, flag: str) -> str:
    """Return the path of a program; FileNotFoundError names the flag that was given for it."""
    path = shutil.which(name)
    if path is None:
        raise FileNotFoundError(
            f"{flag} '{name}' is no program that can be run; install it, or give its path"
        )
    return os.path.abspath(path)


def run_program(command: list[str], timeout: float | None) -> None:
    """Run a program without a shell; ClipError with its last words where it fails.

    Args:
        command: program and arguments.
        timeout: seconds after which it is killed.
    """
    name = os.path.basename(command[0])
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ClipError(f"{name} took longer than {timeout:g} s") from None
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        how = (
            f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        )
        raise ClipError(f"{name} failed with {how}: {words[-1] if words else 'without a word'}")
