"""What one process holds while it works on a run."""

from dataclasses import dataclass

from vitlab.core.console import RunConsole
from vitlab.core.run_folder import RunFolder
from vitlab.core.signals import StopSignal
from vitlab.core.summary import Summary
from vitlab.training.callbacks import Throughput


@dataclass(frozen=True)
class Session:
    """One process's work on a run, from its start or its last checkpoint on.

    Attributes:
        screen: the terminal and train.log.
        throughput: the clock, which started with the process.
        resumed_at: the optimizer step; None for a run that starts.
    """

    folder: RunFolder
    summary: Summary
    screen: RunConsole
    stop: StopSignal
    throughput: Throughput
    resumed_at: int | None = None
