"""Loading a published scorer: from a local copy that an environment variable names, or the hub."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from dfusion.errors import UserError, reason
from dfusion.models.hub import asked_once

BATCH = 32  # images in one call of a scorer


@contextmanager
def published(variable: str, hub: str) -> Iterator[str]:
    """What to load in this block: the local copy that ${variable} names, or the id on the hub.

    Raises UserError for whatever goes wrong in the block.
    """
    local = os.environ.get(variable)
    found = local or hub
    instead = f"set {variable} to a local copy"
    try:
        with asked_once(f"the scorer '{found}'", instead, local=bool(local)):
            yield found
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the scorer '{found}' could not be loaded ({reason(error)}); {instead}"
        ) from error


def batches(count: int) -> list[slice]:
    """0 … count - 1 in parts of up to BATCH."""
    return [slice(start, start + BATCH) for start in range(0, count, BATCH)]
