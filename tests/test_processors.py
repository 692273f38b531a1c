"""The numerical tests once more, on this machine computing as an older one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT

TESTS = (
    "tests/augment",
    "tests/core/test_hardware.py",
    "tests/models/test_attend.py",
    "tests/models/test_attention.py",
    "tests/models/test_drop_key.py",
    "tests/optim/test_muon.py",
    "tests/tasks",
    "tests/training/test_golden.py",
    "tests/training/test_precision.py",
)
# What each takes away is there to be taken away; both variables are read once, when a process starts.
OLDER = {
    "AVX2": ({"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}, torch.cpu._is_avx512_supported),
    "AVX512": ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, torch.cpu._is_avx512_bf16_supported),
    "AVX512_BF16": ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, torch.cpu._is_amx_tile_supported),
}


@pytest.mark.slow
@pytest.mark.parametrize("older", OLDER)
def test_the_numbers_are_right_on_an_older_processor(older: str, tmp_path: Path) -> None:
    environment, has_more = OLDER[older]
    if not has_more():
        pytest.skip(f"this processor has no more than {older}")
    run_tests(environment, tmp_path, *TESTS, "-m", "not slow")


@pytest.mark.slow
@pytest.mark.skipif(not torch.cpu._is_avx512_supported(), reason="this processor has no more than AVX2")
def test_compiled_networks_train_right_on_an_older_processor(tmp_path: Path) -> None:
    run_tests(OLDER["AVX2"][0], tmp_path, "tests/training/test_compile.py")


def run_tests(environment: dict[str, str], cache: Path, *arguments: str) -> None:
    # A cache of its own: what torch compiled for one processor corrupts the memory of a run on another.
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=ROOT,
        env=os.environ | environment | {"TORCHINDUCTOR_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]
