"""When to save, what to record, what to show."""

from vitlab.training.callbacks.checkpointing import AtomicCheckpointIO as AtomicCheckpointIO
from vitlab.training.callbacks.checkpointing import Checkpointing as Checkpointing
from vitlab.training.callbacks.diagnostics import Diagnostics as Diagnostics
from vitlab.training.callbacks.early_stopping import EarlyStopping as EarlyStopping
from vitlab.training.callbacks.ema import EMA as EMA
from vitlab.training.callbacks.progress import ProgressLine as ProgressLine
from vitlab.training.callbacks.record import Record as Record
from vitlab.training.callbacks.step_loss import StepLoss as StepLoss
from vitlab.training.callbacks.throughput import Throughput as Throughput
