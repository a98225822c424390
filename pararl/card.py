"""Model cards: what a README.md says of an adapter or of a merged checkpoint, with the front matter that the Hub reads.

A card names its base as the user named it, and no other path of the machine.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pararl import __version__
from pararl.readers import parse_yaml
from pararl.releases import public_name

CARD, PICTURE = "README.md", "curves.png"
TOLD, DRAWN = "## Results\n", "## Training\n"
"""Where in a card begins what a run tells, and where its picture stands."""
ROOT = Path(__file__).resolve().parent.parent
ADAPTER = """\
A LoRA adapter of `{base}`, in PEFT's format.

```python
import peft
import policies  # of pararl

policy = policies.load("{base}")
peft.PeftModel.from_pretrained(policy.model, "{place}")
policy.sample("...")
```
"""
CHECKPOINT = """\
The weights of `{base}` with a LoRA adapter merged into them{layout}.

```python
import policies  # of pararl

policies.load("{place}").sample("...")  # the folder of this file
```
"""


@dataclass(frozen=True, slots=True)
class Told:
    """What a run tells of an adapter that it trained."""

    arm: str
    text: str
    """Results and recipe as Markdown; begins with TOLD."""
    commit: str = ""
    """Of the code that trained it; empty where nobody knows."""


def adapter_card(base: str, told: Told | None = None, place: str = "FOLDER", picture: bool = False) -> str:
    """The card of an adapter of the policy ``base``. ``place``: where a reader finds it. ``picture``: whether PICTURE stands beside it."""
    front = {"library_name": "peft", "tags": ["lora", "pararl"]}
    return _card(base, front, ADAPTER.format(base=base, place=place), told, picture)


def checkpoint_card(base: str, told: Told | None = None, place: str = "FOLDER", picture: bool = False, release: str | None = None) -> str:
    """The card of ``base`` with an adapter merged into it. ``release``: in whose layout it is; None = that of ``Policy.save``."""
    layout = f". The configuration and the names of weights are those of `{release}`" if release else ""
    front = {"base_model_relation": "finetune", "library_name": "pararl", "tags": ["pararl"]}
    return _card(base, front, CHECKPOINT.format(base=base, place=place, layout=layout), told, picture)


def told_in(card: str) -> Told | None:
    """What a run told in a card of its adapter; None for a card that no run has written."""
    matter, _, body = card.removeprefix("---\n").partition("\n---\n")
    _, found, text = body.partition(TOLD)
    try:
        made = parse_yaml(matter)["pararl"]
        return Told(made["arm"], (found + text).partition(DRAWN)[0].rstrip() + "\n", made.get("commit", "")) if found else None
    except (yaml.YAMLError, KeyError, TypeError):
        return None


def commit() -> str:
    """The commit of the code that runs, with ``+`` behind it where files differ from it; empty where it is no checkout of git."""
    if not (ROOT / ".git").exists():
        return ""
    try:
        found = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        differs = subprocess.run(["git", "-C", str(ROOT), "diff", "--quiet", "HEAD"], capture_output=True).returncode
    except (OSError, subprocess.CalledProcessError):  # no git, or a checkout of somebody else
        return ""
    return found + "+" * bool(differs)


def _card(base: str, front: dict[str, Any], use: str, told: Told | None, picture: bool) -> str:
    made = {"version": __version__} | ({"arm": told.arm} | ({"commit": told.commit} if told.commit else {}) if told else {})
    public = public_name(base)
    matter = ({"base_model": public[0]} if public else {}) | front | {"pipeline_tag": "any-to-any", "pararl": made}
    name = public[0] if public else Path(base).name
    title = f"{name} aligned by {told.arm}" if told else f"{name} with an adapter"
    parts = [
        f"---\n{yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)}---\n",
        f"# {title}\n",
        use,
        f"Made by pararl {__version__}{f', commit `{told.commit}`' if told and told.commit else ''}. The licence of the base holds.\n",
    ]
    parts += [told.text] if told else []
    parts += [f"{DRAWN}\n![Reward, accuracy and KL over the updates]({PICTURE})\n"] if picture else []
    return "\n".join(parts)
