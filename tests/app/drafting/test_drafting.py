"""Documents cut into pieces, drafted by a real HTTP endpoint, reviewed, and taken over as a source."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest
from sqlalchemy import select

from app.core.config import get_settings
from app.core.db import reading, transaction
from app.core.errors import Invalid
from app.datasets import service as datasets
from app.datasets.models import SourceFile
from app.drafting import asking, service
from app.drafting.chunking import Section, chunks, count_tokens
from app.drafting.models import Draft, DraftEndpoint, Drafting
from app.externals import asking as outside
from app.externals.asking import Endpoint as Outside
from tests.visitors import browser_of, make_person, make_project
from worker.tasks import datasets as tasks
from worker.tasks import drafts as work

PAGES = [
    ("handbook", "Stove", "Light the stove with a match. Wait two minutes."),
    ("handbook", "Oven", "Der Ofen braucht zehn Minuten. Dann ist er heiß."),
    ("menu", "", "Soup is served at noon."),
]


class Endpoint(ThreadingHTTPServer):
    """Answers as OpenAI does, with what the test put into `answers`; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Asked)
        self.asked: list[tuple[str, dict]] = []
        self.answers: list[tuple[int, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Asked(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append((self.headers.get("authorization", ""), body))  # type: ignore[attr-defined]
        status, text = self.server.answers.pop(0)  # type: ignore[attr-defined]
        self.send_response(status)
        self.end_headers()
        said = {"choices": [{"message": {"content": text}}]} if status == 200 else {"error": {"message": text}}
        self.wfile.write(json.dumps(said).encode())

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("GPT_BUILDER_FETCH_NETWORKS", '["127.0.0.0/8"]')
    monkeypatch.setattr(outside, "ASK_AGAIN_S", 0)
    get_settings.cache_clear()
    server = Endpoint()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def ana(app):
    person = make_person("Ana", "owner")
    browser = browser_of(app, person)
    browser.person, browser.project = person, make_project(person.workspace_id)
    return browser


def bring(ana) -> str:
    rows = [{"document": d, "place": "", "heading": h, "text": t} for d, h, t in PAGES]
    with transaction() as session:
        text = "\n".join(map(json.dumps, rows))
        file = datasets.add_text(session, ana.person.actor, project_id=ana.project, text=text, name="kitchen")
        file.licence = "our own"
    tasks.import_file(file.id)
    return file.id


def post(ana, url: str, /, **data: str) -> str:
    answer = ana.post(url, data=data)
    assert answer.status_code == 303, answer.text[-1500:]
    return answer.headers["location"]


def pair(question: str, answer: str) -> str:
    return json.dumps([{"question": question, "answer": answer}])


def test_pieces_end_where_the_document_does():
    long = " ".join(f"This is sentence number {i}." for i in range(60))
    found = list(chunks([Section("a", "1", "One", f"Short.\n\n{long}"), Section("a", "2", "Two", "Other.")], 60, 12))
    assert all(c.tokens <= 60 and c.tokens == count_tokens(c.text) for c in found)
    assert [c.heading for c in found].count("Two") == 1, "no piece crosses a heading"
    assert found[0].text.startswith("Short.\n\nThis is sentence number 0. This is")
    assert all(c.text.endswith(".") for c in found), "sentences stay whole"
    for before, after in pairwise(found[:-1]):
        shared = after.text.split(". ")[0]
        assert before.text.endswith(f"{shared}. This is sentence number {int(shared.split()[-1]) + 1}."), (
            before,
            after,
        )
    together = " ".join(c.text for c in found)
    assert all(f"number {i}." in together for i in range(60)), "nothing is lost"
    assert [c.tokens for c in chunks([Section("a", "", "", "word " * 100)], 40, 8)] == [40, 40, 20]


@pytest.mark.parametrize(
    ("said", "pairs"),
    [
        (pair("Why?", "So."), [("Why?", "So.")]),
        ('Sure!\n```json\n[{"question": "a", "answer": "b"}, {"question": "", "answer": "c"}]\n```', [("a", "b")]),
        ("Q: One?\nA: Yes.\n\n2. Q: Two?\nA: No,\nnever.", [("One?", "Yes."), ("Two?", "No,\nnever.")]),
        ('[{"question": 3, "answer": []}]', []),
        ("I cannot do that [sorry].", []),
        ("[" * 5000, []),
        ('Here: {"question": "one?", "answer": "[x]"}', [("one?", "[x]")]),
        ('{"question": "a", "answer": "b"}\n{"question": "c", "answer": "d"}', [("a", "b"), ("c", "d")]),
    ],
)
def test_pairs_are_read_from_what_models_write(said, pairs):
    assert asking.pairs_in(said) == pairs


def test_from_a_document_to_reviewed_rows(ana, endpoint):
    file_id = bring(ana)
    page = ana.get(f"/files/{file_id}/drafting").text
    assert "handbook › Stove" in page
    assert "There is no model to ask yet" in page
    form = {"url": endpoint.url, "model": "writer", "key": "sk-secret"}
    refused = ana.post(f"/files/{file_id}/endpoint", data={**form, "url": "http://[::1/v1"})
    assert refused.status_code == 422
    post(ana, f"/files/{file_id}/endpoint", **form)
    page = ana.get(f"/files/{file_id}/drafting").text
    assert "sk-secret" not in page
    with reading() as session:
        assert "sk-secret" not in session.scalar(select(DraftEndpoint)).sealed_key
    url = post(ana, f"/files/{file_id}/draftings", target="endpoint", pairs="2", size="64", overlap="8")
    drafting_id = url.rsplit("/", 1)[1]
    endpoint.answers = [(200, pair("How is the stove lit?", "With a match.")), *[(500, "broken")] * 4]
    work.draft(drafting_id)
    with reading() as session:
        row = session.get(Drafting, drafting_id)
        assert (row.state, row.asked) == ("failed", 1)
        assert "trouble of its own (500). It says: “broken”." in row.error
    assert "Go on" in ana.get(url).text
    key, asked = endpoint.asked[0]
    assert (key, asked["model"]) == ("Bearer sk-secret", "writer")
    assert "Light the stove with a match." in asked["messages"][0]["content"]
    assert "language of the passage" in asked["messages"][0]["content"]

    post(ana, f"{url}/resume")
    endpoint.answers = [(200, pair("Wie lange braucht der Ofen?", "Zehn Minuten.")), (200, "Sorry, I cannot.")]
    work.draft(drafting_id)
    assert "Light the stove" not in endpoint.asked[-2][1]["messages"][0]["content"], "it goes on after what was asked"
    with reading() as session:
        assert session.get(Drafting, drafting_id).state == "succeeded"
        found = {d.question: d for d in session.scalars(select(Draft))}
    assert found[""].state == "unusable"
    assert found[""].answer == "Sorry, I cannot."
    refused = ana.post(f"{url}/drafts", data={"draft_id": found[""].id, "state": "approved"})
    assert refused.status_code == 422
    assert "needs a question and an answer" in refused.text
    assert ana.post(f"{url}/finish").status_code == 409, "nothing is used before it is approved"
    # The form as it stands on the page, with all that it sends.
    form = re.search(rf'<section [^>]*id="d-{found[""].id}".*?</section>', ana.get(f"{url}?state=unusable").text, re.S)[
        0
    ]
    sent = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form))
    sent |= {"state": "approved", "question": "When is soup?", "answer": "At noon."}
    assert post(ana, f"{url}/drafts", **sent).startswith(f"{url}?state=unusable")
    post(ana, f"{url}/drafts", draft_id=str(found["How is the stove lit?"].id), state="rejected")
    post(ana, f"{url}/documents", document="handbook")
    assert "Use 2 approved drafts" in ana.get(url).text
    post(ana, f"{url}/finish")
    with reading() as session:
        made = session.scalar(select(SourceFile).where(SourceFile.origin == "drafted"))
    assert (made.derived_from, made.licence, made.filename) == (file_id, "our own", "Drafted from kitchen.jsonl")
    rows = [json.loads(line) for line in datasets.original_path(made).read_text().splitlines()]
    assert [(r["question"], r["document"]) for r in rows] == [
        ("Wie lange braucht der Ofen?", "handbook"),
        ("When is soup?", "menu"),
    ]
    tasks.import_file(made.id)
    with reading() as session:
        detected = session.get(SourceFile, made.id)
        assert (detected.is_mapping_confirmed, detected.mapping["prompt"]) == (True, "{question}")


def test_pieces_as_plain_text(ana):
    file_id = bring(ana)
    post(ana, f"/files/{file_id}/chunks", size="64", overlap="8")
    with reading() as session:
        made = session.scalar(select(SourceFile).where(SourceFile.origin == "chunked"))
    tasks.import_file(made.id)
    with reading() as session:
        made = session.get(SourceFile, made.id)
        assert (made.rows, made.mapping["shape"], made.is_mapping_confirmed) == (3, "text", True)


def test_private_addresses_and_other_peoples_keys_are_safe(ana):
    bring(ana)
    with pytest.raises(Invalid, match="private address"):
        asking.ask(Outside("http://127.0.0.1:9/v1", "m"), "hello", lambda: True)
    with transaction() as session:
        give = {"url": "https://api.example.org/v1", "model": "m"}
        kept = service.set_endpoint(session, ana.person.actor, ana.project, **give, key="k1").sealed_key
        assert service.set_endpoint(session, ana.person.actor, ana.project, **give, key="").sealed_key == kept
        moved = service.set_endpoint(
            session, ana.person.actor, ana.project, url="https://elsewhere.example.org/v1", model="m", key=""
        )
        assert moved.sealed_key == "", "a key is not sent to another address"
        for url in ("ftp://x/v1", "https://user:secret@api.example.org/v1", "api.example.org"):
            with pytest.raises(Invalid):
                service.set_endpoint(session, ana.person.actor, ana.project, url=url, model="m", key="k")
