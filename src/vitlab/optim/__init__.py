"""Optimizers, parameter groups and learning-rate schedules."""

from vitlab.optim.groups import parameter_groups as parameter_groups
from vitlab.optim.optimizers import adam as adam
from vitlab.optim.optimizers import adamw as adamw
from vitlab.optim.optimizers import sgd as sgd
