"""context_worker.capabilities: what is given up is gone, in every set, for good."""

from __future__ import annotations

import os

import pytest

from context_worker import capabilities, linux
from tests.in_child import in_child


def test_all_are_dropped() -> None:
    def child() -> dict[str, int]:
        linux.unshare(linux.CLONE_NEWUSER)
        capabilities.drop_all()
        return capabilities.of_process()

    sets = in_child(child)
    assert set(sets) == {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}
    assert not any(sets.values())


def test_the_launcher_s_are_kept_and_can_be_dropped_later() -> None:
    def child() -> tuple[dict[str, int], dict[str, int]]:
        linux.unshare(linux.CLONE_NEWUSER)
        capabilities.keep(capabilities.LAUNCHER_KEEPS)
        kept = capabilities.of_process()
        capabilities.drop_all()
        return kept, capabilities.of_process()

    kept, dropped = in_child(child)
    mask = sum(1 << number for number in capabilities.LAUNCHER_KEEPS)
    assert kept["CapEff"] == kept["CapPrm"] == kept["CapBnd"] == mask
    assert not any(dropped.values())


def test_they_do_not_come_back() -> None:
    def child() -> None:
        linux.unshare(linux.CLONE_NEWUSER)
        capabilities.drop_all()
        with pytest.raises(PermissionError):
            linux.capset(1, 1, 0)
        with pytest.raises(PermissionError):
            linux.prctl(linux.PR_SET_SECUREBITS, 0)

    in_child(child)


@pytest.mark.skipif(os.geteuid() != 0, reason="it is about root")
def test_root_s_bounding_set_goes_without_a_namespace_too() -> None:
    def child() -> dict[str, int]:
        capabilities.drop_all()
        return capabilities.of_process()

    assert not any(in_child(child).values())


def test_who_has_none_is_left_alone() -> None:
    def child() -> dict[str, int]:
        linux.capset(0, 0, 0)
        capabilities.drop_all()
        return capabilities.of_process()

    sets = in_child(child)
    assert not sets["CapEff"] and not sets["CapPrm"]


def test_the_last_capability_is_the_kernel_s() -> None:
    with open("/proc/sys/kernel/cap_last_cap") as file:
        assert capabilities.last_capability() == int(file.read())
