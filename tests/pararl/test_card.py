"""A card says in the Hub's terms what an adapter is, and nothing of the machine that the user did not name."""

import getpass
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from pararl import card
from pararl.card import DRAWN, PICTURE, TOLD, Told, adapter_card, checkpoint_card, commit, told_in
from pararl.releases import public_name

RELEASE = "Gen-Verse/MMaDA-8B-MixCoT"


def matter(text: str) -> dict[str, object]:
    """The front matter as the Hub reads it."""
    found = re.match(r"---\n(.+?)\n---\n", text, re.DOTALL)
    assert found
    read: dict[str, object] = yaml.safe_load(found[1])
    return read


def test_the_front_matter_is_what_the_hub_reads() -> None:
    found = matter(adapter_card(RELEASE, Told("pararl", f"{TOLD}\n| a |\n", "0123abc")))
    assert (found["base_model"], found["library_name"], found["pipeline_tag"]) == (RELEASE, "peft", "any-to-any")
    assert found["tags"] == ["lora", "pararl"] and isinstance(found["pararl"], dict) and found["pararl"]["commit"] == "0123abc"
    merged = matter(checkpoint_card(RELEASE, release=RELEASE))
    assert (merged["base_model"], merged["base_model_relation"]) == (RELEASE, "finetune") and merged["library_name"] != "peft"


def test_the_hub_library_takes_the_card() -> None:
    from huggingface_hub import ModelCard

    for text in (adapter_card(RELEASE, picture=True), checkpoint_card("scenes-mmada")):
        assert ModelCard(text).data.to_dict()["pipeline_tag"] == "any-to-any"


@pytest.mark.parametrize(
    ("name", "public"),
    [
        (RELEASE, (RELEASE, None)),
        (f"{RELEASE}@0a1b", (RELEASE, "0a1b")),
        ("scenes-showo", ("scenes-showo", None)),
        ("my-model", None),
        ("/home/somebody/models/mine", None),
        ("somebody/else", None),
    ],
)
def test_a_base_is_named_as_others_have_it_and_a_folder_of_ones_own_is_no_name(name: str, public: tuple[str, str | None] | None) -> None:
    assert public_name(name) == public
    assert matter(adapter_card(name)).get("base_model") == (public and public[0])


def test_a_copy_of_a_release_is_the_release_and_one_with_weights_of_its_own_is_not(tmp_path: Path) -> None:
    copy = tmp_path / "MMaDA-8B-MixCoT"
    copy.mkdir()
    assert public_name(str(copy)) == (RELEASE, None)
    (copy / "policy.json").write_text('{"family": "mmada", "settings": {}}')
    assert public_name(str(copy)) is None


def test_a_card_holds_no_path_but_the_bases_as_the_user_gave_it() -> None:
    text = adapter_card("models/mine", Told("pararl", f"{TOLD}\n", commit()), "exported", picture=True)
    assert "models/mine" in text and str(Path.cwd()) not in text and str(Path.home()) not in text
    assert f"/{getpass.getuser()}/" not in text


def test_what_a_run_told_is_found_in_its_card_and_told_again() -> None:
    told = Told("best_of_n", f"{TOLD}\n| a | b |\n\n## Recipe\n\n```yaml\na: ---\n```\n", "0123abc+")
    first = adapter_card("scenes-mmada", told, picture=True)
    assert PICTURE in first.partition(DRAWN)[2]
    again = told_in(first)
    assert again and (again.arm, again.commit, again.text.strip()) == (told.arm, told.commit, told.text.strip())
    second = checkpoint_card("scenes-mmada", again, "exported", picture=True)
    assert second.count(DRAWN) == second.count(PICTURE) == second.count(TOLD) == 1 and "aligned by best_of_n" in second
    assert told_in(second) == told_in(first)


@pytest.mark.parametrize("text", ["", "# mine\n", "---\na: [\n---\n", "---\n- 1\n---\n## Results\n", adapter_card("scenes-mmada"), "---\n"])
def test_a_card_of_no_run_tells_nothing(text: str) -> None:
    assert told_in(text) is None


def test_the_commit_is_that_of_the_checkout_marked_where_files_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "ROOT", tmp_path)
    assert commit() == ""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    (tmp_path / "file").write_text("a")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert len(head) == 40 and commit() == head
    (tmp_path / "file").write_text("b")
    assert commit() == f"{head}+"
