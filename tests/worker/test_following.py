"""A child that dies before it has read its order leaves its own words behind, not a broken pipe."""

from typing import Any

from worker.following import obeyed


def test_one_that_dies_at_once_is_told_by_its_error_output() -> None:
    def tell(_: dict[str, Any]) -> None:
        """Nothing comes."""

    unused: Any = None
    order = "x" * 2**20  # more than a pipe holds
    outcome = obeyed(unused, ["json.tool", "/no/such/file"], order, {}, "task", tell)
    assert outcome.last == {}
    assert outcome.returncode != 0
    assert "No such file" in outcome.trace
