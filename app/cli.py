"""The `gpt-builder` command: starts the product and does an operator's work. Services only."""

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

app = typer.Typer(
    name="gpt-builder",
    help="Turn your own material into your own language model, on your own machines, in the browser.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


def _fail(sentence: str, code: int = 1) -> NoReturn:
    typer.secho(sentence, fg=typer.colors.RED, err=True)
    raise typer.Exit(code)


def _setup_token() -> str | None:
    import app.models  # noqa: F401
    from app.accounts.setup import setup_token
    from app.core.db import forget_engine, transaction

    with transaction() as session:
        token = setup_token(session)
    forget_engine()
    return token


def _still_opens(token: str) -> bool:
    from app.accounts import setup
    from app.core.db import forget_engine, reading

    with reading() as session:
        answer = not setup.token_problem(session, token)
    forget_engine()
    return answer


@app.command()
def up(
    host: Annotated[str | None, typer.Option(help="address to serve at; 0.0.0.0 for the whole network")] = None,
    port: Annotated[int | None, typer.Option(help="port to serve at; 0 for a free one")] = None,
) -> None:
    """Start everything on this machine and keep it running until Ctrl+C."""
    from app.supervisor.up import CannotStart, FirstVisit
    from app.supervisor.up import up as run

    try:
        run(host, port, FirstVisit(_setup_token, _still_opens))
    except CannotStart as error:
        _fail(str(error))


@app.command()
def worker(
    queue: Annotated[str, typer.Option(help="data, or train")] = "train",
) -> None:
    """Start one worker; for more machines, which share PostgreSQL, Redis and the storage URL."""
    if queue not in ("data", "train"):
        _fail(f"There is no queue {queue!r}. The queues are data and train.")
    os.execv(sys.executable, [sys.executable, "-m", "worker", "--queue", queue])  # noqa: S606


@app.command()
def upgrade() -> None:
    """Bring the database to this version; `up` does it by itself."""
    from app.core import migrations

    try:
        typer.echo(migrations.upgrade())
    except migrations.CannotUpgrade as error:
        _fail(str(error))


@app.command("setup-token")
def setup_token() -> None:
    """Print a new one-time token for the first account; the one before is worth nothing then."""
    token = _setup_token()
    if token is None:
        typer.echo("This installation has its owner already. Sign in, or ask the owner for an invitation.")
    else:
        typer.echo(f"Setup token: {token}")


@app.command()
def doctor() -> None:
    """Look at the machine and the parts, and say how to mend what is wrong."""
    from app.core.doctor import check_all

    marks = {"ok": ("ok", typer.colors.GREEN), "note": ("note", typer.colors.YELLOW), "bad": ("BAD", typer.colors.RED)}
    findings = check_all()
    for finding in findings:
        word, colour = marks[finding.level]
        typer.echo(typer.style(f"{word:<5}", fg=colour) + f"{finding.name}: {finding.found}")
        if finding.fix:
            typer.echo(f"     -> {finding.fix}")
    if any(finding.level == "bad" for finding in findings):
        raise typer.Exit(1)


@app.command()
def backup(
    target: Annotated[Path | None, typer.Argument(help="the file to write; default: in the home's backups")] = None,
    with_models: Annotated[bool, typer.Option(help="with checkpoints and base models too")] = False,
) -> None:
    """Write the database, the secrets, and all material and models into one file. May be done while running."""
    from app.core import backups

    try:
        typer.echo(backups.write(target, with_models=with_models))
    except backups.BackupError as error:
        _fail(str(error))


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(help="a file that `gpt-builder backup` wrote")],
) -> None:
    """Put a backup back, into an empty home."""
    from app.core import backups

    try:
        typer.echo(backups.restore(source))
    except backups.BackupError as error:
        _fail(str(error))


@app.command("create-user")
def create_user(
    email: Annotated[str, typer.Argument(help="used to sign in")],
    name: Annotated[str, typer.Option(prompt=True)],
    password: Annotated[str, typer.Option(prompt=True, hide_input=True, confirmation_prompt=True)],
    workspace: Annotated[str, typer.Option(help="name of the user's own workspace")] = "",
) -> None:
    """Add a user with a workspace of their own."""
    import app.models  # noqa: F401
    from app.accounts import setup
    from app.core.db import transaction
    from app.core.errors import AppError

    try:
        with transaction() as session:
            setup.create_user(
                session, name=name, email=email, password=password, workspace_name=workspace or f"{name}'s workspace"
            )
    except AppError as error:
        _fail(" ".join([error.sentence, *getattr(error, "fields", {}).values()]).strip())
    typer.echo(f"{email} can sign in now.")


@app.command("reset-link")
def reset_link(email: Annotated[str, typer.Argument(help="the address that the person signs in with")]) -> None:
    """Print the path of a page on which a person sets a new password: for owners who forgot theirs."""
    import app.models  # noqa: F401
    from app.accounts import members
    from app.core.db import transaction
    from app.core.errors import AppError

    try:
        with transaction() as session:
            token = members.reset_token_of(session, email=email)
    except AppError as error:
        _fail(error.sentence)
    typer.echo(f"Open this path in the browser within 24 hours: /reset?token={token}")


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="a recipe file, YAML or JSON, as a run's page offers it")],
    version: Annotated[Path, typer.Option(help="folder of a frozen dataset version")],
    out: Annotated[Path, typer.Option(help="folder for checkpoints and the model")],
    base: Annotated[Path | None, typer.Option(help="folder of the base model; none for a new GPT")] = None,
    overlay: Annotated[
        list[str] | None, typer.Option(help="what was trained on the base before: lora:FOLDER or layers:FOLDER")
    ] = None,
    instruction: Annotated[str, typer.Option(help="read to the model before each conversation")] = "",
    resume: Annotated[bool, typer.Option(help="go on from the newest checkpoint in --out")] = True,
) -> None:
    """Train outside the queue, as a run does: one event a line on standard output. Ctrl+C stops and keeps."""
    from app.supervisor import training

    try:
        spec, files = training.read_recipe(recipe), training.base_of(base, overlay or [])
    except training.BadRecipe as error:
        _fail(str(error))
    order = training.order_of(
        spec, version_dir=version, base=files, out_dir=out, instruction=instruction, resume=resume
    )
    raise typer.Exit(training.run(order))


def main() -> None:
    """Entry of the `gpt-builder` command."""
    app()


if __name__ == "__main__":
    main()
