"""README.md of an export: a model card that is filled, how to use the files, and what is known of licences."""

from typing import Any

import yaml
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.contracts.export import ExportReport
from app.datasets.combining import made
from app.datasets.models import DatasetVersion, SourceFile
from app.exports import service
from app.exports.models import Export
from app.projects.models import Objective, Project
from app.runs.models import Run

# Licence keywords that the hub's model cards take as they are; others are “other”.
_KEYWORDS = {
    "apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0", "llama2", "llama3",
    "llama3.1", "llama3.2", "gemma", "openrail", "gpl-3.0", "unlicense",
}  # fmt: skip
METHODS = {
    "lora": "a LoRA adapter",
    "last_layers": "the last layers, the others frozen",
    "full": "all weights",
    "scratch": "all weights, from random ones",
}


def text(session: Session, row: Export, report: ExportReport, names: list[str]) -> str:
    """The card. `names`: the files that lie beside it."""
    run, project = session.get_one(Run, row.run_id), session.get_one(Project, row.project_id)
    objective = session.get(Objective, project.id)
    base = run.frozen.get("base_about") or {}
    parts = [
        _front(row, base),
        f"# {_line(row.model_name)}",
        f"Trained with GPT Builder in the project “{_line(project.name)}”, run {run.number}.",
        "## What it is for",
        objective.task.strip() if objective and objective.task.strip() else "The project names no task.",
        *_never(objective),
        "## How to use it",
        _usage(row, base, names),
        *(["It was trained with this system prompt:", _quoted(prompt)] if (prompt := _prompt(run)) else []),
        "## How it was made",
        _facts(_making(row, run, base, report)),
        "## What was checked",
        _checks(report),
        "## Licences",
        _licences(session, run, base),
        "## What to know before using it",
        "It was trained on the rows named above and knows little else; it can be wrong and sound sure. Test it with "
        "cases of your own before other people depend on it.",
    ]
    return "\n\n".join(parts) + "\n"


def _front(row: Export, base: dict[str, Any]) -> str:
    """The header that model hubs read."""
    licence = str(base.get("licence", "")).lower()
    head: dict[str, Any] = {
        "license": licence if licence in _KEYWORDS else "other",
        "pipeline_tag": "text-generation",
        "library_name": {"adapter": "peft", "merged": "transformers"}.get(row.kind, "gguf"),
        "tags": ["gpt-builder"],
    }
    if base.get("source") == "hub" and base.get("ref"):
        head["base_model"] = str(base["ref"])
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---"


def _never(objective: Objective | None) -> list[str]:
    if objective is None or not objective.must_never:
        return []
    return ["It must never:", "\n".join(f"- {_line(rule)}" for rule in objective.must_never)]


def _prompt(run: Run) -> str:
    return str(run.frozen.get("system_prompt", "")).strip()


def _usage(row: Export, base: dict[str, Any], names: list[str]) -> str:
    if row.kind == "adapter":
        where = str(base.get("ref", "")) if base.get("source") == "hub" else "FOLDER_OF_THE_BASE_MODEL"
        return _code(
            "python",
            "from peft import PeftModel\n"
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'base = AutoModelForCausalLM.from_pretrained("{_line(where)}")\n'
            'model = PeftModel.from_pretrained(base, ".")\n'
            'tokenizer = AutoTokenizer.from_pretrained(".")',
        )
    if row.kind == "merged":
        return _code(
            "python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained(".")\n'
            'tokenizer = AutoTokenizer.from_pretrained(".")\n'
            'turns = [{"role": "user", "content": "Hello"}]\n'
            "inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, "
            'return_tensors="pt", return_dict=True)\n'
            "answer = model.generate(**inputs, max_new_tokens=100)\n"
            'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))',
        )
    file = next((name for name in names if name.endswith(".gguf")), "model.gguf")
    stem = service.slug(row.model_name)
    return (
        "With Ollama, in this folder:\n\n"
        + _code("bash", f"ollama create {stem} -f Modelfile\nollama run {stem}")
        + "\n\nWith llama.cpp:\n\n"
        + _code("bash", f"llama-server --model {file} --jinja")
    )


def _making(row: Export, run: Run, base: dict[str, Any], report: ExportReport) -> list[tuple[str, str]]:
    dataset, recipe = run.frozen.get("dataset") or {}, run.recipe
    facts = [
        ("Base model", _line(" ".join(str(base.get(k) or "") for k in ("name", "revision")).strip()) or "none"),
        ("What was trained", METHODS.get(str(recipe.get("method")), str(recipe.get("method", "")))),
        ("Parameters in these files", f"{report.parameters:,}"),
        ("Number format", report.number_format),
        ("Training rows", f"{int(dataset.get('train_rows') or 0):,} of version {dataset.get('version', '–')}"),
        ("Hash of the rows", str(dataset.get("content_hash") or "–")),
        ("Steps", f"{run.step:,}"),
        ("Learning rate", str(recipe.get("learning_rate", "–"))),
        ("Best validation loss", "–" if run.best_loss is None else f"{run.best_loss:.4f}"),
    ]
    libraries = run.frozen.get("libraries") or {}
    return [*facts, ("Libraries", ", ".join(f"{k} {v}" for k, v in sorted(libraries.items())) or "–")]


def _checks(report: ExportReport) -> str:
    lines = []
    for check in report.checks:
        if check.prompts:
            lines.append(
                f"- Loaded with {check.tool} and asked {check.prompts} questions: {check.same_prompts} answers are the "
                f"same as the model's own, {check.same_tokens:,} of {check.tokens:,} compared tokens."
            )
        else:
            lines.append(f"- Read back with {check.tool}: {check.tensors:,} tensors agree with the model's weights.")
    return "\n".join([*lines, *(f"- {note}" for note in report.notes)])


def _licences(session: Session, run: Run, base: dict[str, Any]) -> str:
    """What the base and the material name. No advice: people decide what it allows."""
    lines = []
    if base:
        name = _line(str(base.get("name", "")))
        lines.append(f"- Base model {name}: {_line(str(base.get('licence') or '')) or 'no licence is named'}.")
    version = session.get(DatasetVersion, run.version_id) if run.version_id else None
    if version is not None:
        ids = {str(file["file_id"]) for file in made.files_of(session, version)}
        query = select(SourceFile).where(SourceFile.id.in_(ids)).order_by(SourceFile.filename)
        for file in session.scalars(query):
            lines.append(f"- {_line(file.filename)}: {_line(file.licence) or 'no licence is named'}.")
    lines.append("- These files may be used only as far as all of the above allow.")
    return "\n".join(lines)


def _facts(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value.replace('|', '/')} |" for name, value in rows)])


def _line(text: str) -> str:
    """One line without what would begin another part of the page."""
    return " ".join(text.replace("`", "'").replace("<", "‹").replace('"', "'").split())


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines())


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"
