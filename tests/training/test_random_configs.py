"""Random configs train, and are loaded and resumed: a few of those of ``python -m tests.properties``."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.properties import composing_once, train_and_load
from tests.random_lines import Material, lines


@pytest.mark.slow
def test_what_a_config_accepts_trains_and_is_loaded_as_it_was(tmp_path: Path) -> None:
    material, outcomes = Material.make(tmp_path), []

    @settings(
        max_examples=30,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(lines(material), st.integers(0, 3))
    def check(given: list[str], lot: int) -> None:
        with TemporaryDirectory() as work:
            outcomes.append(train_and_load(given, Path(work), resumes=lot == 0).kind)

    with composing_once():
        check()
    # Else the others would say little of what is accepted.
    assert outcomes.count("trained") >= len(outcomes) / 2
