"""Stopping a run from the page, as Ctrl-C would; only with `dfusion view --control`."""

import os
import signal
import socket
from typing import Any

from dfusion.errors import UserError
from dfusion.storage.lock import run_lock
from dfusion.view.folders import Data
from dfusion.view.runs import owner_of


def stop(data: Data, name: str) -> dict[str, Any]:
    """Ask the process that holds an experiment's lock to stop. Raises UserError if none does.

    What is finished is on disk; the batch at work is made again when the run continues. A note
    alone stops nothing: its lock has to be held, which no copied folder can claim.
    """
    experiment = data.experiment(name)
    owner = owner_of(data, experiment)
    if owner is None or owner[0] <= 1 or not run_lock(experiment.folder).taken():
        raise UserError(f"{name}: no run is at work on it")
    process, host = owner
    if host != socket.gethostname():
        raise UserError(f"{name}: its run is on {host}; stop it there")
    os.kill(process, signal.SIGTERM)  # a shell's background jobs ignore SIGINT
    return {"asked": process}
