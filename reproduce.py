"""Reproduce a claim: train what is missing of its runs, compare, and say whether its figures hold.

python reproduce.py experiments/quickstart                             its own seeds
python reproduce.py experiments/frontier data.root=DIR                 images of your own disk
python reproduce.py experiments/frontier data.root=DIR --seeds 0,1,2  other seeds, or more of them
python reproduce.py experiments/recipes/vit_cifar                      published, and not yet measured here

A claim is the file claim.yaml of a study. Its runs go to outputs/claims/, and are trained once: after an
interruption the same command trains what is left, and then only compares. The verdict:

  reproduced        every new mean is within the stated tolerance of the claimed one
  not reproduced    one is not: by how much, and whether chance may do (Welch's 95 % interval)
  not comparable    other data, another protocol (a paper's too): the figures are shown, no verdict
  not yet measured  nothing is claimed so far: the new figure is shown as claim.yaml would have it

The exit status is 0 for reproduced, and 1 for all else, mistakes and failed runs among it.
"""

import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from vitlab.compare.claims import Claim, find_claims, read_claim, write_table
from vitlab.compare.reproduction import HOLDS, Arm, as_json, find_deviations, judge, plan, show, sum_up
from vitlab.config.arguments import parse_arguments
from vitlab.core.cli import Parser, finish
from vitlab.core.console import make_console, printed_as_errors, say
from vitlab.core.errors import UserError
from vitlab.core.files import json_text
from vitlab.core.suggest import suggest
from vitlab.data import datasets
from vitlab.data.image_folder import FileDataset
from vitlab.sweep import run_sweep
from vitlab.sweep.record import RECORD

EXPERIMENTS = Path(__file__).with_name("experiments")
LAUNCHER = ("hydra/launcher", "hydra.launcher")  # how runs are started, which changes no figure


def main() -> None:
    parser = Parser(prog="reproduce.py", description=__doc__)
    parser.add_argument(
        "words",
        nargs="*",
        metavar="STUDY",
        help="a folder with a claim.yaml; beside it data=… and data.KEY=… for the images, and "
        "hydra/launcher=… for several runs at a time",
    )
    parser.add_argument("--seeds", metavar="0,1,2", help="by default the claim's own")
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="json: one object on standard output"
    )
    parser.add_argument(
        "--results",
        metavar="FILE",
        help="write the table of all claims into FILE (make results), and nothing else",
    )
    given = parser.parse_intermixed_args()
    if given.results:
        changed = write_table(Path(given.results), find_claims(EXPERIMENTS))
        say(f"{given.results}: {'written anew' if changed else 'is what the claims say'}")
        return
    studies, overrides = split_words(given.words)
    if len(studies) != 1:
        raise UserError(f"expected one STUDY, found {len(studies)}. See python reproduce.py --help.")
    claim = read_claim(studies[0])
    seeds = read_seeds(given.seeds) if given.seeds else claim.record["seeds"]
    launcher = [word for word in overrides if word.startswith(LAUNCHER)]
    arms = plan(claim, [word for word in overrides if word not in launcher], seeds)
    as_object = given.format == "json"
    with printed_as_errors() if as_object else contextlib.nullcontext():
        if any(arm.missing(seeds) for arm in arms) and (deviations := foresee(claim, arms[0])):
            say(f"note: what is trained now will not be comparable with the claim ({deviations})")
        for arm in arms:
            train(arm, seeds, launcher)
    outcomes = judge(claim, arms, seeds)
    if as_object:
        print(json_text(as_json(claim, arms, outcomes)))
    else:
        show(make_console(), claim, arms, outcomes)
    if sum_up(outcomes) != HOLDS:
        raise SystemExit(1)


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the studies and the overrides among the words; what exists as a path is a study.

    Raises:
        UserError: something else than the data, or how runs are launched, is to be changed.
    """
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    for word in overrides:
        key = word.partition("=")[0].lstrip("+")
        if not key.startswith((*LAUNCHER, "data.")) and key != "data":
            raise UserError(
                f"{word}: a claim is reproduced as it stands, and only its data can be given (data=…, "
                f"data.KEY=…){suggest(key.partition('.')[0], ['data'])}; train.py tries other settings."
            )
    return [word for word in words if word not in overrides], overrides


def read_seeds(typed: str) -> list[int]:
    """Return the seeds of ``0,1,2``.

    Raises:
        UserError: they are none.
    """
    seeds = typed.split(",")
    if not all(seed.isdecimal() for seed in seeds) or len({*map(int, seeds)}) < len(seeds):
        raise UserError(f"--seeds {typed}: expected different whole numbers from 0, such as 0,1,2.")
    return [int(seed) for seed in seeds]


def foresee(claim: Claim, arm: Arm) -> str:
    """Return why runs will not be comparable with the claim, before they are trained; empty where they will.

    Raises:
        UserError: the images are not there.
    """
    options = arm.config["data"]
    dataset = datasets.build(options)
    info = datasets.describe(dataset, options["val_size"])
    planned = arm.planned()
    planned.images = {"train": info.num_train, "val": info.num_val, "test": info.num_test}
    planned.fingerprint = dataset.fingerprint() if isinstance(dataset, FileDataset) else ""
    return find_deviations(claim, arm.figures[0], arm, planned)


def train(arm: Arm, seeds: Sequence[int], launcher: Sequence[str]) -> None:
    """Train what is missing, as `python train.py -m …` does.

    Raises:
        UserError: a run failed, or another process has it.
        Interrupted: Ctrl-C or SIGTERM; the run under way has kept a checkpoint.
    """
    if not (missing := arm.missing(seeds)):
        return
    known = {run.seed for run in arm.read()}  # also of runs that have not finished
    new = [str(seed) for seed in missing if str(seed) not in known]
    way = "sweep.resume" if (arm.folder / RECORD).is_file() else "hydra.sweep.dir"
    settings = [*arm.words, f"seed={','.join(new)}"] if new else []
    words = ["-m", *settings, *launcher, f"{way}={arm.folder}"]
    say(shlex.join(["python", "train.py", *words]))
    run_sweep(parse_arguments(words), lambda folder: None)
    if left := arm.missing(seeds):
        raise UserError(
            f"seed {', '.join(map(str, left))}: another process trains in {arm.folder}. The same command "
            "again, once it has ended, compares."
        )


if __name__ == "__main__":
    sys.exit(finish(main))
