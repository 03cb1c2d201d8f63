"""Errors a user can mend: one sentence each, and the exit code the command line gives them."""


class NsdcapError(Exception):
    """What was found, what was expected, how to mend it. Printed without a traceback."""

    exit_code = 1


class UsageError(NsdcapError):
    """A wrong option or setting."""

    exit_code = 2


class DataError(NsdcapError):
    """A file that is missing, broken, or does not agree with another."""

    exit_code = 65
