"""Answers the requests for pages: one method for each address."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import pyarrow as pa
import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from pairmill.pipeline.common.numbers import fewest_digits
from pairmill.pipeline.dataset.subset import read_subset, subset_names
from pairmill.pipeline.encode.weights import ModelError
from pairmill.pipeline.explore import compare, duplicates
from pairmill.pipeline.explore.explorer import Explorer, Shown
from pairmill.pipeline.explore.gallery import Card, bars, cards, command, gallery
from pairmill.pipeline.explore.nearest import Near
from pairmill.pipeline.explore.page import Page, PageError
from pairmill.pipeline.explore.pictures import LARGE, SMALL
from pairmill.pipeline.explore.query import Query
from pairmill.pipeline.explore.rejects import RejectPages
from pairmill.pipeline.explore.security import Guard
from pairmill.pipeline.reader.embeddings import EmbeddingsError
from pairmill.pipeline.reader.thumbnails import RowRef
from pairmill.schemas.errors import PairmillError
from pairmill.schemas.subset import SUBSET_NAME

MAX_QUESTION_CHARS = 500
NEIGHBORS = 24
FOUND = 60
_PLACE = re.compile(r"([0-9]{1,12})/([0-9]{1,12})")
"""Shard and row in the address of a picture."""


class Pages(Page):
    """The pages of one explorer."""

    def __init__(self, explorer: Explorer, guard: Guard) -> None:
        super().__init__(explorer, guard)
        self._rejects = RejectPages(explorer.store)

    def gallery(self, request: Request) -> Response:
        """Answer `/`: the pairs that the filters select."""
        try:
            shown, query, wrong = self.shown, Query(), None
        except PageError:
            return self.render("empty", "/", "No pairs yet")
        try:
            query = Query.parse(request.query_params.multi_items())
            page = gallery(self.explorer, shown, query)
        except PairmillError as error:
            wrong = str(error)
            page = gallery(self.explorer, shown, query, wrong)
        status = 400 if wrong else 200
        return self.render(
            "gallery",
            "/",
            "Gallery",
            status,
            page=page,
            query=page.query,
            bars=bars,
            columns=shown.view.columns,
            is_saved=request.query_params.get("saved") == "1" and query.subset is not None,
        )

    def count(self, request: Request) -> Response:
        """Answer `/api/count`: the number of rows that the filters select, with the expression and the command."""
        view = self.shown.view
        query = Query.parse(request.query_params.multi_items())
        where = view.expression(query)
        values = {
            "count": view.count(query),
            "of": int(view.start(query.rows, query.subset).sum()),
            "expression": where,
        }
        return JSONResponse(
            {**values, "command": command(self.explorer, query, where), "is_sample": view.sampled.is_sample}
        )

    def picture(self, request: Request) -> Response:
        """Answer `/picture/SHARD/ROW`: a small copy of a picture in the dataset."""
        shown = self.explorer.shown
        place = _PLACE.fullmatch(f"{request.path_params['shard']}/{request.path_params['row']}")
        if place is None:
            raise PageError("There is no such row.", 404)
        shard, number = int(place[1]), int(place[2])
        side = LARGE if request.query_params.get("size") == "large" else SMALL
        position = shown.view.lookup.position(shard) if shown else None
        if shown is None or position is None:
            thumbnail = self.explorer.live.picture(shard, number)
        elif number >= shown.view.snapshot.chunk.shards[position].num_rows:
            raise PageError("There is no such row.", 404)
        else:
            thumbnail = shown.pictures.get(RowRef(position, number), side)
        if thumbnail is None or thumbnail.jpeg is None:
            return PlainTextResponse(thumbnail.problem if thumbnail else "no such shard", 404)
        is_this_state = shown is not None and request.query_params.get("v") == shown.version
        keep = "private, max-age=86400, immutable" if is_this_state else "no-store"
        return Response(thumbnail.jpeg, media_type="image/jpeg", headers={"Cache-Control": keep})

    def pair(self, request: Request) -> Response:
        """Answer `/pair/UID`: one pair with all its columns, and the pairs with the most similar pictures."""
        shown = self.shown
        index = shown.view.lookup.find(request.path_params["uid"])
        if index is None:
            raise PageError("No pair shown here has this uid.", 404)
        ref = shown.view.lookup.ref(index)
        row = shown.view.lookup.whole_row(ref)
        shown.pictures.prefetch([ref], LARGE)
        alias = shown.searcher.alias(request.query_params.get("model", ""))
        near, note = list[Card](), None if alias else "No model has embedded these pictures."
        if alias is not None:
            near, note = self._similar(shown, lambda: shown.searcher.like_row(alias, index, NEIGHBORS))
        problem, schema = shown.pictures.get(ref, LARGE).problem, shown.view.snapshot.schema
        large = f"/picture/{row.shard}/{ref.row}?v={shown.version}&size=large"
        return self.render(
            "pair",
            "/",
            "Pair",
            row=row,
            shown_value=lambda name, value: shown_value(value, schema.field(name).type),
            picture=large,
            near=near,
            note=note,
            problem=problem,
            alias=alias,
            aliases=shown.view.aliases,
            label=self.explorer.labels.get(row["uid"]),
        )

    def rejects(self, request: Request) -> Response:
        """Answer `/rejects`: the refused rows, and why they were refused."""
        page = self._rejects.page(request.query_params.get("status", ""), request.query_params.get("from", ""))
        return self.render("rejects", "/rejects", "Rejects", page=page)

    def duplicates(self, request: Request) -> Response:
        """Answer `/duplicates`: the largest groups of duplicates."""
        page = duplicates.duplicates(self.explorer, self.shown, request.query_params.get("by", "sha256"),
                                     request.query_params.get("page", "1"))  # fmt: skip
        return self.render("duplicates", "/duplicates", "Duplicates", page=page)

    def compare(self, request: Request) -> Response:
        """Answer `/compare`: two subsets side by side."""
        names = subset_names(self.explorer.store)
        one, other = request.query_params.get("a", ""), request.query_params.get("b", "")
        for name in (one, other):
            if name and name not in names:
                raise PageError(f"There is no subset {name[:100]!r}.", 404)
        page = compare.compare(self.explorer, self.shown, one, other) if one and other else None
        return self.render("compare", "/compare", "Compare", page=page, names=names, one=one, other=other)

    def search(self, request: Request) -> Response:
        """Answer `/search?q=TEXT`: the pictures most similar to a phrase."""
        text = request.query_params.get("q", "").strip()[:MAX_QUESTION_CHARS]
        return self._found(request.query_params.get("model", ""), text, None)

    def search_picture(self, request: Request, picture: bytes) -> Response:
        """Answer a search by picture: the pictures most similar to an uploaded one."""
        if not picture:
            raise PageError("Choose a picture first.")
        return self._found(request.query_params.get("model", ""), "", picture)

    def _found(self, model: str, text: str, picture: bytes | None) -> Response:
        shown = self.shown
        searcher = shown.searcher
        alias = searcher.alias(model) if shown.view.num_rows else None
        found = list[Card]()
        note = None
        if alias is not None and picture is not None:
            found, note = self._similar(shown, lambda: searcher.like_picture(alias, picture, FOUND))
        elif alias is not None and text:
            found, note = self._similar(shown, lambda: searcher.like_text(alias, text, FOUND))
        return self.render(
            "search",
            "/search",
            "Search",
            400 if note else 200,
            num_pairs=shown.view.num_rows,
            found=found,
            text=text,
            note=note,
            alias=alias,
            aliases=shown.view.aliases,
            has_picture=picture is not None,
        )

    def _similar(self, shown: Shown, search: Callable[[], Sequence[Near]]) -> tuple[list[Card], str | None]:
        """(the cards of the pairs that a search finds, a note that says why it failed or None)."""
        try:
            near = search()
        except (EmbeddingsError, ModelError) as error:
            return [], str(error)
        found = cards(self.explorer, shown, [each.row for each in near])
        return [replace(card, value=f"{each.similarity:.3f}") for card, each in zip(found, near, strict=True)], None

    def live(self, request: Request) -> Response:
        """Answer `/live`: the progress of a running build."""
        return self.render("live", "/live", "Live", state=self.explorer.live.now(self.explorer.generations))

    def live_state(self, request: Request) -> Response:
        """Answer `/api/live`: the progress of a running build, as JSON."""
        return JSONResponse(self.explorer.live.now(self.explorer.generations).as_dict())

    def new_shards(self, request: Request) -> Response:
        """Answer `/api/new-shards`: the number of shards that the pages do not show yet."""
        return JSONResponse({"shards": self.explorer.lately_new_shards})

    def job_file(self, request: Request) -> Response:
        """Answer `/subset/NAME/select.yaml`: the job file that selects a subset again."""
        name = request.path_params["name"]
        if not re.fullmatch(SUBSET_NAME, name) or name not in subset_names(self.explorer.store):
            raise PageError("There is no such subset.", 404)
        subset = read_subset(self.explorer.store, name)
        text = job_yaml(self.explorer, name, subset.rows, [step.model_dump(exclude_none=True) for step in subset.steps])
        headers = {"Content-Disposition": f'attachment; filename="{name}.yaml"'}
        return PlainTextResponse(text, headers=headers)


def shown_value(value: object, kind: pa.DataType) -> str:
    """A value of a column of this type as text."""
    return fewest_digits(value, kind) if isinstance(value, float) else str(value)


def job_yaml(explorer: Explorer, name: str, rows: str, steps: list[dict[str, object]]) -> str:
    """A job file for `pairmill select --job`."""
    partial = {"partial": True} if explorer.is_unfinished else {}
    job = {"dataset": explorer.store.root, "name": name, "rows": rows, **partial, "steps": steps}
    return yaml.safe_dump(job, sort_keys=False, allow_unicode=False, width=100)
