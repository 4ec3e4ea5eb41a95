"""A new GPT in words and as a drawing: its sizes to choose from, how much text suits it, what it is made of."""

from dataclasses import dataclass

from app.contracts.recipe import ScratchSpec
from app.recipes.base_facts import BaseFacts, from_scratch
from app.recipes.presets import SHAPES

# Hoffmann et al. 2022 ("Chinchilla"): about so many tokens for each parameter use a size well.
TOKENS_A_PARAMETER = 20
# Muennighoff et al. 2023: so many passes over the same text bring nearly as much as new text.
USEFUL_PASSES = 4
_NAMES = {"tiny": "Tiny", "small": "Small", "medium": "Medium", "large": "Large", "huge": "Huge"}
_MOST_BLOCKS = 16


@dataclass(frozen=True)
class Size:
    """A shape of the slider: its name and how many parameters it has with this recipe's vocabulary."""

    name: str
    parameters: int
    is_current: bool

    @property
    def words(self) -> str:
        """As the slider says it."""
        return f"{self.name}, {millions(self.parameters)} parameters"


@dataclass(frozen=True)
class Block:
    """A box of the drawing, in a 640 × 170 frame."""

    x: float
    y: float
    width: float
    height: float
    label: str = ""
    note: str = ""


def sizes(spec: ScratchSpec, facts: BaseFacts) -> list[Size]:
    """The slider's places, from small to large."""
    found = []
    for name, (layers, heads, width, context) in SHAPES.items():
        changes = {"layers": layers, "heads": heads, "width": width, "context_length": context, "kv_heads": None}
        other = from_scratch(spec.model_copy(update=changes), facts.vocabulary)
        is_current = (spec.layers, spec.heads, spec.width, spec.context_length) == (layers, heads, width, context)
        found.append(Size(_NAMES[name], other.parameters, is_current))
    return found


def nearest(sizes_: list[Size], parameters: int) -> int:
    """The slider's place for a model of this many parameters."""
    return min(range(len(sizes_)), key=lambda i: (not sizes_[i].is_current, abs(sizes_[i].parameters - parameters)))


def shape_values(place: int) -> dict[str, int]:
    """The recipe's values of a place of the slider, by field name. Raises IndexError outside of it."""
    layers, heads, width, context = list(SHAPES.values())[place]
    return {
        "scratch.layers": layers,
        "scratch.heads": heads,
        "scratch.width": width,
        "scratch.context_length": context,
    }


def advice(parameters: int, text_tokens: int, read_tokens: int, *, is_smallest: bool = False) -> list[str]:
    """Whether text and size suit each other. `text_tokens` of one pass, `read_tokens` of the whole run."""
    each = read_tokens / max(1, parameters)
    passes = read_tokens / max(1, text_tokens)
    found = [
        f"It reads {millions(read_tokens)} tokens in {passes:.1f} passes: {each:.2g} for each of its "
        f"{millions(parameters)} parameters. About {TOKENS_A_PARAMETER} use a size well."
    ]
    if passes > USEFUL_PASSES * 1.5:
        found.append(f"After about {USEFUL_PASSES} passes the same text teaches little that is new: bring more text.")
    useful = USEFUL_PASSES * text_tokens
    if useful < TOKENS_A_PARAMETER * parameters / 10:
        wanted = millions(TOKENS_A_PARAMETER * parameters / USEFUL_PASSES)
        helps = "About" if is_smallest else "A smaller size, or about"
        found.append(
            f"Your text is short for this size: it will soon know it by heart. {helps} {wanted} tokens of text "
            f"({millions(text_tokens)} now) would suit better."
        )
    elif each > 3 * TOKENS_A_PARAMETER:
        found.append("There is text enough for a larger size, which would learn more from it.")
    return found


def drawing(spec: ScratchSpec, facts: BaseFacts) -> list[Block]:
    """The way of a token: embedding, the layers one after the other, the vocabulary at the end."""
    shown = min(spec.layers, _MOST_BLOCKS)
    step = 360 / shown
    thick = min(30.0, step * 0.75)
    left = 140 + (step - thick) / 2
    kv = f", {facts.kv_heads} for keys and values" if facts.kv_heads != facts.heads else ""
    found = [Block(8, 45, 110, 70, "Embedding", f"{facts.vocabulary:,} × {facts.width:,}")]
    found += [Block(round(left + i * step, 1), 30, round(thick, 1), 100) for i in range(shown)]
    layers = f"{spec.layers} layers: {facts.heads} heads{kv}, then {facts.width:,} → {facts.inner:,} → {facts.width:,}"
    found.append(Block(140, 30, 360, 100, "", layers))
    found.append(Block(522, 45, 110, 70, "Next token", f"{facts.width:,} × {facts.vocabulary:,}"))
    return found


def millions(count: float) -> str:
    """8,200 · 0.8 million · 12 million · 1.2 billion."""
    if count < 1e5:
        return f"{count:,.0f}"
    if count >= 1e9:
        return f"{count / 1e9:.1f} billion"
    return f"{count / 1e6:.1f} million" if count < 1e7 else f"{count / 1e6:,.0f} million"
