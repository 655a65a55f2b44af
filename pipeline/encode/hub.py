"""Whether Hugging Face's hub can be reached, and its cache written to: told within 10 s, where the hub's own client
tries again for a minute."""

import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from pairmill.pipeline.common.deadline import within

_TIMEOUT_S = 4
"""For connecting, and for the answer."""
_DEADLINE_S = 8.0
"""For all of it, with names that are looked up."""
WITHOUT_NETWORK = "without a network, give `pretrained` a local file, or a folder as the model's name"


def is_on_disk(repo: str, file_names: Iterable[str]) -> bool:
    """Whether one of these files of a repository is in the hub's local cache."""
    from huggingface_hub import try_to_load_from_cache

    try:
        return any(isinstance(try_to_load_from_cache(repo, name), str) for name in file_names)
    except ValueError:  # no name of a repository
        return False


def download_problem() -> str | None:
    """Why nothing can be downloaded, and what to set; None if the hub answers and its cache can be written to."""
    return _cache_problem() or _hub_problem()


def _cache_problem() -> str | None:
    """Why the hub's cache cannot take another file; None if it can."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"{folder} cannot be written ({error.strerror}); set HF_HOME to a folder that can"


def _hub_problem() -> str | None:
    """Why the hub cannot be asked; None if it answers, whatever it says."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return f"HF_HUB_OFFLINE is set and {constants.HF_HUB_CACHE} (HF_HOME) does not have them; {WITHOUT_NETWORK}"
    question = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        within(_DEADLINE_S, lambda: urllib.request.urlopen(question, timeout=_TIMEOUT_S).close())
    except urllib.error.HTTPError as answer:
        reason = f"HTTP {answer.code}" if answer.code >= 500 else None
        answer.close()
    except OSError as error:  # URLError and TimeoutError are
        reason = str(getattr(error, "reason", error) or type(error).__name__)
    else:
        return None
    return reason and f"{constants.ENDPOINT} cannot be reached ({reason}); {WITHOUT_NETWORK}"
