"""The toy family: a picture and its title, which stand in front of what was asked for, both denoised together."""

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pararl.types import Prompt, Task
from policies import Policy
from policies.canvas import Tail, tail
from policies.families.family import Family
from policies.families.mmada import code_layout, codes_of, read_magvitv2
from policies.heads.masked import MaskedHead
from policies.heads.tokens import TokenLogits
from policies.image.base import ImageTokenizer
from policies.layout import Layout
from policies.settings import Part, Settings
from policies.traits import Traits
from tests.policies.toy_family.backbone import Toy

LORA = r"block\.(mixed|out)"


class ToyLayout(Layout):
    def prefix(self, prompt: Prompt, shown: Sequence[int] = (), without: Part | None = None) -> list[int]:
        text = self.text.encode(prompt.text)
        self.check_length(prompt, text)
        return [self.settings.specials.bos, *([] if without == "text" else text)]

    def tail(self, task: Task) -> Tail:
        return tail(self.columns, self.settings.words(task), self.settings.specials)

    def blocks(self, ids: Tensor) -> Tensor | None:
        return None


def policy(model: Toy, tokenizer: PreTrainedTokenizerFast, images: ImageTokenizer, settings: Settings) -> Policy:
    layout = code_layout(ToyLayout, tokenizer, images, settings, (settings.specials.eos,))
    tokens = TokenLogits(model, layout.text.vocabulary)
    head = MaskedHead(tokens, settings)
    return Policy("toy", model, layout, tokens=tokens, text=head, image=head, lora_targets=LORA)


ROW = Family("toy", Toy, LORA, Settings, read_magvitv2, codes_of, policy)
TRAITS = Traits(text="masked", image="masked")
