"""Errors that a user can put right."""


class BadInput(Exception):
    """Something the user gave cannot be used.

    The message is one line that says what is wrong, where, and what to do. The entry points print it without
    a traceback and exit with code 2.
    """
