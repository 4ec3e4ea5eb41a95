"""Presets, estimates and the schedule: known values, bounds and reasons."""

import pytest

from app.contracts.recipe import RecipeSpec
from app.recipes import charts, defaults, estimate, fields, files, presets
from app.recipes.base_facts import BaseFacts, from_scratch
from app.recipes.calibration import Measured
from app.recipes.machine import Machine
from app.recipes.material import Material
from worker.engine.optim import rate_factor

MACHINE = Machine(cores=2, memory_bytes=16 * 2**30, has_bf16=True)
STARTER = BaseFacts(
    architecture="llama", parameters=11_500_000, layers=8, width=320, heads=5, kv_heads=5, inner=896,
    vocabulary=4096, context_length=512, is_tied=True,
)  # fmt: skip
MEDIUM = BaseFacts(
    architecture="llama", parameters=134_515_008, layers=30, width=576, heads=9, kv_heads=3, inner=1536,
    vocabulary=49_152, context_length=2048, is_tied=True,
)  # fmt: skip


def rows(count: int, mean: float = 150, kind: str = "chat") -> Material:
    return Material(
        kind=kind, train_rows=count, validation_rows=100, test_rows=100, mean_tokens=mean, p95_tokens=int(mean * 1.5),
        longest_tokens=int(mean * 2), characters=int(count * mean * 3.5),
    )  # fmt: skip


def spec(method: str, base: BaseFacts, material: Material, preset: str = "balanced") -> RecipeSpec:
    proposal = presets.propose(preset, method, base, material, MACHINE)
    return RecipeSpec(method=method, base_source="starter", **proposal.values)


@pytest.mark.parametrize(
    ("kind", "parameters", "rate"),
    [("lora", 4_000_000, 1e-2), ("lora", 1_000_000_000, 2e-4), ("full", 4_100_000, 2e-3), ("lora", 100_000_000, 1e-3)],
)
def test_learning_rates_are_the_measured_ones(kind, parameters, rate):
    assert defaults.learning_rate(kind, parameters) == pytest.approx(rate, rel=0.03)


def test_learning_rate_of_lora_falls_as_the_model_grows():
    sizes = [3_000_000, 5_000_000, 30_000_000, 500_000_000, 20_000_000_000]
    rates = [defaults.learning_rate("lora", size) for size in sizes]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(
    ("count", "tiny", "passes"), [(412, False, 3), (10, False, 10), (4, True, 25), (20_000, False, 1)]
)
def test_passes_follow_the_number_of_rows(count, tiny, passes):
    epochs, reason = defaults.epochs_for(count, is_tiny=tiny)
    assert epochs == passes
    assert f"{count:,}" in reason


def test_small_models_are_tuned_whole_and_large_ones_by_lora():
    fits = {"full": 1, "lora": 1, "last_layers": 1}
    assert defaults.recommended_method(11_500_000, needs=fits, memory_bytes=2)[0] == "full"
    assert defaults.recommended_method(135_000_000, needs=fits, memory_bytes=2)[0] == "lora"
    too_big = {"full": 3, "lora": 3, "last_layers": 1}
    assert defaults.recommended_method(7_000_000_000, needs=too_big, memory_bytes=2)[0] == "last_layers"


@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("method", ["lora", "last_layers", "full"])
@pytest.mark.parametrize("count", [1, 7, 40, 412, 50_000])
def test_every_proposal_is_a_valid_recipe_with_reasons(preset, method, count):
    recipe = spec(method, STARTER, rows(count), preset)
    proposal = presets.propose(preset, method, STARTER, rows(count), MACHINE)
    assert recipe.max_length_tokens <= STARTER.context_length
    assert {"epochs", "learning_rate", "batch_size", "warmup_steps"} <= set(proposal.reasons)
    steps, _ = estimate.count_steps(recipe, rows(count))
    assert recipe.warmup_steps < max(2, steps)


@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("characters", [2_000, 1_115_394, 60_000_000])
def test_a_new_model_fits_text_and_time(preset, characters):
    text = rows(max(1, characters // 150), mean=45, kind="text").model_copy(update={"characters": characters})
    proposal = presets.propose_scratch(preset, text, MACHINE, characters=65)
    recipe = RecipeSpec(method="scratch", base_source="scratch", **proposal.values)
    assert recipe.scratch.tokenizer == ("characters" if characters < 3_000_000 else "bpe")
    facts = from_scratch(recipe.scratch, 73)
    assert facts.parameters < 4 * characters or recipe.scratch.width == 128


def test_parameters_of_a_new_model_are_counted_as_torch_counts_them():
    from worker.engine.scratch import create

    for architecture in ("llama", "gpt2"):
        shape = {"architecture": architecture, "layers": 2, "heads": 2, "width": 32, "context_length": 32}
        wanted = RecipeSpec(method="scratch", base_source="scratch", scratch=shape).scratch
        model = create(wanted, vocabulary_size=300, end_ids=[0], pad_id=1)
        counted = sum(parameter.numel() for parameter in model.parameters())
        assert from_scratch(wanted, 300).parameters == pytest.approx(counted, rel=0.04)
    taught = wanted.model_copy(update={"architecture": "llama", "positions": "learned", "norm": "batch"})
    model = create(taught, vocabulary_size=300, end_ids=[0], pad_id=1)
    assert from_scratch(taught, 300).parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("method", ["lora", "full"])
def test_time_and_memory_are_near_what_was_measured_on_two_cores(method):
    # Prototype, 2 cores: 374 (LoRA) and 218 (full) tokens a second, 2.4 and 4.1 GB at 135 million parameters.
    speed, memory = {"lora": (374, 2.4e9), "full": (218, 4.1e9)}[method]
    material = rows(1000)
    recipe = spec(method, MEDIUM, material).model_copy(update={"batch_size": 8, "micro_batch_size": 8})
    found = estimate.estimate(recipe, MEDIUM, material, MACHINE)
    assert found.tokens / found.seconds == pytest.approx(speed, rel=0.5)
    assert estimate.memory_bytes(recipe, MEDIUM, material, MACHINE) == pytest.approx(memory, rel=0.4)


def test_the_size_of_the_result_is_that_of_its_file():
    """As the demo's run left them: 630,784 weights beside the starter model are a file of 5.05 MB, the whole 8.5 MB."""
    material = rows(1000)
    plain = spec("lora", MEDIUM, material)
    learned = estimate.trainable_parameters(plain, MEDIUM)
    wide = plain.model_copy(update={"lora": plain.lora.model_copy(update={"initialisation": "pissa"})})
    narrow = plain.model_copy(update={"lora": plain.lora.model_copy(update={"initialisation": "default"})})
    assert estimate.model_bytes(wide, MEDIUM) == 8 * learned
    assert estimate.model_bytes(narrow, MEDIUM) == 4 * learned
    whole = spec("full", MEDIUM, material)
    stored = MEDIUM.model_copy(update={"size_bytes": 269_000_000})
    assert estimate.estimate(whole, stored, material, MACHINE).model_bytes == 269_000_000
    assert estimate.model_bytes(whole, MEDIUM) == 2 * MEDIUM.parameters


def test_earlier_runs_correct_the_estimate():
    material, recipe = rows(1000), spec("lora", STARTER, rows(1000))
    plain = estimate.estimate(recipe, STARTER, material, MACHINE)
    half = estimate.expected_flops(STARTER, MACHINE) / 2
    measured = estimate.estimate(recipe, STARTER, material, MACHINE, measured=Measured([half], [0.05]))
    assert measured.is_calibrated
    assert measured.seconds > 1.7 * plain.seconds
    assert (measured.high_s - measured.low_s) / measured.seconds < (plain.high_s - plain.low_s) / plain.seconds


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
def test_the_drawn_schedule_is_the_one_the_engine_follows(schedule):
    recipe = spec("full", STARTER, rows(1000)).model_copy(update={"schedule": schedule})
    for step in (0, 3, 10, 11, 100, 200, 299):
        drawn = charts.rate_at(recipe, step, 300)
        assert drawn == pytest.approx(recipe.learning_rate * rate_factor(step, 300, recipe), rel=1e-9)


def test_every_recipe_value_has_a_field_and_bounds_come_from_the_contract():
    named = {field.name for field in fields.FIELDS}
    plain = set(RecipeSpec.model_fields) - {"method", "base_source", "base_ref", "scratch", "lora"}
    assert plain <= named
    assert fields.bounds_sentence(fields.BY_NAME["lora.rank"]) == "from 1 to 512"
    assert fields.bounds_sentence(fields.BY_NAME["lora.dropout"]) == "from 0 to less than 1"


def test_a_recipe_survives_its_file():
    recipe = spec("lora", STARTER, rows(412))
    assert files.from_yaml(files.to_yaml(recipe)) == recipe


def test_words_of_a_file_mean_what_their_fields_say():
    text = "method: full\nbase_source: starter\nepochs: 2.5\nlearning_rate: 2e-4\nseed: 012\nearly_stopping: no\n"
    recipe = files.from_yaml(text + "packing: yes\nmax_hours: ~\nsample_prompts: [yes, 1:30, 2026-11-22, 7]\n")
    assert (recipe.epochs, recipe.learning_rate, recipe.seed, recipe.max_hours) == (2.5, 2e-4, 12, None)
    assert (recipe.early_stopping, recipe.packing) == (False, True)
    assert recipe.sample_prompts == ["yes", "1:30", "2026-11-22", "7"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "holds no recipe"),
        ("method: full\nbase_source: starter\nsecret: 1", "secret"),
        ("method: full\nbase_source: starter\nepochs: -1", "epochs"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("method: full\nbase_source: starter\nmax_hours: 1:30", "Line 3, “max_hours” must be a number."),
        ("method: full\nbase_source: starter\nepochs: yes", "Line 3, “epochs” must be a number."),
        ("method: full\nbase_source: starter\nepochs: true", "Line 3, “epochs” must be a number."),
        ("method: lora\nlora:\n  rank: 8\n  alpha: on\nbase_source: starter", "Line 4, “lora.alpha” must be a number."),
        (
            "method: full\nsample_prompts:\n- a\n- [b]\nbase_source: starter",
            "Line 4, “sample_prompts.1” must be a text.",
        ),
        ("method: full\nseed: 1\nbase_source: starter\nseed: 2", "Line 4: “seed” stands in line 2 already"),
    ],
)
def test_a_bad_file_is_refused_with_a_sentence(text, said):
    from app.core.errors import Invalid

    with pytest.raises(Invalid) as caught:
        files.from_yaml(text)
    assert said in caught.value.sentence
