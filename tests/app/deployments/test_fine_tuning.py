"""Files and fine-tuning jobs at the API: the project's real versions and runs, by OpenAI's own client."""

import json
import threading
from typing import Any

import httpx
import openai
import orjson
import pytest
from sqlalchemy import select

from app.core.db import reading
from app.datasets.models import CleaningPlan, DatasetVersion, SourceFile
from app.recipes.base_facts import from_folder
from app.recipes.models import BaseModelEntry
from tests.app.deployments.conftest import Stack, at_home, inside, key_of
from tests.factories import a_version
from worker import supervision
from worker.tasks.datasets import freeze, import_file, prepare


def test_the_client_trains_on_a_frozen_version(stack: Stack) -> None:
    with inside(stack) as session:
        version_id = a_version(session, stack.project_id).id
    client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key=key_of(stack, scopes=["read", "train"]), max_retries=0)
    (file,) = client.files.list()
    assert (file.id, file.purpose, file.status) == (f"file-{version_id}", "fine-tune", "processed")
    assert client.files.retrieve(file.id).bytes == file.bytes > 0
    rows = [json.loads(line) for line in client.files.content(file.id).text.splitlines()]
    assert len(rows) == 48
    asked: dict[str, Any] = {
        "model": "starter",
        "training_file": file.id,
        "suffix": "By the client",
        "seed": 7,
        "method": {
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4, "max_hours": 9}},
        },
    }
    job = client.fine_tuning.jobs.create(**asked, extra_headers={"idempotency-key": "once"})
    again = client.fine_tuning.jobs.create(**asked, extra_headers={"idempotency-key": "once"})
    assert again.id == job.id
    long = [f"{'a program of ours, its nightly training run ' * 2}{number}" for number in (1, 2)]
    others = {client.fine_tuning.jobs.create(**asked, extra_headers={"idempotency-key": key}).id for key in long}
    assert len(others) == 2, "keys that differ only at their end"
    for other in others:
        client.fine_tuning.jobs.cancel(other)
    assert (job.status, job.model, job.seed, job.training_file) == ("queued", job.model, 7, file.id)
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (2, 4)
    assert (job.hyperparameters.model_extra or {})["max_hours"] == 9
    assert job.id in [one.id for one in client.fine_tuning.jobs.list(limit=1)], "pages are walked to the end"
    assert client.fine_tuning.jobs.list_events(job.id).data[0].message == "Queued."
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError) as ended:
        client.fine_tuning.jobs.cancel(job.id)
    assert ended.value.code == "invalid_state"
    finished = next(one for one in client.fine_tuning.jobs.list() if one.status == "succeeded")
    assert finished.fine_tuned_model == stack.model
    (kept,) = client.fine_tuning.jobs.checkpoints.list(finished.id)
    assert kept.fine_tuned_model_checkpoint == f"{stack.model}:step-120"
    for wrong, param in (({"model": "gpt-9"}, "model"), ({"validation_file": file.id}, "validation_file")):
        with pytest.raises(openai.BadRequestError) as refused:
            client.fine_tuning.jobs.create(**asked | wrong)
        assert refused.value.param == param


def test_training_needs_its_own_scope(stack: Stack, client: openai.OpenAI) -> None:
    for call in (
        lambda: client.fine_tuning.jobs.create(model="starter", training_file="file-x"),
        lambda: client.fine_tuning.jobs.cancel("ftjob-x"),
        lambda: client.files.content("file-x"),
    ):
        with pytest.raises(openai.PermissionDeniedError):
            call()


ROWS = [
    {"messages": [{"role": "user", "content": f"What is {n} and {n}?"}, {"role": "assistant", "content": f"{2 * n}."}]}
    for n in range(60)
]


def work_off(stack: Stack) -> None:
    """What the worker does with everything that waits: read, prepare, freeze."""
    with at_home(stack):
        for model, task in ((SourceFile, import_file), (CleaningPlan, prepare), (DatasetVersion, freeze)):
            with reading() as session:
                waiting = list(session.scalars(select(model.id).where(model.state == "queued")))
            for key in waiting:
                task(key)


def test_an_uploaded_file_becomes_the_projects_own_and_is_trained_on(stack: Stack) -> None:
    client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key=key_of(stack, scopes=["read", "train"]), max_retries=0)
    content = b"".join(orjson.dumps(row) + b"\n" for row in ROWS)
    file = client.files.create(file=("sums.jsonl", content), purpose="fine-tune")
    assert (file.status, file.filename, file.bytes, file.purpose) == (
        "uploaded",
        "sums.jsonl",
        len(content),
        "fine-tune",
    )
    with pytest.raises(openai.BadRequestError) as early:
        client.fine_tuning.jobs.create(model="starter", training_file=file.id)
    assert early.value.code == "file_not_ready"
    work_off(stack)
    assert client.files.wait_for_processing(file.id, poll_interval=0.1).status == "processed"
    assert client.files.create(file=("again.jsonl", content), purpose="fine-tune").id == file.id
    assert client.files.content(file.id).read() == content
    assert file.id in [one.id for one in client.files.list(limit=1)], "pages are walked to the end"
    assert next(iter(client.files.list(order="desc"))).id == file.id
    job = client.fine_tuning.jobs.create(model="starter", training_file=file.id)
    assert (job.status, job.training_file) == ("queued", file.id)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    with inside(stack) as session:
        version = session.scalars(select(DatasetVersion).where(DatasetVersion.file_id == file.id[5:])).one()
        assert version.train_rows + version.validation_rows + version.test_rows == len(ROWS)
        number = version.number
    with httpx.Client(base_url=stack.url, cookies={"sid": stack.owner.cookie}) as browser:
        pages = {name: browser.get(f"/projects/{stack.project_id}/{name}").text for name in ("data", "clean", "runs")}
    assert "sums.jsonl" in pages["data"]
    assert f"Version {number}" in pages["clean"]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    assert file.id not in [one.id for one in client.files.list()]


def test_from_an_uploaded_file_to_an_answer_of_the_trained_model(stack: Stack) -> None:
    """The whole way of a program, with OpenAI's client and the real engine, from a small base model."""
    with inside(stack) as session:
        facts, folder = from_folder(stack.folder).model_dump(mode="json"), str(stack.folder)
        base = BaseModelEntry(
            workspace_id=stack.owner.workspace_id, source="folder", name="tiny-base", state="succeeded", ref=folder,
            folder=folder, details={"facts": facts},
        )  # fmt: skip
        session.add(base)
    key = key_of(stack, scopes=["read", "train", "chat"])
    client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key=key, max_retries=0)
    content = b"".join(orjson.dumps(row) + b"\n" for row in ROWS)
    file = client.files.create(file=("taught.jsonl", content), purpose="fine-tune")
    work_off(stack)
    job = client.fine_tuning.jobs.create(
        model="tiny-base", training_file=file.id, hyperparameters={"n_epochs": 1, "batch_size": 16}
    )
    with at_home(stack):
        supervision.work_off("0", threading.Event())
    job = client.fine_tuning.jobs.retrieve(job.id)
    assert (job.status, job.error) == ("succeeded", None)
    assert job.trained_tokens
    assert job.fine_tuned_model in [one.id for one in client.models.list()]
    answer = client.chat.completions.create(
        model=str(job.fine_tuned_model), messages=[{"role": "user", "content": "What is 2 and 2?"}], max_tokens=8
    )
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens > 0
    assert client.fine_tuning.jobs.list_events(job.id).data
    assert client.fine_tuning.jobs.checkpoints.list(job.id).data
    with httpx.Client(base_url=stack.url, cookies={"sid": stack.owner.cookie}) as browser:
        recipe = browser.get(f"/projects/{stack.project_id}/recipe").text
    assert "holds one file that a program sent" in recipe, "whoever trains in the browser next is told"


def test_a_file_that_teaches_nothing_says_why(stack: Stack) -> None:
    key = key_of(stack, scopes=["read", "train"])
    client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key=key, max_retries=0)
    broken = client.files.create(file=("broken.jsonl", b"{}\n{}\n"), purpose="fine-tune")
    work_off(stack)
    told = client.files.retrieve(broken.id)
    assert told.status == "error"
    assert told.status_details
    client.files.delete(broken.id)
    with stack.client(key) as http:
        for form, files, param in (
            ({"purpose": "batch"}, {"file": ("a.jsonl", b"{}")}, "purpose"),
            ({"purpose": "fine-tune"}, None, "file"),
            ({"purpose": "fine-tune"}, {"file": ("a.jsonl", b"")}, "file"),
            (
                {"purpose": "fine-tune", "expires_after[seconds]": "9"},
                {"file": ("a.jsonl", b"{}")},
                "expires_after",
            ),
        ):
            answer = http.post("/v1/files", data=form, files=files)
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["param"] == param
        foreign = {"purpose": "fine-tune", "project_id": "a" * 20}
        assert http.post("/v1/files", data=foreign, files={"file": ("a.jsonl", b"{}")}).status_code == 404
    with stack.client() as http:
        answer = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", b"{}")})
        assert answer.status_code == 403
    with inside(stack) as session:
        (version_id,) = session.scalars(select(DatasetVersion.id).where(DatasetVersion.number == 1))
    with pytest.raises(openai.BadRequestError, match="kept"):
        client.files.delete(f"file-{version_id}")
