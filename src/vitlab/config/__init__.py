"""Configs: composed and checked before anything heavy is imported.

`combinations` takes what the user typed and gives back all jobs, or one UserError that names everything
wrong; `preflight` gives the configs of those that can run. The rules for single values are a table in
`schema`, the checks of values against each other are in `cross_checks`, the code that a config may name is in
`targets`.
"""

from vitlab.config.checks import check_record, lacking, make_record, read_record, to_plain
from vitlab.config.combination import Combination, combinations, preflight, report
from vitlab.config.composer import CONF, compose
from vitlab.config.schema import OPEN_NODES
from vitlab.config.targets import check_targets

__all__ = [
    "CONF",
    "OPEN_NODES",
    "Combination",
    "check_record",
    "check_targets",
    "combinations",
    "compose",
    "lacking",
    "make_record",
    "preflight",
    "read_record",
    "report",
    "to_plain",
]
