"""The one exception a user is meant to read."""


class UserError(Exception):
    """Bad input. The message is one line: the flag or file, what is wrong, what to do."""
