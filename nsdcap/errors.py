"""Errors a user can mend: one sentence each, and the exit code the command line gives them."""

import os
import sys


class NsdcapError(Exception):
    """What was found, what was expected, how to mend it. Printed without a traceback."""

    exit_code = 1


class UsageError(NsdcapError):
    """A wrong option or setting."""

    exit_code = 2


class DataError(NsdcapError):
    """A file that is missing, broken, or does not agree with another. ``absent``: it is not there at all."""

    exit_code = 65
    absent = False


def absent(message: str) -> DataError:
    """The error of a file or folder that is not there, which the doctor tells from a bad one."""
    error = DataError(message)
    error.absent = True
    return error


class DiskError(NsdcapError, OSError):
    """A disk that is full, or fails, or may not be written. Once that is mended the same command goes on."""

    exit_code = 74

    def __init__(self, message: str, number: int = 0):
        super().__init__(message)
        self.message, self.errno, self.strerror = message, number, os.strerror(number)

    def __str__(self) -> str:
        return self.message


def first_line(error: BaseException) -> str:
    """The first line of what a library's error says, 200 letters of it; its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def bound() -> str:
    """What to add, inside an image, where a folder or file is not there."""
    inside = "APPTAINER_CONTAINER" in os.environ or "SINGULARITY_CONTAINER" in os.environ
    return " (an image sees the folders of this machine that --bind names)" if inside else ""


def unread() -> int:
    """The exit code of a program whose reader has gone, as ``| head`` does; keeps Python from complaining."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + 13  # as a shell tells of SIGPIPE
