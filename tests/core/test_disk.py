"""What a disk refuses is found behind whatever other libraries have made of it."""

import errno

from vitlab.core.disk import disk_problem


def test_a_full_disk_is_found_behind_other_errors() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "last.ckpt")
    outer = RuntimeError("unexpected pos 64")
    outer.__context__ = full
    assert disk_problem(outer) == "the disk is full: last.ckpt"
    assert disk_problem(OSError(errno.ENOENT, "No such file")) is None


def test_a_full_disk_is_found_in_what_safetensors_says() -> None:
    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert disk_problem(ValueError(said)) == "the disk is full"


def test_errors_that_lead_back_to_each_other_end() -> None:
    one, other = RuntimeError("one"), RuntimeError("other")
    one.__cause__, other.__context__ = other, one
    assert disk_problem(one) is None
