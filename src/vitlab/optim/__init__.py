"""Optimizers, parameter groups, freezing and learning-rate schedules."""

from vitlab.optim.groups import make_optimizer, parameter_groups
from vitlab.optim.muon import Muon
from vitlab.optim.optimizers import adam, adamw, sgd

__all__ = ["Muon", "adam", "adamw", "make_optimizer", "parameter_groups", "sgd"]
