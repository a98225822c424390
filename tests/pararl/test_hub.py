"""A folder put on the Hub is there whole; what goes wrong is one line that never holds the token."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pararl import hub
from pararl.config import ConfigError
from tests.pararl.local_hub import TOKEN, LocalHub, local_hub


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    """A Hub that this process takes for the one, with the right token."""
    with local_hub() as found:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", found.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "export"
    (found / "image_tokenizer").mkdir(parents=True)
    for name in ("README.md", "model.safetensors", "image_tokenizer/x.json"):
        (found / name).write_text(f"---\nlicense: mit\n---\n{name}")
    return found


def test_what_is_put_there_is_the_folder(there: LocalHub, folder: Path) -> None:
    hub.create("me/mine", private=True)
    assert hub.upload(folder, "me/mine") == f"{there.address}/me/mine"
    written = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(written) == 3 and there.files["me/mine"] == written
    assert there.visibility["me/mine"] == "private"


def test_a_repository_that_is_there_is_taken(there: LocalHub, folder: Path) -> None:
    for _ in range(2):
        hub.create("me/mine")
    hub.upload(folder, "me/mine")
    assert len(there.files["me/mine"]) == 3


@pytest.mark.parametrize("name", ["mine", "me/mine/too", "me/my model", "", "/mine", "me/", "me/.git", "me/a--b"])
def test_a_name_that_none_can_have_is_told_without_asking(name: str) -> None:
    with pytest.raises(ConfigError, match="the name of a repository is owner/name"):
        hub.create(name)


def test_without_a_token_the_hub_is_not_asked(there: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match=r"there is no token of the Hub here: run `hf auth login`, or set HF_TOKEN"):
        hub.create("me/mine")
    assert not there.files


def test_a_wrong_token_and_somebody_elses_name_are_told_and_the_token_is_not(there: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"may not write there \(403\)"):
        hub.create("you/yours")
    there.files["you/theirs"] = {}
    with pytest.raises(ConfigError, match=r"may not write there \(403\)"):
        hub.create("you/theirs")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ConfigError, match=r"does not take the token \(401\)") as told:
        hub.create("me/mine")
    assert "hf_wrong" not in str(told.value)


def test_a_hub_that_fails_is_told_with_its_answer(there: LocalHub, folder: Path) -> None:
    hub.create("me/mine")
    there.broken = True
    with pytest.raises(RuntimeError, match="--push me/mine: the Hub answers 413"):
        hub.upload(folder, "me/mine")


def test_no_network_and_offline_mode_are_told(there: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(RuntimeError, match=r"the Hub cannot be reached \(ConnectError"):
            hub.create("me/mine")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        hub.create("me/mine")
