"""Putting a folder on the Hub through ``huggingface_hub``, which is imported only then. Whatever goes wrong is one line.

Name, token and repository are asked for before anything is made that takes long; the token is never told.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pararl.config import ConfigError

REFUSED = {
    401: "the Hub does not take the token (401): run `hf auth login`, or set HF_TOKEN anew",
    403: "the token may not write there (403): name a repository of yours, or use a token that may",
}
"""What the user can mend of what the Hub answers."""


def check_name(name: str) -> None:
    """Raise ConfigError unless ``name`` can be that of a repository, owner/name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        right = name.count("/") == 1
    except HFValidationError:
        right = False
    if not right:
        raise ConfigError(f"--push {name!r}: the name of a repository is owner/name, of letters, digits, '-', '_' and '.'")


def create(name: str, private: bool = False) -> None:
    """Make the repository, or find that it is there. Raises ConfigError for a name or a token that the Hub cannot take, RuntimeError where
    it does not answer."""
    from huggingface_hub import HfApi, get_token

    check_name(name)
    if get_token() is None:
        raise ConfigError(f"--push {name}: there is no token of the Hub here: run `hf auth login`, or set HF_TOKEN")
    with _told(name):
        api = HfApi()
        api.create_repo(name, private=private or None, exist_ok=True)
        api.auth_check(name, write=True)  # one that is there may be somebody else's


def upload(folder: Path, name: str) -> str:
    """Put all files of a folder into the repository; returns its address. Raises as ``create`` does."""
    from huggingface_hub import HfApi

    with _told(name):
        api = HfApi()
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"Upload {folder.name}, made by pararl")
        return f"{api.endpoint}/{name}"


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Whatever the Hub's library raises, as one line that says what to do."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ConfigError(f"--push {name}: HF_HUB_OFFLINE is set: unset it to reach the Hub") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in REFUSED:
            raise ConfigError(f"--push {name}: {REFUSED[status]}") from error
        raise RuntimeError(f"--push {name}: the Hub answers {status}: {_first_line(error, get_token())}") from error
    except (HTTPError, OSError) as error:
        what = f"{type(error).__name__}: {_first_line(error, get_token())}"
        raise RuntimeError(f"--push {name}: the Hub cannot be reached ({what})") from error


def _first_line(error: Exception, token: str | None) -> str:
    text = " ".join(str(error).split())[:300]
    return text.replace(token, "***") if token else text
