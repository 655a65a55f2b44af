"""Builds the web app: maps each address to a page or an action, which the other modules of this package make."""

from collections.abc import Awaitable, Callable
from importlib import resources
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from pairmill.pipeline.explore.actions import Actions
from pairmill.pipeline.explore.explorer import Explorer
from pairmill.pipeline.explore.page import Page, PageError
from pairmill.pipeline.explore.pages import Pages
from pairmill.pipeline.explore.security import Guard, GuardedApp
from pairmill.schemas.errors import PairmillError

Answer = Callable[[Request], Awaitable[Response]]

_STATIC = {
    "base.css": ("pairmill.pipeline.pages", "templates/style.css", "text/css"),
    "icon.svg": ("pairmill.pipeline.explore", "static/icon.svg", "image/svg+xml"),
    "explore.css": ("pairmill.pipeline.explore", "static/explore.css", "text/css"),
    **{
        name: ("pairmill.pipeline.explore", f"static/{name}", "text/javascript")
        for name in ("filters.js", "tagging.js", "live.js", "page.js")
    },
}
"""Name -> package, path in it, type. No other files on disk are served."""


def app(explorer: Explorer, guard: Guard) -> GuardedApp:
    """The app behind its guard, for any ASGI server."""
    pages, actions = Pages(explorer, guard), Actions(explorer)
    shows: dict[str, Callable[[Request], Response]] = {
        "/": pages.gallery,
        "/pair/{uid}": pages.pair,
        "/rejects": pages.rejects,
        "/duplicates": pages.duplicates,
        "/compare": pages.compare,
        "/live": pages.live,
        "/search": pages.search,
        "/subset/{name}/select.yaml": pages.job_file,
        "/picture/{shard}/{row}": pages.picture,
        "/api/count": pages.count,
        "/api/live": pages.live_state,
        "/api/new-shards": pages.new_shards,
    }
    changes: dict[str, Callable[[dict[str, str]], dict[str, object] | str]] = {
        "/api/label": actions.label,
        "/api/exact": actions.exact,
        "/subset": actions.save_subset,
        "/reload": actions.reload,
    }
    routes = [Route(path, _shown(explorer, guard, make)) for path, make in shows.items()]
    routes += [Route(path, _changed(explorer, guard, change), methods=["POST"]) for path, change in changes.items()]
    routes.append(Route("/search", _searched(explorer, guard, pages), methods=["POST"]))
    routes.append(Route("/static/{name}", _static))
    errors = {404: _not_found(explorer, guard), 500: _broken(explorer, guard)}
    return GuardedApp(Starlette(routes=routes, exception_handlers=errors), guard)


def _shown(explorer: Explorer, guard: Guard, make: Callable[[Request], Response]) -> Answer:
    async def answer(request: Request) -> Response:
        try:
            return await run_in_threadpool(make, request)
        except PairmillError as error:
            return _problem(request, explorer, guard, error)

    return answer


def _changed(explorer: Explorer, guard: Guard, change: Callable[[dict[str, str]], dict[str, object] | str]) -> Answer:
    """A handler for one of our forms, which must carry the token. Answers with JSON or a redirect to the next page."""

    async def answer(request: Request) -> Response:
        body = (await request.body()).decode("utf-8", "replace")
        try:
            form = dict(parse_qsl(body, keep_blank_values=True, max_num_fields=100))
            if not guard.is_own_form(form.pop("token", "")):
                raise PageError("This page is from an earlier run of pairmill explore. Open it again.", 403)
            result = await run_in_threadpool(change, form)
        except (PairmillError, ValueError) as error:
            return _problem(request, explorer, guard, error)
        return RedirectResponse(result, 303) if isinstance(result, str) else JSONResponse(result)

    return answer


def _searched(explorer: Explorer, guard: Guard, pages: Pages) -> Answer:
    """A handler for a search by an uploaded picture."""

    async def answer(request: Request) -> Response:
        async with request.form(max_files=1, max_fields=10) as form:
            token, upload = form.get("token"), form.get("picture")
            picture = b"" if upload is None or isinstance(upload, str) else await upload.read()
        try:
            if not isinstance(token, str) or not guard.is_own_form(token):
                raise PageError("This page is from an earlier run of pairmill explore. Open it again.", 403)
            return await run_in_threadpool(pages.search_picture, request, picture)
        except PairmillError as error:
            return _problem(request, explorer, guard, error)

    return answer


def _problem(request: Request, explorer: Explorer, guard: Guard, error: Exception) -> Response:
    status = error.status if isinstance(error, PageError) else 400
    if request.url.path.startswith("/api/") or request.headers.get("accept", "").startswith("application/json"):
        return JSONResponse({"error": str(error)}, status)
    return Page(explorer, guard).error(str(error), status)


def _not_found(explorer: Explorer, guard: Guard) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer(request: Request, _: Exception) -> Response:
        return _problem(request, explorer, guard, PageError("There is no such page.", 404))

    return answer


def _broken(explorer: Explorer, guard: Guard) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer(request: Request, error: Exception) -> Response:
        wrong = f"This page failed ({type(error).__name__}); the terminal shows the traceback."
        return _problem(request, explorer, guard, PageError(wrong, 500))

    return answer


async def _static(request: Request) -> Response:
    if request.path_params["name"] not in _STATIC:
        return Response(status_code=404)
    package, path, kind = _STATIC[request.path_params["name"]]
    text = resources.files(package).joinpath(path).read_text("utf-8")
    return Response(text, media_type=kind, headers={"Cache-Control": "no-cache"})
