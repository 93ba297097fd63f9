"""dfusion view data/ [--host 127.0.0.1] [--port 8765] [--open] [--control]"""

import argparse
import socket
import sys
import threading
import webbrowser
from pathlib import Path

from dfusion.errors import UserError

HOST, PORT = "127.0.0.1", 8765
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(given: list[str] | None = None) -> int:
    """Serve until interrupted; 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="dfusion view",
        description="Runs, pairs, comparisons, thresholds and ratings in the browser.",
    )
    parser.add_argument("data", type=Path, help="the folder with the experiments, e.g. data/")
    parser.add_argument("--host", default=HOST, help="address to serve on; 0.0.0.0: to everybody")
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument("--control", action="store_true", help="runs can be stopped from the page")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("experiments/results/testbed/alignment"),
        help="folder of the judge's figures, <experiment>.json",
    )
    args = parser.parse_args(given)
    try:
        serve(args.data, args.host, args.port, args.results, args.open, args.control)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def serve(data: Path, host: str, port: int, results: Path, show: bool, control: bool) -> None:
    """Serve until Ctrl-C. Raises UserError for a missing folder or package, or a taken port."""
    if control and host not in LOOPBACK:
        raise UserError(
            f"--control --host {host}: everyone who reaches the address could stop runs; "
            "leave out one of the two"
        )
    if not data.is_dir():
        raise UserError(f"{data}: no such folder; name the one with your experiments, e.g. data/")
    try:
        import uvicorn

        from dfusion.view.app import make_app
    except ImportError as error:
        if error.name not in ("uvicorn", "starlette"):
            raise
        raise UserError(
            f"the package {error.name} is missing; pip install starlette uvicorn"
        ) from error
    listener = _bind(host, port)
    port = listener.getsockname()[1]
    address = f"http://{_in_url(host)}:{port}/"
    print(f"Showing {data} at {address}; Ctrl-C stops.", flush=True)
    if host not in LOOPBACK:
        print("Everyone who can reach this address can see the runs and rate images.", flush=True)
    if show:
        threading.Timer(1.0, webbrowser.open, [address]).start()
    config = uvicorn.Config(
        make_app(data, host, results, control), log_level="warning", lifespan="off"
    )
    uvicorn.Server(config).run(sockets=[listener])


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(f"--host {host} --port {port}: {error}; choose another --port") from error
    return listener


def _in_url(host: str) -> str:
    return {"0.0.0.0": socket.gethostname()}.get(host, f"[{host}]" if ":" in host else host)
