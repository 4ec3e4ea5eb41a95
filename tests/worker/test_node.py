"""The locks of a machine's devices: a run of several holds all of them, or none."""

from contextlib import ExitStack
from pathlib import Path

from worker import node


def test_devices_are_held_all_or_none(home: Path) -> None:
    with node.device_lock("1"), ExitStack() as stack:
        assert not node.hold_devices(stack, ["0", "1"])
        with node.device_lock("0") as free:
            assert free is not None
    with ExitStack() as stack:
        assert node.hold_devices(stack, ["0", "1"])
        for device in ("0", "1"):
            with node.device_lock(device) as taken:
                assert taken is None
    with node.device_lock("0") as free:
        assert free is not None
