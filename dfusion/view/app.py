"""The app's routes: JSON and pictures out, ratings and thresholds in."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from dfusion.errors import UserError
from dfusion.view import duels, human, pairs, runs, thresholds, trajectory
from dfusion.view.blind import Study
from dfusion.view.control import stop
from dfusion.view.folders import Data, NotThereError
from dfusion.view.guard import Guard
from dfusion.view.ratings import rater_name

T = TypeVar("T")
STATIC = Path(__file__).with_name("static")
FRESH = {"Cache-Control": "no-cache"}  # cached, but revalidated each time
NEVER = {"Cache-Control": "no-store"}


def make_app(
    root: Path, host: str = "127.0.0.1", results: Path | None = None, control: bool = False
) -> Starlette:
    """The app for the data folder `root`.

    host: the address it is bound to. results: folder with the judge's figures, <experiment>.json.
    control: runs may be stopped from the page.
    """
    data = Data(root)
    judged = results or Path("experiments/results/testbed/alignment")
    studies: dict[str, Study] = {}  # by the name in the URLs of images

    def study(sources: list[str]) -> Study:
        found = Study.of(data, sources)
        studies[found.name] = found
        return found

    def blind_image(data: Data, q: Query) -> Path:
        if q["study"] not in studies:
            raise NotThereError("no such study")
        return studies[q["study"]].image(q["rater"], q["trial"], q.number("place"))

    def answer(data: Data, b: Body) -> dict[str, Any]:
        chosen, rater = study(b.texts("sources")), rater_name(b.text("rater"))
        place = None if b.value.get("place") is None else b.number("place")
        chosen.answer(rater, b.text("trial"), place)
        return chosen.next(rater)

    gets: dict[str, Callable[[Data, Query], Any]] = {
        "runs": lambda data, q: runs.overview(data, judged, control),
        "run": lambda data, q: runs.details(data, q["exp"]),
        "curves": lambda data, q: runs.chosen_curves(data, judged, q.all("run"), q.all("key")),
        "catalogue": lambda data, q: pairs.catalogue(data),
        "round": lambda data, q: pairs.round_view(data, q["exp"], q["round"]),
        "pair": lambda data, q: thresholds.shares_of(data, q["exp"], q["round"], q.number("n")),
        "comparisons": _comparisons,
        "thresholds": lambda data, q: thresholds.item_view(data, q["exp"], q["round"], q["prompt"]),
        "masks": _masks,
        "human": lambda data, q: human.waiting(data),
        "human/task": lambda data, q: human.task(data, *q.job(), rater_name(q["rater"])),
        "two/task": lambda data, q: duels.task(data, *q.job(), rater_name(q["rater"])),
        "blind": lambda data, q: study(q.all("source")).next(
            rater_name(q["rater"]), q.get("again")
        ),
        "blind/results": lambda data, q: study(q.all("source")).results(),
    }
    posts: dict[str, Callable[[Data, Body], Any]] = {
        "thresholds": _save_thresholds,
        "human/rate": _rate,
        "human/hand-in": lambda data, b: {"scores": human.hand_in(data, *b.job())},
        "two/answer": _compare,
        "two/hand-in": lambda data, b: {"scores": duels.hand_in(data, *b.job())},
        "blind": answer,
    }
    if control:
        posts["stop"] = lambda data, b: stop(data, b.text("exp"))
    routes = [
        Route("/", lambda request: FileResponse(STATIC / "index.html", headers=FRESH)),
        Route("/image", _picture(data, _image)),
        Route("/strip", _picture(data, _strip)),
        Route("/sheet", _picture(data, _sheet, "image/png")),
        Route("/blind", _picture(data, blind_image)),
        *(Route(f"/api/{path}", _get(data, get), methods=["GET"]) for path, get in gets.items()),
        *(Route(f"/api/{path}", _post(data, act), methods=["POST"]) for path, act in posts.items()),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    errors = {UserError: _refuse, OSError: _disk}
    guard = Middleware(Guard, host=host)
    return Starlette(routes=routes, middleware=[guard], exception_handlers=errors)


class Query:
    """Parameters of a URL. Raises UserError for one that is missing or not a number."""

    def __init__(self, request: Request) -> None:
        self._params = request.query_params

    def __getitem__(self, name: str) -> str:
        value = self._params.get(name)
        if value is None:
            raise UserError(f"the URL lacks {name}=")
        return value

    def get(self, name: str) -> str | None:
        return self._params.get(name)

    def all(self, name: str) -> list[str]:
        return self._params.getlist(name)

    def job(self) -> tuple[str, str, str]:
        """Experiment, round and kind of image."""
        return self["exp"], self["round"], self["kind"]

    def number(self, name: str) -> int:
        value = self[name]
        if not value.isascii() or not value.isdigit() or len(value) > 9:
            raise UserError(f"{name}={value}: not a number")
        return int(value)


class Body:
    """The body of a request. Raises UserError for a field that is missing or of another type."""

    def __init__(self, value: object) -> None:
        if not isinstance(value, dict):
            raise UserError("the body is not a JSON object")
        self.value: dict[str, Any] = value

    def text(self, name: str) -> str:
        return self._of(name, str)

    def number(self, name: str) -> int:
        return self._of(name, int)

    def job(self) -> tuple[str, str, str]:
        """Experiment, round and kind of image."""
        return self.text("exp"), self.text("round"), self.text("kind")

    def texts(self, name: str) -> list[str]:
        values = self._of(name, list)
        if not all(isinstance(value, str) for value in values):
            raise UserError(f"{name}: a list of names is needed")
        return values

    def _of(self, name: str, kind: type[T]) -> T:
        value = self.value.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(f"the body lacks {name}, or it is of another type")
        return value

    def thresholds(self) -> list[float | None]:
        """One number from 0 to 1, or null, for each item."""
        values = self._of("thresholds", list)
        for value in values:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and 0 <= value <= 1):
                raise UserError(f"threshold {value}: give a number from 0 to 1, or null for auto")
        return values


Endpoint = Callable[[Request], Awaitable[Response]]


def _get(data: Data, answer: Callable[[Data, Query], Any]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        value = await run_in_threadpool(answer, data, Query(request))
        return JSONResponse(value, headers=NEVER)

    return endpoint


def _post(data: Data, act: Callable[[Data, Body], Any]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        try:
            body = Body(json.loads(await request.body()))
        except (ValueError, RecursionError) as error:
            raise UserError("the body is not valid JSON") from error
        return JSONResponse(await run_in_threadpool(act, data, body), headers=NEVER)

    return endpoint


def _picture(
    data: Data, find: Callable[[Data, Query], Path | bytes], kind: str = "image/jpeg"
) -> Endpoint:
    """A PNG file, or the bytes of a picture of this kind."""

    async def endpoint(request: Request) -> Response:
        found = await run_in_threadpool(find, data, Query(request))
        if isinstance(found, bytes):
            return Response(found, media_type=kind, headers=FRESH)
        response = FileResponse(found, headers=FRESH, stat_result=found.stat())
        if request.headers.get("if-none-match") == response.headers["etag"]:
            return Response(status_code=304, headers={"etag": response.headers["etag"], **FRESH})
        return response

    return endpoint


def _image(data: Data, q: Query) -> Path:
    return data.image(q["exp"], q["round"], q["kind"], q.number("i"))


def _strip(data: Data, q: Query) -> bytes:
    kind, index = q["kind"], q.number("i")
    data.image(q["exp"], q["round"], kind, index)  # raises for any other kind or place
    return trajectory.strip(data.round(q["exp"], q["round"]), kind, index)


def _sheet(data: Data, q: Query) -> bytes:
    return pairs.sheet(data, q["exp"], q["round"], q.number("n"))


def _comparisons(data: Data, q: Query) -> dict[str, Any]:
    chosen = [source.partition("|") for source in q.all("source")]
    return pairs.comparisons(data, [(name, which) for name, _, which in chosen])


def _masks(data: Data, q: Query) -> dict[str, Any]:
    try:
        values = [None if v == "auto" else float(v) for v in q.all("thr")]
    except ValueError as error:
        raise UserError(f"thr=: {error}; give numbers, or auto") from error
    t = None if q.get("t") in (None, "fused") else q.number("t")
    return thresholds.masks(data, q["exp"], q["round"], q["prompt"], values, t)


def _save_thresholds(data: Data, b: Body) -> dict[str, Any]:
    where = b.text("exp"), b.text("round"), b.text("prompt")
    return thresholds.save(data, *where, b.thresholds())


def _rate(data: Data, b: Body) -> dict[str, Any]:
    rater = rater_name(b.text("rater"))
    human.rate(data, *b.job(), b.number("index"), rater, b.value.get("score"))
    return {"noted": True}


def _compare(data: Data, b: Body) -> dict[str, Any]:
    rater = rater_name(b.text("rater"))
    duels.compare(data, *b.job(), rater, b.number("number"), b.number("choice"))
    return {"noted": True}


async def _refuse(request: Request, error: Exception) -> Response:
    status = 404 if isinstance(error, NotThereError) else 400
    return JSONResponse({"error": str(error)}, status_code=status, headers=NEVER)


async def _disk(request: Request, error: Exception) -> Response:
    """A full disk, or a file that was deleted meanwhile."""
    return JSONResponse({"error": str(error)}, status_code=500, headers=NEVER)
