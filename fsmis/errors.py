"""The one exception a user is meant to read."""


class UserError(Exception):
    """Bad input, weights or settings; the message names file, value and fix in one line.

    Command lines print it as ``error: <message>`` and exit with code 2, without a traceback unless
    the environment variable ``FSMIS_TRACEBACK`` is set.
    """


class ScanError(UserError):
    """A scan that cannot be read; the other scans of a run go on."""
