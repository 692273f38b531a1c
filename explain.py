"""Explain predictions: where a trained network looks, by several methods, and what each of them is worth.

python explain.py outputs/runs/NAME                        test images, some right and some wrong
python explain.py outputs/runs/NAME cat.jpg photos/        images of your own
python explain.py outputs/runs/NAME --layers all --heads all --method attention,rollout

Beside the maps it writes scores.csv: how fast the class's probability falls as the pixels that a map names
first are deleted, and rises as they are inserted (areas under the curves, Petsiuk et al. 2018); low and high
are a 95 % interval of insertion - deletion. Rows of network=random are maps of the same network with random
weights, scored on the trained one (Adebayo et al. 2018); method=random are maps of noise.
"""

import sys
from pathlib import Path

from vitlab.core.cli import Parser, finish
from vitlab.core.console import make_console
from vitlab.core.errors import UserError
from vitlab.inference.methods import NAMES, USUAL, parse_methods, parse_numbers


def main() -> None:
    parser = Parser(prog="explain.py", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder, or a checkpoint")
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="files, folders, globs; without any, test images are drawn by lot",
    )
    parser.add_argument(
        "--method",
        metavar="NAME[,NAME]",
        help=f"of {', '.join(NAMES)}, or all that work; by default {', '.join(USUAL)}",
    )
    parser.add_argument(
        "--layers", metavar="0,3", help="draw the attention of these layers one by one, or of all"
    )
    parser.add_argument("--heads", metavar="0,1", help="and of these heads, or of all")
    parser.add_argument("--num-test", type=int, default=32, metavar="N", help="test images to score (32)")
    parser.add_argument("--out", metavar="DIR", help="where to write; by default explain/ in the run folder")
    given = parser.parse_args()
    methods = parse_methods(given.method, "--method") if given.method else USUAL
    layers, heads = parse_numbers(given.layers, "--layers"), parse_numbers(given.heads, "--heads")
    if given.num_test < 1:
        raise UserError(f"--num-test {given.num_test}: expected 1 or more.")
    from vitlab.inference.inputs import find_images, find_weights

    checkpoint, home = find_weights(given.run)
    files = find_images(given.images)
    from vitlab.inference.explain import Request, explain  # torch takes seconds to import

    request = Request(
        checkpoint=checkpoint,
        files=files,
        num_test=given.num_test,
        methods=methods,
        strict=given.method not in (None, "all"),
        layers=layers,
        heads=heads,
        one_by_one=bool(given.layers or given.heads),
        out=Path(given.out) if given.out else home / "explain",
    )
    explain(request, make_console())


if __name__ == "__main__":
    sys.exit(finish(main))
