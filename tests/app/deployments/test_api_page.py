"""The publish page against the real API: its programs run as they are, and its own question is answered."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from app.contracts.generation import TokenEvent
from app.core import config, markdown
from app.core.errors import Invalid
from app.core.templates import render_text
from app.deployments.snippets import snippets
from app.drafting import asking
from app.projects.models import Project
from tests.app.deployments.conftest import Stack
from tests.visitors import Person


@pytest.mark.parametrize("language", ["curl", "python", "javascript", "langchain"])
def test_the_programs_on_the_page_run_as_they_are(stack: Stack, tmp_path: Path, language: str) -> None:
    question = 'I\'ve "read" it:\n$HOME \\ `ls` ${1} {0} – why?!'
    program = next(one for one in snippets(f"{stack.url}/v1", stack.model, question) if one.key == language)
    assert "I’ve ”read” it: $HOME / `ls` ${1} {0} – why?!" in program.text
    if language == "langchain" and find_spec("langchain_openai") is None:
        pytest.skip("langchain-openai is not installed here; the clients that `make clients` installs run it")
    path = tmp_path / {"curl": "ask.sh", "javascript": "ask.mjs"}.get(language, "ask.py")
    path.write_text(program.text)
    runner = {"curl": "bash", "javascript": "node"}.get(language, sys.executable)
    try:
        done = subprocess.run(
            [runner, str(path)],
            env={**os.environ, "GPT_BUILDER_API_KEY": stack.key},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip(f"{runner} is not installed here")
    assert done.returncode == 0, done.stderr
    if language == "curl":
        assert json.loads(done.stdout)["choices"][0]["message"]["role"] == "assistant"
    else:
        assert done.stdout.strip()


def test_the_page_asks_the_model_too(stack: Stack) -> None:
    person: Person = stack.owner
    with httpx.Client(base_url=stack.url, cookies={"sid": person.cookie}, headers={"accept": "text/html"}) as browser:
        page = browser.get(f"/projects/{stack.project_id}/deploy").text
        assert stack.model in page
        token = page.split('name="csrf_token" value="')[1].split('"')[0]
        form = {"model": stack.model, "question": "Where is my card?", "csrf_token": token}
        answer = browser.post(f"/projects/{stack.project_id}/deploy/try", data=form, timeout=60)
    assert answer.status_code == 200
    assert 'id="answer"' in answer.text


def test_drafts_are_written_by_this_products_own_api(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT_BUILDER_FETCH_NETWORKS", '["127.0.0.0/8"]')
    config.get_settings.cache_clear()
    question = "Ask one thing about soup."  # the tiny model reads 128 tokens
    said = asking.ask(asking.Endpoint(f"{stack.url}/v1", stack.model, stack.key), question, lambda: True)
    assert isinstance(said, str)
    with pytest.raises(Invalid, match=r"did not accept the key \(401\)"):
        asking.ask(asking.Endpoint(f"{stack.url}/v1", stack.model, "wrong"), question, lambda: True)
    with pytest.raises(Invalid, match="knows no model"):
        asking.ask(asking.Endpoint(f"{stack.url}/v1", "nobody-run-9", stack.key), question, lambda: True)


def test_the_question_on_the_page_is_answered_in_the_form_of_the_chat() -> None:
    table = "| a | b |\n|---|---|\n| 1 | **2** |\n\n<script>1</script>"
    shown = render_text(
        "deployments/_try.html", answer=TokenEvent(text=table), markdown=markdown.render, project=Project(id="p"),
        model_options=[], errors={},
    ).split('id="answer"')[1]  # fmt: skip
    assert "<td><strong>2</strong></td>" in shown
    assert "|---" not in shown
    assert "<script>" not in shown
