"""The one base of errors that a user is meant to read."""


class UserError(Exception):
    """Says what is wrong and what to do; the command line prints it alone, without a traceback."""
