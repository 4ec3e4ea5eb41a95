"""Accounts: who acts, and with which role."""

from dataclasses import dataclass, field

from app.accounts.models import ROLES


@dataclass(frozen=True, slots=True)
class Actor:
    """Whoever asks: a signed-in person, or a key acting for its workspace. `roles` maps workspace id to role."""

    user_id: str | None
    email: str = ""
    name: str = ""
    roles: dict[str, str] = field(default_factory=dict)
    key_id: str | None = None
    project_id: str | None = None

    def role_in(self, workspace_id: str) -> str | None:
        """The role in a workspace; None for a stranger."""
        return self.roles.get(workspace_id)

    def may(self, workspace_id: str, need: str) -> bool:
        """Whether the role in the workspace is at least `need`."""
        role = self.roles.get(workspace_id)
        return role is not None and ROLES.index(role) >= ROLES.index(need)
