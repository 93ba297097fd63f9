"""The text that flags and files may hold: what can be shown as one line."""

import unicodedata

from dfusion.errors import UserError

LONGEST = 4000  # characters of a flag or prompt
_CONTROL = {"Cc", "Cs", "Zl", "Zp"}  # control characters, lone surrogates, line separators
_TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # of the reading order


def check_text(what: str, text: str) -> None:
    """Refuse what could not be shown as one line. what: the flag or file. Raises UserError."""
    for c in text:
        if unicodedata.category(c) in _CONTROL or unicodedata.bidirectional(c) in _TURNING:
            raise UserError(
                f"{what}: '{text}' has the character U+{ord(c):04X}; write plain text in one line"
            )
    if len(text) > LONGEST:
        raise UserError(f"{what}: '{text}' has {len(text)} characters; give at most {LONGEST}")


def names_of(text: str) -> list[str]:
    """The names of a flag that lists them: "to_q,to_v"."""
    return [name.strip() for name in text.split(",") if name.strip()]
