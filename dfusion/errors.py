"""The exceptions that a user is meant to read, and how their text stays one plain line."""

import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 600


class UserError(Exception):
    """Bad input. The message is one line: the flag or file, what is wrong, what to do.

    It quotes what was given, so whatever does not print is shown as an escape, and the middle of a
    text that is too long is left out.
    """

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text))


class NotFiniteError(ArithmeticError):
    """A tensor holds NaN or Inf. index: of the first row that does."""

    def __init__(self, index: int) -> None:
        super().__init__(f"row {index} is NaN or infinite")
        self.index = index


@contextmanager
def ends_in_one_line() -> Iterator[None]:
    """Bad input in the block, or in the function so decorated, ends the program with code 2."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def one_line(text: str, longest: int = LONGEST) -> str:
    """The text without line breaks, terminal codes and other characters that do not print."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(plain) <= longest:
        return plain
    return f"{plain[: longest // 2]} … {plain[-longest // 2 :]}"


def reason(error: Exception, longest: int = 200) -> str:
    """The first line of another library's message, cut between words where it is too long."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return textwrap.shorten(lines[0], longest, placeholder=" …")
