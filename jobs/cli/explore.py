"""`pairmill explore`."""

from typing import TYPE_CHECKING, Annotated

import typer

from pairmill.jobs.cli.options import Output, S3Settings
from pairmill.jobs.cli.terminal import errors, open_store, progress, say

if TYPE_CHECKING:
    from pairmill.pipeline.explore.explorer import Explorer
    from pairmill.pipeline.explore.security import Guard


def explore(
    output: Output,
    port: Annotated[
        int, typer.Option("--port", metavar="N", help="Port to serve on; 0 picks a free one.", min=0, max=65535)
    ] = 7800,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Address to serve on; if not local, a token protects it.")
    ] = "127.0.0.1",
    labels: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Write labels to OUT/labels/NAME.parquet; by default, NAME is the time."),
    ] = None,
    settings: S3Settings = None,
) -> None:
    """Look at a dataset in a browser.

    Filter pairs with live counts and save them as a subset, look at rejects and duplicates, search by text or picture,
    and label pairs as good or bad. Nothing is sent to other machines.
    """
    with errors():
        from pairmill.jobs.explore import ExploreOptions
        from pairmill.jobs.explore import explore as run_explore
        from pairmill.pipeline.common.text import shown_path

        with progress("Saved subsets and labels are kept.") as listener:
            store = open_store(output, settings)

            def ready(guard: "Guard", explorer: "Explorer") -> None:
                listener.close()
                say(f"Open {guard.address}")
                if guard.access_token:
                    say("Anyone with this address can see the dataset, save subsets and label pairs.", err=True)
                say(f"Labels go to {shown_path(store.path(explorer.labels.path))}. Press Ctrl-C to stop.", err=True)

            run_explore(store, ExploreOptions(host, port, labels), ready, listener.step)
