"""Access control: the app's own pages may use it, web sites that guess its address may not."""

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 1_000_000  # of a request's body
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """Refuses foreign Host headers (DNS rebinding) and writes requested by other sites.

    host: the address the app is bound to. A wildcard ("0.0.0.0", "::") accepts any numeric address
    and this machine's name: a rebinding site has a name of its own.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self.app, self.host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        problem = self._problem(headers, scope["method"])
        if problem:
            response = JSONResponse({"error": problem[1]}, status_code=problem[0])
            await response(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def _problem(self, headers: Headers, method: str) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not self.answers_to(host):
            return 421, f"not for the host '{host}'; start with --host to serve others"
        if method in ("GET", "HEAD"):
            return None
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return 403, "requested by another site"
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "requested by another site"
        if headers.get("content-type", "").split(";")[0].strip() != "application/json":
            return 415, "send application/json"
        length = headers.get("content-length", "")
        if not length.isdigit() or int(length) > MOST_BYTES:
            return 413, "the body must have a length, and a small one"
        return None

    def answers_to(self, header: str) -> bool:
        """Whether a Host header is one of ours."""
        try:
            name = (urlsplit(f"//{header}").hostname or "").lower()
        except ValueError:
            return False
        if name in ("localhost", "127.0.0.1", "::1") or name == self.host.lower():
            return bool(name)
        if self.host not in ("0.0.0.0", "::"):
            return False
        return name == socket.gethostname().lower() or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
