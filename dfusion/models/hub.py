"""Asking the Hugging Face hub once: the libraries would retry six times per file, aloud."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_session
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from dfusion.errors import UserError, reason

SECONDS = 10.0
REMEDY = (
    "to use what was downloaded elsewhere, point HF_HOME at that cache and set HF_HUB_OFFLINE=1"
)


def is_hub_id(name: str) -> bool:
    """By its form: owner/name."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


@contextmanager
def asked_once(what: str, instead: str, local: bool = False) -> Iterator[None]:
    """Within this block, load from the hub, or from its cache if the hub does not answer.

    what: the flag and its value. instead: advice on what else it may be. local: do not ask the hub.
    Raises UserError if the hub does not answer and its cache lacks a file.
    """
    if local:
        yield
        return
    trouble, offline = _trouble(), constants.HF_HUB_OFFLINE
    silenced = logging.root.manager.disable
    if trouble:
        constants.HF_HUB_OFFLINE = True
        logging.disable(logging.CRITICAL)  # errors are raised as well
    try:
        yield
    except Exception as error:  # each library wraps the cause in its own way
        if not trouble or not _is_absence(error):
            raise
        raise UserError(
            f"{what}: not in the hub's cache on this machine, and {trouble}; {instead}; {REMEDY}"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = offline
        logging.disable(silenced)


def _trouble() -> str:
    """Why the hub cannot be used; empty if it answers at all."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:  # its type depends on the HTTP library
        return f"{constants.ENDPOINT} cannot be reached ({reason(error)})"
    return ""


def _is_absence(error: BaseException | None) -> bool:
    """Whether its cause is a file missing from the cache."""
    while error is not None:
        if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
            return True
        error = error.__cause__ or error.__context__
    return False
