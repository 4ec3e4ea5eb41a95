"""A recipe as a file: out of the page and back, and what is said of one that does not fit."""

import re
from html import unescape

import pytest
import yaml


def test_a_recipe_file_goes_out_and_comes_back(page):
    address = f"/projects/{page.project_id}/recipe"
    values = yaml.safe_load(page.get(f"{address}.yaml").text)
    values["learning_rate"] = 0.0042
    file = {"file": ("recipe.yaml", yaml.safe_dump(values).encode(), "application/yaml")}
    assert page.post(f"{address}/import", files=file).status_code == 303
    assert "This page shows the values of the file now" in page.get(address).text
    assert yaml.safe_load(page.get(f"{address}.yaml").text)["learning_rate"] == 0.0042
    broken = {"file": ("recipe.yaml", b"method: [", "application/yaml")}
    answer = page.post(f"{address}/import", files=broken)
    assert answer.status_code == 422
    assert "not valid YAML" in answer.text
    assert '<details class="card" id="recipe-file" open>' in answer.text, "a refusal in a closed card is seen by nobody"
    assert '<details class="card" id="recipe-file">' in page.get(address).text


def test_every_mistake_of_a_recipe_file_is_told_at_once_in_plain_words(page):
    text = (
        "method: lorra\nbase_source: starter\nlearning_rte: 0.001\nepochs: many\nlora:\n  rank: 1000\n"
        "packing: perhaps\nsample_prompts: Why\nseed: 1\nseed: 2\n"
    )
    answer = page.post(f"/projects/{page.project_id}/recipe/import", data={"text": text})
    assert answer.status_code == 422
    told = re.findall(r"<li>(Line .*?)</li>", answer.text)
    assert [unescape(line) for line in told] == [
        "Line 1, “method” must be lora, last_layers, full or scratch.",
        "Line 3, “learning_rte” is not a value of a recipe. Did you mean “learning_rate”?",
        "Line 4, “epochs” must be a number.",
        "Line 6, “lora.rank” must be at most 512.",
        "Line 7, “packing” must be true or false.",
        "Line 8, “sample_prompts” must be a list, each entry on a line of its own that begins with “- ”.",
        "Line 10: “seed” stands in line 9 already. Keep one.",
    ]
    answer = page.post(f"/projects/{page.project_id}/recipe/import", data={"text": "epochs: 2"})
    assert "“method” is missing. Add a line “method: …”" in unescape(answer.text)
    many = "".join(f"name_{i}: 1\n" for i in range(500))
    answer = page.post(f"/projects/{page.project_id}/recipe/import", data={"text": many})
    assert 3 < len(re.findall(r"<li>(?:Line|“|…)", unescape(answer.text))) < 20, "a long list is cut, and says so"
    assert "more like these" in answer.text


@pytest.mark.parametrize(
    "text", ["a: 2021-13-45", f"epochs: {'1' * 5000}", "a: 2001-12-14t21:59:43.10-99:99", "[" * 90_000, "&a {a: *a}"]
)
def test_a_hostile_recipe_file_is_refused_in_words(page, text):
    answer = page.post(f"/projects/{page.project_id}/recipe/import", data={"text": text})
    assert answer.status_code == 422
    assert "Start training" in answer.text, "the page again, with the mistake beside the file"
