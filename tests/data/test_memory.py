"""Where the images of a run lie, and what is said about it."""

import pytest

from vitlab.config.schema import RULES
from vitlab.core.errors import UserError
from vitlab.data.memory import decide_in_memory

MIB = 2**20


@pytest.mark.parametrize(
    ("asked", "needed", "free", "in_memory", "why"),
    [
        ("auto", 100 * MIB, 200 * MIB, True, "100 MiB of 200 MiB free; auto"),
        (
            "auto",
            100 * MIB,
            199 * MIB,
            False,
            "100 MiB would not fit in half of the 199 MiB free on cpu; auto",
        ),
        ("auto", 100 * MIB, None, True, "100 MiB; auto"),
        (True, 100 * MIB, 100 * MIB, True, "100 MiB of 100 MiB free"),
        (True, 100 * MIB, None, True, "100 MiB"),
        (False, 1536 * MIB, 2**40, False, "1.5 GiB in all; data.in_memory=false"),
    ],
)
def test_what_is_asked_for_and_what_fits(asked, needed, free, in_memory, why):
    assert decide_in_memory(asked, needed=needed, free=free, device="cpu") == (in_memory, why)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"need 200\.0 GiB and cuda has 79\.5 GiB free.*in_memory=false"):
        decide_in_memory(True, needed=200 * 2**30, free=int(79.5 * 2**30), device="cuda")


def test_the_rules_of_the_keys():
    for key, right, wrong in (
        ("in_memory", (True, False, "auto"), (1, None, "yes")),
        ("cache", ("data/cache", None), (1, "", True)),
        ("num_workers", (None, 0, 16), (-1, True, 1.5)),
    ):
        rule = RULES[f"data.{key}"]
        assert all(rule.accepts(value) for value in right), key
        assert not any(rule.accepts(value) for value in wrong), key
