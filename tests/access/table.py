"""Who may use which route. Every route needs an entry here; the test beside this file tries each with everybody."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

Kind = Literal["public", "signed_in", "role", "key"]


@dataclass(frozen=True)
class Rule:
    """`need` is the least role. `form` and `json` are a good body, with {names} of the world's ids in its texts;
    `body_ids` are the names of those ids in it, each of which must belong to the asker."""

    kind: Kind = "role"
    need: str = "viewer"
    form: dict[str, Any] = field(default_factory=dict)
    json: dict[str, Any] | None = None
    body_ids: tuple[str, ...] = ()
    files: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    query: str = ""


def public(**more: Any) -> Rule:
    """For everybody, signed in or not."""
    return Rule("public", **more)


def signed_in(**more: Any) -> Rule:
    """For every signed-in person; it shows only what is theirs."""
    return Rule("signed_in", **more)


def viewer(**more: Any) -> Rule:
    return Rule(need="viewer", **more)


def annotator(**more: Any) -> Rule:
    return Rule(need="annotator", **more)


def editor(**more: Any) -> Rule:
    return Rule(need="editor", **more)


def owner(**more: Any) -> Rule:
    return Rule(need="owner", **more)


def api_key(**more: Any) -> Rule:
    """For API keys; cookies count for nothing."""
    return Rule("key", **more)


INVITE = {"workspace_id": "{workspace_id}", "role": "viewer", "email": ""}

TUS = {"Tus-Resumable": "1.0.0"}
TUS_BODY = "application/offset+octet-stream"

TABLE: dict[str, Rule] = {
    # core
    "GET /static/{version}/{name:path}": public(),
    "GET /favicon.ico": public(),
    "POST /theme": public(form={"theme": "dark"}),
    "GET /health": public(),
    "GET /system": signed_in(),
    # accounts
    "GET /": public(),
    "GET /setup": public(),
    "POST /setup": public(),
    "GET /sign-in": public(),
    "POST /sign-in": public(),
    "POST /sign-out": public(),
    "GET /join": public(),
    "POST /join": public(),
    "GET /reset": public(),
    "POST /reset": public(),
    "GET /welcome": signed_in(),
    "GET /account": signed_in(),
    "POST /account/name": signed_in(form={"name": "Ana Maria"}),
    "POST /account/password": signed_in(form={"current": "no", "password": "tulip engine harbour"}),
    "POST /account/sign-outs": signed_in(),
    "GET /members": viewer(query="workspace={workspace_id}"),
    "POST /members/invitations": owner(form=INVITE, body_ids=("workspace_id",)),
    "POST /invitations/{invitation_id}/withdraw": owner(),
    "POST /members/{member_id}/role": owner(form={"role": "viewer"}),
    "POST /members/{member_id}/remove": owner(),
    "POST /members/{member_id}/reset-link": owner(),
    "GET /audit": owner(query="workspace={workspace_id}"),
    # the page of components: not there outside of development
    "GET /ui": public(),
    "GET /ui/curve.json": public(),
    # projects and overview
    "GET /projects": signed_in(),
    "GET /projects/new": signed_in(),
    "POST /projects/new": editor(
        form={"name": "Soup", "template": "free", "workspace_id": "{workspace_id}"}, body_ids=("workspace_id",)
    ),
    "GET /projects/{project_id}": viewer(),
    "GET /projects/{project_id}/refine": viewer(),
    "GET /projects/{project_id}/journey": viewer(),
    "GET /projects/{project_id}/monitor": viewer(),
    "POST /projects/{project_id}/name": editor(form={"name": "Soup"}),
    "POST /projects/{project_id}/delete": owner(),
    "POST /projects/{project_id}/restore": owner(),
    "GET /projects/{project_id}/objective": viewer(),
    "POST /projects/{project_id}/objective": editor(form={"task": "Answer."}),
    "POST /projects/{project_id}/objective/preview": viewer(form={"task": "Answer."}),
    # recipe and runs
    "GET /projects/{project_id}/recipe": viewer(),
    "POST /projects/{project_id}/recipe": editor(form={"preset": "quick"}),
    "POST /projects/{project_id}/recipe/folder": editor(form={"folder": "/nowhere"}),
    "POST /projects/{project_id}/recipe/hub": editor(form={"ref": "../..", "revision": "main"}),
    "GET /projects/{project_id}/recipe/bases": viewer(),
    "POST /projects/{project_id}/recipe/bases/{base_id}/download": editor(),
    "POST /projects/{project_id}/recipe/bases/{base_id}/cancel": editor(),
    "GET /projects/{project_id}/recipe/tokenizer": viewer(),
    "GET /projects/{project_id}/recipe/costs": viewer(),
    "GET /projects/{project_id}/recipe/rates": viewer(),
    "POST /projects/{project_id}/recipe/probes/{probe_id}/use": editor(),
    "POST /projects/{project_id}/recipe/probes/{probe_id}/stop": editor(),
    "GET /projects/{project_id}/recipe.yaml": viewer(),
    "POST /projects/{project_id}/recipe/import": editor(files={"file": b"method: lora"}),
    "GET /projects/{project_id}/recipe/models": viewer(),
    "GET /projects/{project_id}/recipes": viewer(),
    "POST /projects/{project_id}/recipes": editor(form={"name": "Short and warm"}),
    "GET /projects/{project_id}/recipes/compare": viewer(query="one=run:{run_id}&two=saved:{saved_id}"),
    "POST /projects/{project_id}/recipes/{saved_id}/use": editor(),
    "POST /projects/{project_id}/recipes/{saved_id}/name": editor(form={"name": "Long and cool"}),
    "POST /projects/{project_id}/recipes/{saved_id}/delete": editor(),
    "POST /projects/{project_id}/recipes/{saved_id}/restore": editor(),
    "POST /projects/{project_id}/recipe/model": editor(form={"model_id": "{model_id}"}, body_ids=("model_id",)),
    "GET /projects/{project_id}/runs": viewer(),
    "POST /projects/{project_id}/runs": editor(form={"client_request_id": "one-click"}),
    "GET /projects/{project_id}/runs/list": viewer(),
    "GET /runs/{run_id}": viewer(),
    "GET /runs/{run_id}/events": viewer(),
    "GET /runs/{run_id}/metrics.json": viewer(),
    "GET /runs/{run_id}/log.txt": viewer(),
    "GET /runs/{run_id}/values.csv": viewer(),
    "GET /runs/{run_id}/recipe.yaml": viewer(),
    # searches
    "GET /projects/{project_id}/searches": viewer(),
    "POST /projects/{project_id}/searches": editor(form={"way": "grid", "points": "x"}),
    "GET /projects/{project_id}/searches/new": editor(),
    "GET /searches/{search_id}": viewer(),
    "GET /searches/{search_id}/body": viewer(),
    "POST /searches/{search_id}/stop": editor(),
    "POST /runs/{run_id}/pause": editor(),
    "POST /runs/{run_id}/resume": editor(),
    "POST /runs/{run_id}/stop": editor(),
    "POST /runs/{run_id}/discard": editor(),
    "POST /runs/{run_id}/restart": editor(),
    "POST /runs/{run_id}/cancel": editor(),
    "POST /runs/{run_id}/adjust": editor(form={"name": "epochs", "value": "4"}),
    "POST /runs/{run_id}/again": editor(),
    "POST /runs/{run_id}/clone": editor(),
    "POST /runs/{run_id}/notices": editor(form={"channel": "email"}),
    "POST /runs/{run_id}/notices/{notice_id}/remove": editor(),
    "POST /runs/{run_id}/queue": editor(form={"do": "later"}),
    "GET /projects/{project_id}/runs/compare": viewer(query="run={run_id}"),
    # deployments
    "GET /projects/{project_id}/deploy": viewer(),
    "POST /projects/{project_id}/deploy/keys": owner(form={"name": "inbox", "scopes": "chat"}),
    "POST /projects/{project_id}/deploy/try": annotator(form={"model": "{model_name}", "question": "How long?"}),
    "POST /keys/{key_id}/revoke": owner(),
    "GET /v1/models": api_key(),
    "GET /v1/models/{model_name:path}": api_key(),
    "POST /v1/chat/completions": api_key(
        json={"model": "{model_name}", "messages": [{"role": "user", "content": "?"}]}, body_ids=("model_name",)
    ),
    "POST /v1/completions": api_key(json={"model": "{model_name}", "prompt": "Soup is"}, body_ids=("model_name",)),
    "POST /v1/embeddings": api_key(json={"model": "{model_name}", "input": "Soup"}, body_ids=("model_name",)),
    "GET /v1/files": api_key(),
    "POST /v1/files": api_key(
        form={"purpose": "fine-tune", "project_id": "{project_id}"}, files={"file": b"{}"}, body_ids=("project_id",)
    ),
    "DELETE /v1/files/{version_id}": api_key(),
    "GET /v1/files/{version_id}": api_key(),
    "GET /v1/files/{version_id}/content": api_key(),
    "POST /v1/fine_tuning/jobs": api_key(
        json={"model": "starter", "training_file": "file-{version_id}"}, body_ids=("version_id",)
    ),
    "GET /v1/fine_tuning/jobs": api_key(),
    "GET /v1/fine_tuning/jobs/{run_id}": api_key(),
    "GET /v1/fine_tuning/jobs/{run_id}/events": api_key(),
    "GET /v1/fine_tuning/jobs/{run_id}/checkpoints": api_key(),
    "POST /v1/fine_tuning/jobs/{run_id}/cancel": api_key(),
    "POST /v1/fine_tuning/jobs/{run_id}/pause": api_key(),
    "POST /v1/fine_tuning/jobs/{run_id}/resume": api_key(),
    # exports
    "GET /projects/{project_id}/exports": viewer(),
    "GET /projects/{project_id}/exports/live": viewer(),
    "POST /projects/{project_id}/exports": editor(
        form={"model": "model:{model_id}", "kind": "merged"}, body_ids=("model_id",)
    ),
    "POST /exports/{export_id}/cancel": editor(),
    "POST /exports/{export_id}/retry": editor(),
    "POST /exports/{export_id}/delete": editor(),
    "GET /exports/{export_id}/files/{name}": viewer(),
    "GET /exports/{export_id}/download": viewer(),
    # demos
    "POST /demos": editor(form={"demo": "shakespeare", "workspace_id": "{workspace_id}"}, body_ids=("workspace_id",)),
    "GET /projects/{project_id}/demo": viewer(),
    # evaluations
    "GET /projects/{project_id}/evaluate": viewer(),
    "POST /projects/{project_id}/evaluations": editor(
        form={
            "model_id": "{model_id}",
            "row_limit": "20",
            "external_id": "{external_id}",
            "agreed": "{model_id}/{external_id}/20",
        },
        body_ids=("model_id", "external_id"),
    ),
    "GET /evaluations/{evaluation_id}": viewer(),
    "GET /evaluations/{evaluation_id}/progress": viewer(),
    "POST /evaluations/{evaluation_id}/cancel": editor(),
    "POST /evaluations/{evaluation_id}/retry": editor(),
    # chat
    "GET /projects/{project_id}/chat": viewer(),
    "GET /projects/{project_id}/chats": viewer(query="q=soup"),
    "POST /projects/{project_id}/chat": annotator(
        form={"message": "How long?", "model": "model:{model_id}"}, body_ids=("model_id",)
    ),
    "GET /chats/{chat_id}": viewer(),
    "POST /chats/{chat_id}": annotator(
        form={"message": "And rice?", "model": "model:{model_id}"}, body_ids=("model_id",)
    ),
    "POST /chats/{chat_id}/settings": annotator(form={"temperature": "0.2"}),
    "POST /chats/{chat_id}/title": annotator(form={"title": "Soup"}),
    "POST /chats/{chat_id}/delete": annotator(),
    "POST /chats/{chat_id}/restore": annotator(),
    "GET /chats/{chat_id}/export": viewer(),
    "POST /chats/messages/{message_id}/edit": annotator(form={"message": "How long does rice cook?"}),
    "POST /chats/messages/{message_id}/choose": annotator(),
    "POST /chats/messages/{message_id}/vote": annotator(),
    "POST /chats/messages/{message_id}/again": annotator(),
    "POST /chats/messages/{message_id}/stop": annotator(),
    "POST /chats/messages/{message_id}/feedback": annotator(form={"thumb": "1"}),
    "POST /chats/messages/{message_id}/test": annotator(),
    "POST /tests/{test_id}": annotator(form={"ideal": "Two hours."}),
    "POST /tests/{test_id}/delete": annotator(),
    "POST /chats/messages/{message_id}/correction": annotator(form={"correction": "Two hours."}),
    "POST /projects/{project_id}/corrections": editor(),
    "GET /chats/messages/{message_id}/events": viewer(),
    # datasets
    "POST /uploads": editor(query="project_id={project_id}", headers=TUS | {"Upload-Length": "9"}),
    "PATCH /uploads/{upload_id}": editor(headers=TUS | {"Content-Type": TUS_BODY, "Upload-Offset": "0"}),
    "DELETE /uploads/{upload_id}": editor(headers=TUS),
    "POST /uploads/{upload_id}/discard": editor(),
    "POST /projects/{project_id}/files": editor(),
    "POST /projects/{project_id}/paste": editor(form={"text": "question,answer"}),
    "POST /projects/{project_id}/remote": editor(form={"kind": "web", "address": "https://example.org/a.csv"}),
    "POST /remote/{source_id}/confirm": editor(form={"file": "a.csv"}),
    "POST /remote/{source_id}/retry": editor(),
    "POST /remote/{source_id}/cancel": editor(),
    "POST /remote/{source_id}/delete": editor(),
    "GET /projects/{project_id}/typed": editor(),
    "POST /projects/{project_id}/typed": editor(form={"question": "Who?", "answer": "Me"}),
    "GET /files/{file_id}/typed": editor(),
    "POST /files/{file_id}/typed": editor(form={"question": "Who?", "answer": "Me"}),
    "POST /projects/{project_id}/samples": editor(form={"sample": "support"}),
    "GET /projects/{project_id}/data": viewer(),
    "GET /projects/{project_id}/data/live": viewer(),
    "GET /files/{file_id}": viewer(),
    "GET /files/{file_id}/live": viewer(),
    "GET /files/{file_id}/findings": viewer(query="code=json.invalid"),
    "POST /files/{file_id}/mapping/preview": viewer(form={"shape": "pair"}),
    "POST /files/{file_id}/mapping": editor(form={"shape": "pair"}),
    "POST /files/{file_id}/detections": editor(form={"format": "pair"}),
    "POST /files/{file_id}/repairs": editor(form={"code": "turn.empty", "repair": "out"}),
    "POST /files/{file_id}/reading": editor(form={"short_rows": "skip"}),
    "POST /files/{file_id}/retry": editor(),
    "POST /files/{file_id}/cancel": editor(),
    "POST /files/{file_id}/delete": editor(),
    "POST /files/{file_id}/restore": editor(),
    "GET /projects/{project_id}/rows": viewer(),
    "GET /projects/{project_id}/rows/live": viewer(),
    "GET /projects/{project_id}/rows/{number}": viewer(),
    "POST /projects/{project_id}/rows/{number}": editor(form={"key": "1", "seen": "x"}),
    "GET /projects/{project_id}/rows/changes": viewer(),
    "POST /projects/{project_id}/rows/changes": editor(form={"kind": "delete", "scope": "all"}),
    "POST /projects/{project_id}/rows/changes/{change_id}/undo": editor(),
    "POST /projects/{project_id}/rows/changes/{change_id}/redo": editor(),
    "POST /projects/{project_id}/rows/prepare": editor(),
    "GET /versions/{version_id}/rows/{number}": viewer(),
    "GET /projects/{project_id}/statistics": viewer(),
    "GET /versions/{version_id}/statistics": viewer(),
    "GET /versions/{version_id}/rows": viewer(),
    "GET /versions/{version_id}/rows/live": viewer(),
    # external models
    "GET /projects/{project_id}/external-models": viewer(),
    "POST /projects/{project_id}/external-models": editor(form={"url": "http://127.0.0.1:9/v1", "model": "m"}),
    "POST /projects/{project_id}/external-models/{external_id}/try": editor(),
    "POST /projects/{project_id}/external-models/{external_id}/key": editor(form={"key": "k"}),
    "POST /projects/{project_id}/external-models/{external_id}/remove": editor(),
    "GET /files/{file_id}/drafting": viewer(),
    "POST /files/{file_id}/endpoint": owner(form={"url": "https://api.example.org/v1", "model": "m", "key": "k"}),
    "POST /files/{file_id}/chunks": editor(form={"size": "100", "overlap": "10"}),
    "POST /files/{file_id}/draftings": editor(form={"target": "endpoint"}),
    "GET /draftings/{drafting_id}": viewer(),
    "GET /draftings/{drafting_id}/live": viewer(),
    "POST /draftings/{drafting_id}/cancel": editor(),
    "POST /draftings/{drafting_id}/resume": editor(),
    "POST /draftings/{drafting_id}/drafts": annotator(form={"draft_id": "{draft_id}", "state": "rejected"}),
    "POST /draftings/{drafting_id}/documents": annotator(form={"document": "handbook"}),
    "POST /draftings/{drafting_id}/finish": editor(),
    "GET /projects/{project_id}/sources": viewer(),
    "GET /sources/{file_id}": viewer(),
    "POST /sources/{file_id}": editor(form={"licence": "CC BY 4.0"}),
    "POST /sources/{file_id}/forget": owner(form={"name": "another.csv"}),
    "GET /projects/{project_id}/clean": viewer(),
    "GET /projects/{project_id}/clean/live": viewer(),
    "GET /projects/{project_id}/contradictions": viewer(),
    "POST /projects/{project_id}/contradictions": editor(form={"verb": "all"}),
    "GET /projects/{project_id}/clean/step": viewer(query="name=exact"),
    "POST /projects/{project_id}/clean/steps": editor(form={"step": "exact"}),
    "POST /projects/{project_id}/clean/preview": editor(form={"step": "exact"}),
    "POST /projects/{project_id}/clean/preset": editor(form={"name": "light"}),
    "POST /projects/{project_id}/clean/spare": editor(form={"step": "exact", "scope": "code", "code": "out.exact"}),
    "POST /projects/{project_id}/clean/forget": editor(form={"step": "exact"}),
    "POST /projects/{project_id}/clean/remove": editor(form={"step": "exact"}),
    "POST /projects/{project_id}/clean/all": editor(),
    "POST /projects/{project_id}/clean/undo": editor(),
    "POST /projects/{project_id}/clean/cancel": editor(),
    "POST /projects/{project_id}/clean/again": editor(),
    "POST /versions/{version_id}/cancel": editor(),
    "POST /projects/{project_id}/split": editor(form={"test_percent": "10"}),
    "POST /projects/{project_id}/versions": editor(),
    "GET /versions/{version_id}": viewer(),
    "GET /versions/{version_id}/live": viewer(),
    "GET /versions/{version_id}/manifest.json": viewer(),
    "GET /versions/{version_id}/download": viewer(),
    "GET /versions/{version_id}/card": viewer(),
    "GET /versions/{version_id}/card.md": viewer(),
    "POST /versions/{version_id}/combinations": editor(form={"operation": "sample", "rows": "2"}),
    "POST /versions/{version_id}/comparisons": viewer(
        form={"other": "{earlier_version_id}"}, body_ids=("earlier_version_id",)
    ),
    "GET /comparisons/{comparison_id}": viewer(),
    "GET /comparisons/{comparison_id}/live": viewer(),
}


def routes_of(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Every (method, path) that the application answers; HEAD and OPTIONS follow GET."""
    for route in iter_route_contexts(app.routes):
        for method in sorted(route.methods or {"ANY"}):
            if route.path and method not in ("HEAD", "OPTIONS"):
                yield method, route.path
