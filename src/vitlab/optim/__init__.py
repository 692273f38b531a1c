"""Optimizers, parameter groups, freezing and learning-rate schedules."""

from vitlab.optim.groups import make_optimizer as make_optimizer
from vitlab.optim.groups import parameter_groups as parameter_groups
from vitlab.optim.muon import Muon as Muon
from vitlab.optim.optimizers import adam as adam
from vitlab.optim.optimizers import adamw as adamw
from vitlab.optim.optimizers import sgd as sgd
