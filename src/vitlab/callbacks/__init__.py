"""When to save, what to record, what to show."""

from vitlab.callbacks.checkpointing import AtomicCheckpointIO as AtomicCheckpointIO
from vitlab.callbacks.checkpointing import Checkpointing as Checkpointing
from vitlab.callbacks.ema import EMA as EMA
from vitlab.callbacks.progress import ProgressLine as ProgressLine
from vitlab.callbacks.record import Record as Record
from vitlab.callbacks.record import StepLoss as StepLoss
from vitlab.callbacks.throughput import Throughput as Throughput
