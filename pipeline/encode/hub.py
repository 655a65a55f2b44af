"""Checks within 10 s whether the Hugging Face Hub can be reached and its cache is writable. The Hub's own client would
retry for a minute."""

import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pairmill.pipeline.common.deadline import within

_TIMEOUT_S = 4
"""Time limit for connecting, and again for the response."""
_DEADLINE_S = 8.0
"""Total time limit, including DNS."""
WITHOUT_NETWORK = "without a network, set `pretrained` to a local file, or the model's name to a local folder"


def is_on_disk(repo: str, file_names: Iterable[str]) -> bool:
    """Whether one of these files of a repository is in the Hub's local cache."""
    from huggingface_hub import try_to_load_from_cache

    try:
        return any(isinstance(try_to_load_from_cache(repo, name), str) for name in file_names)
    except ValueError:  # not a valid repository name
        return False


def cached_folder(repo: str, file_name: str) -> Path | None:
    """The folder of a repository's newest revision in the Hub's local cache, if it contains this file."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(repo, file_name)
    except ValueError:  # not a valid repository name
        return None
    return Path(found).parent if isinstance(found, str) else None


def download(repo: str, choose: Callable[[Iterable[str]], list[str]]) -> Path:
    """Download the files of a repository that `choose` selects, and return their folder in the Hub's local cache.

    Raises whatever the Hub's client raises.
    """
    from huggingface_hub import HfApi, snapshot_download

    files = HfApi().model_info(repo, timeout=_DEADLINE_S).siblings or ()
    return Path(snapshot_download(repo, allow_patterns=choose([file.rfilename for file in files])))


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return constants.is_offline_mode()


@contextmanager
def offline() -> Iterator[None]:
    """Use only files on disk in this block."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def download_problem() -> str | None:
    """Why downloads cannot work, and what to set. None if the Hub responds and its cache is writable."""
    return _cache_problem() or _hub_problem()


def _cache_problem() -> str | None:
    """Why the Hub's cache is not writable. None if it is writable."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"{folder} is not writable ({error.strerror}); set HF_HOME to a folder that is writable"


def _hub_problem() -> str | None:
    """Why the Hub cannot be reached. None if it responds at all."""
    from huggingface_hub import constants

    if is_offline():
        return f"HF_HUB_OFFLINE is set, and {constants.HF_HUB_CACHE} (HF_HOME) lacks the files; {WITHOUT_NETWORK}"
    question = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        within(_DEADLINE_S, lambda: urllib.request.urlopen(question, timeout=_TIMEOUT_S).close())
    except urllib.error.HTTPError as answer:
        reason = f"HTTP {answer.code}" if answer.code >= 500 else None
        answer.close()
    except OSError as error:  # includes URLError and TimeoutError
        reason = str(getattr(error, "reason", error) or type(error).__name__)
    else:
        return None
    return reason and f"{constants.ENDPOINT} cannot be reached ({reason}); {WITHOUT_NETWORK}"
