"""The Hugging Face hub, asked once. The libraries ask six times for each file, with a line each."""

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
    """In this block things load from the hub, or from its cache where the hub does not answer.

    what: the flag and its value; instead: what else it may be; local: nothing is asked at all.
    Raises UserError where the hub does not answer and its cache lacks something.
    """
    if local:
        yield
        return
    trouble, offline = _trouble(), constants.HF_HUB_OFFLINE
    silenced = logging.root.manager.disable
    if trouble:
        constants.HF_HUB_OFFLINE = True
        logging.disable(logging.CRITICAL)  # what goes wrong is raised as well
    try:
        yield
    except Exception as error:  # the libraries wrap what they met, each in its own way
        if not trouble or not _is_absence(error):
            raise
        raise UserError(
            f"{what}: not in the hub's cache on this machine, and {trouble}; {instead}; {REMEDY}"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = offline
        logging.disable(silenced)


def _trouble() -> str:
    """Why the hub is not to be asked; empty where it answers, whatever it answers."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:  # of whichever library makes the request
        return f"{constants.ENDPOINT} cannot be reached ({reason(error)})"
    return ""


def _is_absence(error: BaseException | None) -> bool:
    """Whether a file that is not in the cache is behind it."""
    while error is not None:
        if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
            return True
        error = error.__cause__ or error.__context__
    return False
