"""What a run does when memory runs out: the same steps in less memory, one measure more each time."""

from app.contracts.base import Contract
from app.contracts.recipe import RecipeSpec

MOST_RUNGS = 4


class Relief(Contract):
    """How a run computes after some rungs. `words` say what was added last, for the run's diary."""

    micro_batch_size: int
    recomputes: bool = False
    head_share: int = 1
    four_bit: bool = False
    words: str = ""

    def applied(self, recipe: RecipeSpec) -> RecipeSpec:
        """The recipe with what it says of memory changed; rows a step and all that is learned stay."""
        lora = recipe.lora.model_copy(update={"four_bit": recipe.lora.four_bit or self.four_bit})
        return recipe.model_copy(update={"micro_batch_size": self.micro_batch_size, "lora": lora})


def ladder(recipe: RecipeSpec, *, has_cuda: bool) -> list[Relief]:
    """From the recipe as it is (first) to its last rung, at most four further.

    Half the rows at once, activations computed again on the way back, a smaller part of the vocabulary's scores at
    once, then the base in 4 bit (LoRA on a graphics card), else one row at a time.
    """
    # Rows of a step that are not packed together run one by one; the result is the same.
    now = Relief(micro_batch_size=recipe.micro_batch_size if recipe.packing else 1)
    found = [now]

    def add(words: str, **changes: object) -> None:
        found.append(found[-1].model_copy(update={**changes, "words": words}))

    half = _below(recipe.batch_size, now.micro_batch_size)
    if half < now.micro_batch_size:
        add(f"{half} {'row' if half == 1 else 'rows'} at a time", micro_batch_size=half)
    # Where frozen layers are kept there is little to gain, and a BatchNorm would count its rows twice.
    if recipe.method != "last_layers" and not (recipe.scratch and recipe.scratch.norm == "batch"):
        add("the layers computed again on the way back instead of kept", recomputes=True)
    add("a quarter of the vocabulary’s scores at once", head_share=4)
    may_round = recipe.method == "lora" and recipe.lora.initialisation == "default" and not recipe.lora.four_bit
    if has_cuda and may_round:
        add("the base held in 4 bit, which changes the loss a little", four_bit=True)
    elif half > 1:
        add("1 row at a time", micro_batch_size=1)
    return found[: MOST_RUNGS + 1]


def _below(batch_size: int, micro_batch_size: int) -> int:
    """The largest part of the rows a step that is no more than half of the rows at once."""
    return max((n for n in range(1, micro_batch_size // 2 + 1) if batch_size % n == 0), default=1)
