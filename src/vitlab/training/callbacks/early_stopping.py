"""Early stopping: the end of a run that has not become better for a while."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping


class EarlyStopping(LightningEarlyStopping):
    """Stop after so many epochs without a better value; a run that resumes stops where it would have stopped.

    Args:
        monitor: ``val/accuracy``, or ``val/loss``, which in a ViT turns long before the accuracy does.
        patience: epochs, whether each is validated or not.
    """

    def __init__(self, *, monitor: str, patience: int) -> None:
        mode = "min" if monitor == "val/loss" else "max"
        super().__init__(
            monitor, patience=patience, mode=mode, check_on_train_epoch_end=True, check_finite=False
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        # The checkpoint of the last epoch was written when it had stopped.
        if self.wait_count >= self.patience:
            trainer.should_stop = True
