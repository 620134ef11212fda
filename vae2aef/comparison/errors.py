"""The one error of what a user of the command line gives."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used: a file, an option, a factory.

    The message says what was expected, what came and what to do. The command line prints it as one line and
    exits with code 2; everything else that escapes is a bug and keeps its traceback.
    """
