"""lm-evaluation-harness, local-completions: log-likelihoods against those of transformers, a whole task, generation."""

import json
import os
import tempfile
from pathlib import Path

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.tasks import TaskManager
from said import KEY, MODEL, TOKENIZER, URL, call, holds

os.environ["OPENAI_API_KEY"] = KEY
EXPECTED = json.loads(os.environ["GPT_BUILDER_EXPECTED"])
TASK = """
task: soup
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""
model = LocalCompletionsAPI(
    base_url=f"{URL}/completions", model=MODEL, tokenizer=TOKENIZER, tokenizer_backend="huggingface", max_length=128
)


def asked(kind: str, *arguments: object) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


with call("loglikelihood, as transformers gives it"):
    found = model.loglikelihood([asked("loglikelihood", one["context"], one["continuation"]) for one in EXPECTED])
    for (sum_found, is_greedy), one in zip(found, EXPECTED, strict=True):
        holds(abs(sum_found - one["sum"]) < 1e-2, f"{sum_found} beside {one['sum']}")
        holds(is_greedy == one["is_greedy"], "whether it is greedy")
with call("loglikelihood_rolling"):
    (rolled,) = model.loglikelihood_rolling([asked("loglikelihood_rolling", "Where is my card? It is on its way.")])
    holds(rolled < 0, "a negative sum")
with call("generate_until"):
    (said,) = model.generate_until([asked("generate_until", "Where is", {"until": ["\n"], "max_gen_toks": 8})])
    holds(isinstance(said, str), "a text")
with call("a task of its own, from data to figures"), tempfile.TemporaryDirectory() as folder:
    rows = Path(folder) / "rows.jsonl"
    doc = {"question": "Where is my", "choices": [" card", " soup"]}
    rows.write_text("\n".join(json.dumps(doc) for _ in range(4)))
    (Path(folder) / "soup.yaml").write_text(TASK.format(file=rows))
    tasks = TaskManager(include_path=folder, include_defaults=False)
    results = lm_eval.simple_evaluate(model=model, tasks=["soup"], task_manager=tasks, bootstrap_iters=0)
    holds(results["results"]["soup"]["acc,none"] in (0.0, 1.0), "four equal rows, one verdict")
