"""Where a run is watched and compared: TensorBoard, steps.csv, MLflow, Weights & Biases, one module each."""

from vitlab.training.trackers.build import build_trackers
from vitlab.training.trackers.tracker import Tracker

__all__ = ["Tracker", "build_trackers"]
