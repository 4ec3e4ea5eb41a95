"""The forms of projects: a name and a template; the objective with its rows."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from app.core.forms import FormBase
from app.projects.service import ObjectiveText

Name = Annotated[str, Field(min_length=1, max_length=100)]
LIMITS = {"task": 4000, "audience": 1000, "tone": 1000}


def _listed(value: Any) -> Any:
    """A name that occurs once in a form comes as one text."""
    return value if isinstance(value, list) else [value]


Texts = Annotated[list[Annotated[str, Field(max_length=4000)]], Field(max_length=50), BeforeValidator(_listed)]


class NewProjectForm(FormBase):
    name: Name
    template: Annotated[str, Field(max_length=40)] = "free"
    workspace_id: Annotated[str, Field(max_length=20)] = ""


class RenameForm(FormBase):
    name: Name


class ObjectiveForm(FormBase):
    """Rows come as lists of equal length; `change` is the button that adds or removes one without scripts."""

    task: Annotated[str, Field(max_length=4000)] = ""
    audience: Annotated[str, Field(max_length=1000)] = ""
    tone: Annotated[str, Field(max_length=1000)] = ""
    must_never: Texts = Field(default_factory=list)
    sample_question: Texts = Field(default_factory=list)
    sample_answer: Texts = Field(default_factory=list)
    change: Annotated[str, Field(max_length=40)] = ""
    after: Literal["", "data"] = ""

    def rows(self) -> list[dict[str, str]]:
        """The samples as they stand in the form, empty ones too."""
        pairs = zip(self.sample_question, self.sample_answer, strict=False)
        return [{"question": question, "answer": answer} for question, answer in pairs]

    def text(self) -> ObjectiveText:
        """What is to be saved: rows without any text left out."""
        return ObjectiveText(
            task=self.task,
            audience=self.audience,
            tone=self.tone,
            must_never=[rule for rule in self.must_never if rule],
            samples=[row for row in self.rows() if row["question"] or row["answer"]],
        )

    def changed(self) -> ObjectiveText:
        """The form after "add-must_never", "add-samples", "remove-must_never-2" or "remove-samples-0"."""
        rules, rows = list(self.must_never), self.rows()
        verb, _, rest = self.change.partition("-")
        target, _, number = rest.partition("-")
        if verb == "add" and target == "samples":
            rows.append({"question": "", "answer": ""})
        elif verb == "add":
            rules.append("")
        elif number.isdecimal():
            del (rows if target == "samples" else rules)[int(number) : int(number) + 1]
        return ObjectiveText(task=self.task, audience=self.audience, tone=self.tone, must_never=rules, samples=rows)
