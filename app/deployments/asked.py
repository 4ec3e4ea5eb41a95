"""Which model a caller's request means, and whether the caller may ask it now."""

from app.core.db import reading, transaction
from app.deployments import names
from app.deployments.access import require_tokens
from app.deployments.keys import Caller
from app.inference.targets import Target


def target_of(caller: Caller, model_id: str) -> tuple[names.Published, Target]:
    """What the model server needs. Raises TooMany for a key whose tokens are used up, NotFound for the model."""
    require_tokens(caller)
    require_model(caller, model_id)
    name_everything(caller.workspace_id)
    with reading() as session:
        return names.target_of(session, caller.actor, model_id)


def require_model(caller: Caller, model_id: str) -> None:
    """Raise NotFound for a model that the key does not open."""
    if not caller.may_use(model_id):
        raise names.not_found()


def name_everything(workspace_id: str) -> None:
    """Give the models of projects that are new their ids."""
    with reading() as session:
        is_missing = bool(names.missing_names(session, workspace_id))
    if is_missing:
        with transaction() as session:
            names.give_names(session, workspace_id)
