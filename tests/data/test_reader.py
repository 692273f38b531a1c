"""Worker processes: what they read, how they end, and that a signal is not theirs to obey."""

import os
import signal
import subprocess
import time

import numpy as np
import pytest
import torch

from tests.data.helpers import save
from vitlab.core.errors import UserError
from vitlab.data.decode import ImageFiles, LazyImages
from vitlab.data.reader import StreamReader

PLAN = torch.arange(24).view(6, 4)


class Numbers(LazyImages):
    """Images that hold their number; asked for image ``fatal``, the process that reads dies."""

    shape = (24, 1, 2, 2)

    def __init__(self, fatal=None):
        self.fatal = fatal

    def __getitem__(self, rows):
        if self.fatal in rows:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.broadcast_to(rows.astype(np.uint8)[:, None, None, None], (len(rows), 1, 2, 2)).copy()


def stream(images, num_workers=2):
    rows = torch.arange(24)
    return StreamReader(images, rows * 10, rows, num_workers=num_workers, pin_memory=False)


def workers(reader):
    return list(reader._loader._iterator._workers)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_come_in_the_order_of_the_plan(num_workers):
    reader = stream(Numbers(), num_workers)
    for plan in (PLAN, PLAN.flip(0), PLAN[4:], PLAN[:0]):  # the workers of the first serve the others
        found = list(reader(plan))
        assert [images[:, 0, 0, 0].tolist() for images, _ in found] == plan.tolist()
        assert [labels.tolist() for _, labels in found] == (plan * 10).tolist()
        assert all(images.dtype == torch.uint8 for images, _ in found)
        assert all(labels.dtype == torch.int64 for _, labels in found)
    reader.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_file_is_named_without_a_traceback(tmp_path, num_workers):
    paths = [save(tmp_path / f"{i}.png", (i, 0, 0)) for i in range(24)]
    reader = stream(ImageFiles(paths, (4, 4), 3, None), num_workers)
    assert [labels.tolist() for _, labels in reader(PLAN)] == (PLAN * 10).tolist()
    paths[13].write_bytes(b"x")
    batches = reader(PLAN)
    for _ in range(3):
        next(batches)
    with pytest.raises(UserError, match=r"^1 file cannot be read.*\n.*13\.png") as error:
        next(batches)
    assert "Traceback" not in str(error.value)
    reader.close()


def test_a_worker_that_is_killed_is_said_plainly():
    reader = stream(Numbers(fatal=14))
    with pytest.raises(UserError, match=r"process that reads images was killed(.|\n)*data\.num_workers"):
        list(reader(PLAN))
    reader.close()


def test_workers_outlive_the_signals_of_others_and_end_with_their_feed():
    reader = stream(Numbers())
    batches = reader(PLAN)
    next(batches)
    processes = workers(reader)
    pids = [str(process.pid) for process in processes]
    # As a terminal does, and a scheduler: from another process, to all; and at once, before the second
    # worker has read anything.
    for name in ("INT", "TERM", "TERM"):
        subprocess.run(["/bin/kill", f"-{name}", *pids], check=True)
    time.sleep(0.3)
    assert all(process.is_alive() for process in processes)
    assert len(list(batches)) == 5
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []), "the parent listens as before"
    processes[0].terminate()  # the parent's own is obeyed
    processes[0].join(5)
    assert processes[0].exitcode == 0
    reader.close()
    del batches
    for process in processes:
        process.join(5)
        assert not process.is_alive()
