"""The text that flags and files may contain: only what can be shown on one line."""

import unicodedata

from dfusion.errors import UserError

LONGEST = 4000  # characters of a flag or prompt
_CONTROL = {"Cc", "Cs", "Zl", "Zp"}  # control characters, lone surrogates, line separators
_TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # reading-order marks


def check_text(what: str, text: str) -> None:
    """Refuse text that cannot be shown on one line. what: the flag or file. Raises UserError."""
    for c in text:
        if unicodedata.category(c) in _CONTROL or unicodedata.bidirectional(c) in _TURNING:
            raise UserError(
                f"{what}: '{text}' has the character U+{ord(c):04X}; write plain text in one line"
            )
    if len(text) > LONGEST:
        raise UserError(f"{what}: '{text}' has {len(text)} characters; give at most {LONGEST}")


def names_of(text: str) -> list[str]:
    """The names in a flag that lists several: "to_q,to_v"."""
    return [name.strip() for name in text.split(",") if name.strip()]
