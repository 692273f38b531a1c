"""Evaluate trained networks: accuracy with its interval, classes, calibration, mistakes, robustness.

python evaluate.py outputs/runs/NAME                       its own test images, as its own test computed them
python evaluate.py outputs/runs/NAME data.root=/mnt/images the same images, which have moved
python evaluate.py outputs/runs/NAME data=image_folder data.root=photos   other images of the same classes
python evaluate.py outputs/runs/NAME data.root=photos --split all         and those of their training part too
python evaluate.py outputs/runs/NAME --corruptions --audit --tta flip
python evaluate.py outputs/runs/ONE outputs/runs/OTHER     and which is better, image by image

It writes evaluation.json, predictions.csv and figures. Classes of other data are matched by name, and their
images are resized and normalised as the network was trained. Intervals are 95 % (Wilson's); the calibration
error has 15 bins of equally many images; runs are compared by McNemar's exact test, Holm's correction for
several pairs.
"""

import shlex
import sys

from vitlab.core.cli import Parser, finish
from vitlab.core.console import make_console
from vitlab.core.errors import UserError
from vitlab.core.files import results_folders
from vitlab.inference.evaluate_arguments import check_overrides, find_runs, split_words


def main() -> None:
    parser = Parser(prog="evaluate.py", description=__doc__)
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN",
        help="run folders, or checkpoints; words that begin with data= or data. name other data",
    )
    parser.add_argument(
        "--split", choices=("test", "val", "train", "all"), default="test", help="which images (test)"
    )
    parser.add_argument("--raw", action="store_true", help="of a run with EMA, the weights without averaging")
    parser.add_argument("--tta", choices=("flip",), help="also with an image and its mirror image averaged")
    parser.add_argument(
        "--corruptions", action="store_true", help="also with noise, blur, … at five strengths"
    )
    parser.add_argument(
        "--audit", action="store_true", help="also without near-duplicates of training images"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="where to write; by default evaluation/ in each run folder, and a comparison beside the runs",
    )
    given = parser.parse_intermixed_args()
    if given.audit and given.split != "test":
        raise UserError("--audit looks for training images among the test images: leave --split out.")
    words, overrides = split_words(given.words)
    runs, out = find_runs(words, given.out)
    check_overrides(runs, overrides)
    from vitlab.inference.evaluate import evaluate_runs  # torch takes seconds to import
    from vitlab.inference.evaluate_subject import Request

    request = Request(
        runs=runs,
        overrides=overrides,
        part=given.split,
        raw=given.raw,
        flip=given.tta == "flip",
        corruptions=given.corruptions,
        audit=given.audit,
        out=out,
        command=shlex.join(["python", "evaluate.py", *sys.argv[1:]]),
    )
    with results_folders(dict.fromkeys([*(run.out for run in runs), out])):
        evaluate_runs(request, make_console())


if __name__ == "__main__":
    sys.exit(finish(main))
