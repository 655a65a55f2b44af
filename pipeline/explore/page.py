"""Renders a template with what all pages have in common: the navigation, the notices, and the form token."""

from starlette.responses import HTMLResponse

from pairmill.pipeline.explore.explorer import Explorer, Shown
from pairmill.pipeline.explore.security import Guard
from pairmill.pipeline.pages.templates import environment
from pairmill.schemas.errors import PairmillError

NAVIGATION = (
    ("Gallery", "/"),
    ("Rejects", "/rejects"),
    ("Duplicates", "/duplicates"),
    ("Compare", "/compare"),
    ("Search", "/search"),
    ("Live", "/live"),
)


class PageError(PairmillError):
    """The page cannot be shown; the message says why."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Page:
    """Renders the pages of one explorer."""

    def __init__(self, explorer: Explorer, guard: Guard) -> None:
        self.explorer, self._guard = explorer, guard

    @property
    def shown(self) -> Shown:
        """The dataset. If no shard was finished before, tries to open it, and raises PageError if there is still no
        finished shard."""
        if self.explorer.shown is None:
            self.explorer.reload()
        if self.explorer.shown is None:
            raise PageError("No shard is finished yet. The Live page shows new shards as they arrive.", 404)
        return self.explorer.shown

    def render(self, template: str, active: str, title: str, status: int = 200, **values: object) -> HTMLResponse:
        """The page `explore/TEMPLATE.html.j2`."""
        shown = self.explorer.shown
        text = environment().get_template(f"explore/{template}.html.j2").render(
            title=f"{title} · {self.explorer.name}",
            heading=title,
            navigation=NAVIGATION,
            active=active,
            dataset=self.explorer.store.root,
            name=self.explorer.name,
            token=self._guard.form_token,
            sample=shown.view.sampled.notice if shown else None,
            is_ready=shown is not None,
            labels=self.explorer.labels,
            **values,
        )  # fmt: skip
        return HTMLResponse(text, status)

    def error(self, message: str, status: int) -> HTMLResponse:
        """The page that shows an error."""
        return self.render("error", "", "This page cannot be shown", status, message=message)
