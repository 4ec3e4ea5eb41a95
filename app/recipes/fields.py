"""Every parameter of a recipe as a form field: label, unit, bounds, help, and for which methods it matters."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from app.contracts.recipe import LoraSpec, Method, RecipeSpec, ScratchSpec
from app.core.numbers import TwoMeanings, decimal, plain, whole

Kind = Literal["number", "integer", "choice", "flag", "lines", "words"]
ALL: tuple[Method, ...] = ("lora", "last_layers", "full", "scratch")
TUNING: tuple[Method, ...] = ("lora", "last_layers", "full")


@dataclass(frozen=True)
class Field:
    """One input of the expert drawer. `name` is the path in the recipe: "epochs", "lora.rank"."""

    name: str
    label: str
    group: str
    kind: Kind
    help: str
    unit: str = ""
    methods: tuple[Method, ...] = ALL
    options: tuple[tuple[str, str], ...] = ()
    is_optional: bool = False
    needs_cuda: bool = False
    needs_cpu: bool = False

    @property
    def bounds(self) -> dict[str, float | bool]:
        """Lowest and highest value of the contract: keys low, high, and whether each is itself allowed."""
        owner, leaf = _owner(self.name)
        found: dict[str, float | bool] = {}
        for rule in owner.model_fields[leaf].metadata:
            for key, side, inclusive in (("ge", "low", True), ("gt", "low", False), ("le", "high", True)):
                if getattr(rule, key, None) is not None:
                    found[side], found[f"{side}_inclusive"] = getattr(rule, key), inclusive
            if getattr(rule, "lt", None) is not None:
                found["high"], found["high_inclusive"] = rule.lt, False
        return found

    def is_for(self, method: Method) -> bool:
        """Whether this method reads the value."""
        return method in self.methods


def _owner(name: str) -> tuple[type[RecipeSpec] | type[LoraSpec] | type[ScratchSpec], str]:
    part, _, leaf = name.rpartition(".")
    owners: dict[str, type[Any]] = {"": RecipeSpec, "lora": LoraSpec, "scratch": ScratchSpec}
    return owners[part], leaf


_SCHEDULES = (
    ("cosine", "Cosine: falls slowly, then faster, then slowly"),
    ("linear", "Linear: falls evenly"),
    ("wsd", "Warm up, stay, decay: can be prolonged"),
    ("constant", "Constant: stays"),
)

FIELDS: tuple[Field, ...] = (
    Field("scratch.architecture", "Architecture", "New model", "choice",
          "Llama is the present form, GPT-2 the classic.",
          methods=("scratch",), options=(("llama", "Llama"), ("gpt2", "GPT-2"))),
    Field("scratch.layers", "Layers", "New model", "integer", "How many blocks lie on top of each other.",
          methods=("scratch",)),
    Field("scratch.width", "Width", "New model", "integer", "Numbers per token inside the model; a multiple of heads.",
          methods=("scratch",)),
    Field("scratch.heads", "Attention heads", "New model", "integer", "How many places it can look at at once.",
          methods=("scratch",)),
    Field("scratch.kv_heads", "Key and value heads", "New model", "integer",
          "Fewer save memory when answering; empty means as many as heads.", methods=("scratch",), is_optional=True),
    Field("scratch.context_length", "Memory of the model", "New model", "integer",
          "How much text it can have in view, now and later.", "tokens", methods=("scratch",)),
    Field("scratch.tokenizer", "Tokenizer", "New model", "choice",
          "Word pieces are learned from your text; single characters suit very little text.",
          methods=("scratch",), options=(("bpe", "Word pieces (BPE)"), ("characters", "Characters"))),
    Field("scratch.vocabulary_size", "Vocabulary", "New model", "integer",
          "How many word pieces; characters are counted from your text.", "pieces", methods=("scratch",)),
    Field("scratch.positions", "Positions", "New model", "choice",
          "How it knows the order of words. With another form than the architecture's own, here or in the norm, only "
          "GPT Builder loads the model.",
          methods=("scratch",),
          options=(("own", "The architecture's own"), ("rope", "Rotary (RoPE)"), ("learned", "Learned"),
                   ("sinusoidal", "Sinusoidal, as in 2017"))),
    Field("scratch.norm", "Norm", "New model", "choice",
          "What keeps numbers in bounds; Llama's own is RMSNorm, GPT-2's LayerNorm. BatchNorm is for teaching only: "
          "while training, words see later words and other rows, so the loss looks better than the answers are.",
          methods=("scratch",),
          options=(("own", "The architecture's own"), ("rms", "RMSNorm"), ("layer", "LayerNorm"),
                   ("batch", "BatchNorm, for teaching"))),
    Field("scratch.dropout", "Dropout in the model", "New model", "number",
          "Switches off a share of the model at random, against memorising.", methods=("scratch",)),
    Field("epochs", "Passes over your rows", "Length", "number", "How often each training row is read.", "epochs"),
    Field("max_steps", "At most so many steps", "Length", "integer",
          "Ends earlier than the passes would; empty: no limit.",
          "steps", is_optional=True),
    Field("max_hours", "At most so many hours of this machine", "Time", "number",
          "As many steps as fit are planned. When the time is up it ends with its best checkpoint; pauses do not "
          "count. Empty: no limit.",
          "hours", is_optional=True),
    Field("early_stopping", "Stop when it no longer improves", "Length", "flag",
          "Ends the run when validation loss has not improved for a while. The best checkpoint is kept either way."),
    Field("patience_evaluations", "Patience", "Length", "integer", "So many looks without improvement end the run.",
          "looks"),
    Field("learning_rate", "Learning rate", "Learning", "number", "How large each correction is."),
    Field("schedule", "Schedule", "Learning", "choice", "How the learning rate changes over the run.",
          options=_SCHEDULES),
    Field("warmup_steps", "Warm-up", "Learning", "integer", "Steps in which the learning rate rises.", "steps"),
    Field("final_learning_rate_ratio", "Learning rate at the end", "Learning", "number",
          "As a share of the full one.", "share"),
    Field("decay_share", "Share of the steps that decays", "Learning", "number", "Only for warm up, stay, decay.",
          "share"),
    Field("optimizer", "Optimiser", "Learning", "choice", "How corrections are computed from gradients.",
          options=(("adamw", "AdamW"), ("muon", "Muon, with AdamW for embeddings"),
                   ("adafactor", "Adafactor: needs less memory, learns a little slower"),
                   ("adamw_8bit", "AdamW in 8 bit: a quarter of its memory; only with an NVIDIA graphics card"))),
    Field("adamw_learning_rate", "Learning rate of embeddings", "Learning", "number",
          "With Muon: AdamW's rate; empty: the same.", is_optional=True),
    Field("weight_decay", "Weight decay", "Learning", "number", "Pulls weights towards zero a little at each step."),
    Field("clip_norm", "Gradient limit", "Learning", "number", "Larger gradients are scaled down to this norm."),
    Field("batch_size", "Rows a step", "Batches", "integer", "Rows read before one correction.", "rows"),
    Field("micro_batch_size", "Rows at once", "Batches", "integer",
          "Rows in memory at the same time; must divide the rows a step. The result is the same, only memory changes.",
          "rows"),
    Field("max_length_tokens", "Longest row", "Batches", "integer",
          "Longer conversations lose their first turns; longer texts are cut into windows.", "tokens"),
    Field("packing", "Read several rows in one go", "Batches", "flag", "Faster. Rows never see each other."),
    Field("lora.rank", "Rank", "LoRA", "integer", "Size of the extra matrices: more can learn more.",
          methods=("lora",)),
    Field("lora.alpha", "Alpha", "LoRA", "number", "Strength of the extra matrices, relative to the rank.",
          methods=("lora",)),
    Field("lora.dropout", "Dropout", "LoRA", "number", "Against memorising, in the extra matrices.", methods=("lora",)),
    Field("lora.initialisation", "Start", "LoRA", "choice", "PiSSA starts from the model's main directions.",
          methods=("lora",), options=(("default", "Zero"), ("pissa", "PiSSA"))),
    Field("lora.b_rate_ratio", "Speed of the second matrix", "LoRA", "number",
          "LoRA+: its learning rate over that of the first.", "times", methods=("lora",)),
    Field("lora.rank_stabilised", "Keep strength equal over ranks", "LoRA", "flag", "rsLoRA: for high ranks.",
          methods=("lora",)),
    Field("lora.dora", "Learn strength and direction apart", "LoRA", "flag",
          "DoRA: often a little better at small ranks; each step takes longer.", methods=("lora",)),
    Field("lora.four_bit", "Hold the base in 4 bit", "LoRA", "flag",
          "QLoRA: a quarter of the memory for the base, slightly slower. Only with an NVIDIA graphics card.",
          methods=("lora",), needs_cuda=True),
    Field("lora.target_modules", "Only these layers", "LoRA", "words",
          "Names of linear layers, separated by commas; empty means every one but the head.",
          methods=("lora",), is_optional=True),
    Field("last_layers", "Layers that learn", "Last layers", "integer", "Counted from the end.", "layers",
          methods=("last_layers",)),
    Field("train_head", "The vocabulary layer learns too", "Last layers", "flag", "Rarely needed; costs memory.",
          methods=("last_layers",)),
    Field("label_smoothing", "Label smoothing", "Against memorising", "number",
          "Keeps a little doubt in every prediction."),
    Field("neftune_alpha", "Noise on the input", "Against memorising", "number",
          "NEFTune: can help with few conversations. 5 is usual, 0 is off.", methods=TUNING),
    Field("use_instruction", "Begin each conversation with the objective", "What it learns", "flag",
          "The same words are then said to the model in chat and API. Needs a model that follows instructions."),
    Field("learn_from", "Learn from", "What it learns", "choice",
          "The answers of your rows; or, where rows have a preferred and a rejected answer, the difference (DPO). "
          "Best after the answers were learned.",
          methods=TUNING, options=(("answers", "The answers"), ("preferences", "Preferred against rejected (DPO)"))),
    Field("preference_strength", "Hold on to the base", "What it learns", "number",
          "DPO's beta: how dearly moving away from the base is paid. 0.1 is usual; more stays closer. "
          "Read only with preferences.", methods=TUNING),
    Field("learn_prompts", "Learn the questions too", "What it learns", "flag",
          "Usually only the answers are learned."),
    Field("chats_last_share", "Conversations only at the end", "What it learns", "number",
          "This last share of each pass reads only conversations; for mixtures of text and conversations.", "share"),
    Field("evaluate_every_steps", "Look at unseen rows every", "Looks and saves", "integer",
          "Each look measures validation loss and writes the sample answers.", "steps"),
    Field("validation_rows", "Rows a look", "Looks and saves", "integer",
          "The whole validation set is used at the end.", "rows"),
    Field("checkpoint_every_s", "Save at least every", "Looks and saves", "number",
          "A crash costs at most this much.", "seconds"),
    Field("checkpoint_every_steps", "And every", "Looks and saves", "integer", "Empty: by time only.", "steps",
          is_optional=True),
    Field("keep_checkpoints", "Checkpoints to keep", "Looks and saves", "integer", "Besides the best one."),
    Field("sample_prompts", "Sample questions", "Looks and saves", "lines",
          "One a line, at most eight; answered at each look. Empty: three validation rows.", is_optional=True),
    Field("sample_max_tokens", "Longest sample answer", "Looks and saves", "integer", "Longer ones are cut.", "tokens"),
    Field("precision", "Precision", "Machine", "choice", "bf16 is faster where the processor has it.",
          options=(("auto", "Chosen by the machine"), ("fp32", "fp32"), ("bf16", "bf16"))),
    Field("threads", "Processor threads", "Machine", "integer", "Empty: chosen by the machine.", is_optional=True),
    Field("seed", "Seed", "Machine", "integer", "The same seed gives the same run on the same machine."),
    Field("devices", "Graphics cards", "Devices", "words",
          "Each reads its share of every step's rows. None ticked: one, whichever is free.", needs_cuda=True),
    Field("processes", "Processes that train together", "Devices", "integer",
          "Each reads its share of every step's rows, and they share the cores. The result is that of one.",
          needs_cpu=True),
    Field("shards", "Split the model between them", "Devices", "flag",
          "Each holds a part of the weights and of the optimiser's memory, for models that do not fit otherwise; "
          "slower. With AdamW.", methods=("full", "scratch")),
)  # fmt: skip

ONLY_CUDA = frozenset({"adamw_8bit"})
BY_NAME = {field.name: field for field in FIELDS}


def groups(method: Method, device: str = "cpu") -> dict[str, list[Field]]:
    """The fields that this method reads on this kind of device, by group, in order."""
    found: dict[str, list[Field]] = {}
    for field in FIELDS:
        if field.is_for(method) and not (field.needs_cpu if device == "cuda" else field.needs_cuda):
            found.setdefault(field.group, []).append(replace(field, options=offered(field, device)))
    return found


def offered(field: Field, device: str = "cpu") -> tuple[tuple[str, str], ...]:
    """The options that work on this kind of device."""
    return tuple(one for one in field.options if device == "cuda" or one[0] not in ONLY_CUDA)


def parse(field: Field, text: str) -> Any:
    """A typed value from what was written in the form. Raises ValueError with a sentence."""
    text = text.strip()
    if field.kind == "flag":
        return text in ("on", "true", "1", "yes")
    if not text and field.is_optional:
        return [] if field.kind == "lines" else None
    if field.kind == "lines":
        return [line.strip() for line in text.splitlines() if line.strip()]
    if field.kind == "words":
        return [word.strip() for word in text.split(",") if word.strip()]
    if field.kind == "choice":
        if text not in dict(field.options):
            raise ValueError(f"{field.label}: choose one of the list.")
        return text
    try:
        return whole(text) if field.kind == "integer" else decimal(text)
    except TwoMeanings as error:
        raise ValueError(f"{field.label}: {error}") from None
    except ValueError:
        kind = "a whole number" if field.kind == "integer" else "a number"
        raise ValueError(f"{field.label}: “{text[:40]}” is not {kind}.") from None


def shown(field: Field, value: Any) -> str:
    """The value as the form shows it."""
    if value is None:
        return ""
    if isinstance(value, list):
        return "\n".join(value) if field.kind == "lines" else ", ".join(value)
    return plain(value) if isinstance(value, float) else str(value)


def bounds_sentence(field: Field) -> str:
    """What may be entered, in words: "from 1 to 512"; empty where any value goes."""
    bounds = field.bounds
    low, high = bounds.get("low"), bounds.get("high")
    if low is None:
        return ""
    above = "from" if bounds.get("low_inclusive") else "more than"
    if high is None:
        return f"{above} {_plain(low)}"
    if not bounds.get("high_inclusive"):
        until = "to less than" if above == "from" else "and less than"
    else:
        until = "to" if above == "from" else "and at most"
    return f"{above} {_plain(low)} {until} {_plain(high)}"


def _plain(value: float) -> str:
    """1,000,000 rather than 1e+06."""
    return f"{value:,.0f}" if value == int(value) else plain(value)


def get(values: dict[str, Any], name: str) -> Any:
    """The value at a dotted path; None where the path ends early."""
    for part in name.split("."):
        if not isinstance(values, dict) or part not in values:
            return None
        values = values[part]
    return values


def put(values: dict[str, Any], name: str, value: Any) -> None:
    """Set the value at a dotted path, making the steps between."""
    *path, leaf = name.split(".")
    for part in path:
        if not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    values[leaf] = value
