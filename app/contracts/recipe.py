"""What a run is told to do. Frozen with the run; the same file drives the page, the API and the command line."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from app.contracts.base import Contract

Method = Literal["lora", "last_layers", "full", "scratch"]
BaseSource = Literal["starter", "scratch", "folder", "hub", "model"]
Schedule = Literal["cosine", "linear", "constant", "wsd"]
# A card's number, or its UUID: what CUDA_VISIBLE_DEVICES takes.
DeviceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,60}$")]


class ScratchSpec(Contract):
    """Architecture and tokenizer of a new GPT. Sizes in units of the named thing."""

    architecture: Literal["llama", "gpt2"] = "llama"
    layers: int = Field(4, ge=1, le=48)
    heads: int = Field(4, ge=1, le=64)
    kv_heads: int | None = Field(None, ge=1, le=64, description="None: as many as heads")
    width: int = Field(128, ge=16, le=8192)
    context_length: int = Field(256, ge=16, le=32768)
    tokenizer: Literal["bpe", "characters"] = "bpe"
    vocabulary_size: int = Field(4096, ge=300, le=100_000, description="BPE only; characters are counted")
    dropout: float = Field(0.0, ge=0, lt=1)
    positions: Literal["own", "rope", "learned", "sinusoidal"] = Field("own", description="own: the architecture's")
    norm: Literal["own", "rms", "layer", "batch"] = Field("own", description="own: the architecture's")

    @property
    def is_variant(self) -> bool:
        """Whether positions or norms are not the Llama's own: then only GPT Builder loads the model."""
        return self.architecture == "llama" and (
            self.positions not in ("own", "rope") or self.norm not in ("own", "rms")
        )

    @model_validator(mode="after")
    def _sizes_fit(self) -> "ScratchSpec":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if (self.width // self.heads) % 2:
            raise ValueError(f"width / heads must be even, not {self.width // self.heads}")
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        if self.architecture == "gpt2":
            if self.kv_heads not in (None, self.heads):
                raise ValueError("kv_heads of GPT-2 are as many as heads: leave them empty, or choose Llama")
            if self.positions not in ("own", "learned"):
                raise ValueError("positions of GPT-2 are learned: choose its own, or the architecture Llama")
            if self.norm not in ("own", "layer"):
                raise ValueError("norm of GPT-2 is LayerNorm: choose its own, or the architecture Llama")
        return self


class LoraSpec(Contract):
    """Low-rank adapters (Hu et al. 2021) on all linear layers unless named otherwise."""

    rank: int = Field(16, ge=1, le=512)
    alpha: float = Field(32, gt=0, le=4096)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] | None = Field(None, max_length=64, description="None: every linear layer but the head")
    rank_stabilised: bool = False
    initialisation: Literal["default", "pissa"] = "default"
    b_rate_ratio: float = Field(1.0, ge=1, le=64, description="LoRA+: learning rate of B over that of A")
    dora: bool = Field(False, description="strength and direction of each weight learn apart (Liu et al. 2024)")
    four_bit: bool = Field(False, description="QLoRA: the base is held in 4 bit (Dettmers et al. 2023); CUDA only")

    @model_validator(mode="after")
    def _start_fits(self) -> "LoraSpec":
        if self.initialisation == "pissa" and (self.dora or self.four_bit):
            name = "DoRA" if self.dora else "QLoRA"
            raise ValueError(f"{name} begins with the base as it is: choose the start “Zero”, or switch {name} off")
        return self


def steps_per_epoch(sequences: int, batch_size: int) -> int:
    """Steps of one pass. It ends with a smaller step where the batch does not divide the token rows."""
    return max(1, -(-sequences // batch_size))


def total_steps(sequences: int, batch_size: int, epochs: float) -> int:
    """Steps of a run by its passes, at least one."""
    return max(1, round(epochs * steps_per_epoch(sequences, batch_size)))


class RecipeSpec(Contract):
    """Every parameter of a training run. Bounds here are the outer ones; forms may be narrower."""

    method: Method
    base_source: BaseSource
    base_ref: str | None = Field(None, max_length=500, description="folder, hub id@revision or model id, by source")
    scratch: ScratchSpec | None = None
    lora: LoraSpec = Field(default_factory=LoraSpec)
    last_layers: int = Field(2, ge=1, le=200)
    train_head: bool = False
    epochs: float = Field(3, gt=0, le=1000)
    max_steps: int | None = Field(None, ge=1, le=10_000_000)
    max_hours: float | None = Field(
        None, gt=0, le=1000, description="of machine time for the whole run; then it ends with its best checkpoint"
    )
    batch_size: int = Field(8, ge=1, le=4096, description="rows a step: the effective batch")
    micro_batch_size: int = Field(8, ge=1, le=4096)
    max_length_tokens: int = Field(512, ge=16, le=131_072)
    learning_rate: float = Field(2e-4, gt=0, le=10)
    schedule: Schedule = "cosine"
    warmup_steps: int = Field(10, ge=0, le=1_000_000)
    final_learning_rate_ratio: float = Field(0.1, ge=0, le=1)
    decay_share: float = Field(0.3, gt=0, le=1, description="WSD: the last share of the steps that decays")
    weight_decay: float = Field(0.0, ge=0, le=1)
    clip_norm: float = Field(1.0, gt=0, le=1000)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    neftune_alpha: float = Field(0.0, ge=0, le=100)
    optimizer: Literal["adamw", "muon", "adafactor", "adamw_8bit"] = Field("adamw", description="8 bit: CUDA only")
    adamw_learning_rate: float | None = Field(None, gt=0, le=10, description="Muon: rate of embeddings and norms")
    packing: bool = True
    chats_last_share: float = Field(
        0.0, ge=0, lt=1, description="the last share of each epoch's tokens is conversations only"
    )
    use_instruction: bool = Field(True, description="the objective goes before each conversation")
    learn_from: Literal["answers", "preferences"] = Field(
        "answers", description="preferences: DPO (Rafailov et al. 2023) on rows with a preferred and a rejected answer"
    )
    preference_strength: float = Field(0.1, gt=0, le=10, description="DPO's beta")
    learn_prompts: bool = Field(False, description="learn the user's turns too")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    evaluate_every_steps: int = Field(50, ge=1, le=1_000_000)
    checkpoint_every_s: float = Field(300, gt=0, le=86_400)
    checkpoint_every_steps: int | None = Field(None, ge=1, le=1_000_000)
    validation_rows: int = Field(200, ge=0, le=100_000)
    early_stopping: bool = True
    patience_evaluations: int = Field(6, ge=1, le=1000)
    keep_checkpoints: int = Field(3, ge=1, le=1000)
    sample_prompts: list[str] = Field(default_factory=list, max_length=8)
    sample_max_tokens: int = Field(120, ge=1, le=2000)
    seed: int = Field(1, ge=0, le=2**31 - 1)
    threads: int | None = Field(None, ge=1, le=256, description="None: chosen by the engine")
    processes: int = Field(
        1, ge=1, le=64, description="that train together on the processor, each on its share of rows"
    )
    devices: list[DeviceName] = Field(
        default_factory=list, max_length=16, description="graphics cards, a process on each; empty: one that is free"
    )
    shards: bool = Field(False, description="they split weights, gradients and optimiser between them (FSDP2)")

    @property
    def replicas(self) -> int:
        """How many processes train together."""
        return len(self.devices) or self.processes

    @model_validator(mode="after")
    def _replicas_agree(self) -> "RecipeSpec":
        if len(set(self.devices)) < len(self.devices):
            raise ValueError("devices must be named once each")
        if self.devices and self.processes > 1:
            raise ValueError("processes must be 1 where devices are named: each has one of its own")
        if self.replicas > self.batch_size:
            name = "devices" if self.devices else "processes"
            raise ValueError(f"{name} must be at most batch_size, {self.batch_size}: each reads a row of every step")
        if self.replicas > 1 and self.scratch and self.scratch.norm == "batch":
            raise ValueError("norm batch counts over the rows of one process: train on one device, or choose another")
        if self.shards:
            self._shards_agree()
        return self

    def _shards_agree(self) -> None:
        if self.replicas == 1:
            raise ValueError("shards needs several devices or processes")
        if self.method not in ("full", "scratch"):
            raise ValueError("shards is for methods in which all weights learn: full, and from scratch")
        if self.optimizer != "adamw":
            raise ValueError(f"shards needs the optimizer adamw: {self.optimizer} looks at whole matrices")
        if self.learn_from == "preferences":
            raise ValueError("shards is for learning from answers: preferences look at two models at once")

    @model_validator(mode="after")
    def _parts_agree(self) -> "RecipeSpec":
        if self.method == "scratch" and (self.scratch is None or self.base_source != "scratch"):
            raise ValueError("method scratch needs base_source scratch, and the sizes of the new model below scratch")
        if self.method != "scratch" and self.base_source == "scratch":
            raise ValueError(f"method {self.method} needs a base model")
        if self.method == "scratch" and self.learn_from == "preferences":
            raise ValueError("learn_from preferences needs a base model that already answers")
        if self.learn_from == "preferences" and self.label_smoothing >= 0.5:
            raise ValueError("label_smoothing must be less than 0.5 when learning from preferences")
        if self.base_source in ("folder", "hub", "model") and not self.base_ref:
            raise ValueError(f"base_source {self.base_source} needs base_ref")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of micro_batch_size {self.micro_batch_size}"
            )
        return self

    def steps_per_epoch(self, sequences: int) -> int:
        """Steps of one pass over so many token rows."""
        return steps_per_epoch(sequences, self.batch_size)

    def total_steps(self, sequences: int, epochs: float | None = None, max_steps: int | None = None) -> int:
        """Steps of the whole run: what the recipe page promises and the engine does. Arguments: as changed since."""
        passes = self.epochs if epochs is None else epochs
        steps, most = total_steps(sequences, self.batch_size, passes), max_steps or self.max_steps
        return min(steps, most) if most else steps


class Overlay(Contract):
    """Weights laid over a base: a LoRA adapter folder or a folder of changed layers."""

    kind: Literal["lora", "layers"]
    dir: str


class ModelFiles(Contract):
    """Where a model's weights are: a base folder (config, safetensors, tokenizer) and what was trained on top."""

    base_dir: str
    overlays: list[Overlay] = Field(default_factory=list)


class TrainOrder(Contract):
    """The whole input of one engine process: first line of its standard input, as JSON."""

    run_id: str
    attempt_id: str
    fence: int
    recipe: RecipeSpec
    base: ModelFiles | None = Field(None, description="None: from scratch")
    data_dir: str = Field(description="a frozen dataset version (data-*.parquet, manifest.json)")
    out_dir: str = Field(description="the run's folder; checkpoints/ and model/ are made in it")
    cache_dir: str | None = Field(None, description="where token caches are kept; None: tokens/ in out_dir")
    resume: bool = Field(True, description="go on from the newest good checkpoint in out_dir")
    memory_rung: int = Field(0, ge=0, le=4, description="rungs of the ladder (contracts.relief) taken before")
    system_prompt: str = ""
    spent_s: float = Field(0.0, ge=0, description="machine time of earlier attempts, for the recipe's max_hours")
    storage_reserve_bytes: int = Field(0, ge=0)
