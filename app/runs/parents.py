"""A finished model as the base of the next run: what the recipe page needs to know of it."""

from pathlib import Path
from typing import Any

from app.contracts.recipe import ModelFiles
from app.core.errors import Invalid
from app.recipes import base_facts
from app.runs.models import Model


def described(model: Model) -> dict[str, Any]:
    """Reference, name, sizes and tokenizer of a model, for `recipes.service.choose_base`.

    Sizes are those of its base folder: what was trained on top has the same shape. Raises Invalid without the files.
    """
    files = ModelFiles.model_validate(model.files)
    folder = Path(files.base_dir)
    try:
        facts = base_facts.from_folder(folder)
    except OSError as error:
        raise Invalid("The files of this model cannot be read. They may have been moved or deleted.") from error
    return {
        "ref": model.id,
        "name": model.name,
        "facts": facts.model_dump(),
        "tokenizer_file": str(folder / "tokenizer.json"),
        "overlays": [one.model_dump() for one in files.overlays],
    }
