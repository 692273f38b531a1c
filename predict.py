"""Predict the classes of image files with a trained network.

python predict.py outputs/runs/NAME cat.jpg                       a table
python predict.py outputs/runs/NAME photos/ 'more/**/*.png'       folders (all that is in them) and globs
python predict.py outputs/runs/NAME photos/ --format jsonl > predictions.jsonl
find photos -name '*.jpg' | python predict.py outputs/runs/NAME -
python predict.py outputs/runs/NAME cat.jpg --explain rollout     and where it looks, as a picture

Results go to standard output, batch by batch, and all else to standard error. An image that cannot be read is
reported there, and the others are predicted; then the exit code is 1. A GPU is used where there is one
(CUDA_VISIBLE_DEVICES= hides it). From Python: vitlab.load("outputs/runs/NAME").predict("cat.jpg").
"""

import os
import sys
from pathlib import Path

from vitlab.core.cli import Parser, finish
from vitlab.core.errors import UserError
from vitlab.inference.methods import NAMES, parse_methods

FORMATS = ("table", "jsonl", "csv")


def main() -> None:
    parser = Parser(prog="predict.py", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder, or a checkpoint")
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="files, folders, globs; - reads paths from standard input, one a line, to its end",
    )
    parser.add_argument("--format", choices=FORMATS, default="table", help="how results are written (table)")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes an image (5)")
    parser.add_argument("--raw", action="store_true", help="of an EMA run, the weights without the average")
    parser.add_argument(
        "--explain",
        metavar="NAME[,NAME]",
        help=f"write overlays too, by {', '.join(NAMES)}, or all",
    )
    parser.add_argument("--out", metavar="DIR", help="for overlays; by default predict/ in the run folder")
    given = parser.parse_args()
    if given.top < 1:
        raise UserError(f"--top {given.top}: expected 1 or more.")
    methods = parse_methods(given.explain, "--explain") if given.explain else []
    if given.out and not methods:
        raise UserError("--out is the folder for overlays: add --explain METHOD, or leave it out.")
    from vitlab.inference.inputs import find_images, find_weights

    checkpoint, home = find_weights(given.run)
    paths = find_images([image for image in given.images if image != "-"])
    if "-" in given.images:
        paths += [Path(line) for line in os.fsdecode(sys.stdin.buffer.read()).split("\n") if line]
    if not paths:
        raise UserError("there are no paths on standard input: expected one a line.")
    from vitlab.inference.predict import Request, predict  # torch takes seconds to import

    request = Request(
        checkpoint=checkpoint,
        raw=given.raw,
        paths=paths,
        form=given.format,
        top=given.top,
        methods=methods,
        strict=given.explain != "all",
        out=Path(given.out) if given.out else home / "predict",
    )
    # JSON is UTF-8 everywhere. A name that is none, which Linux allows, has JSON's own escapes.
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    predict(request, sys.stdout)


if __name__ == "__main__":
    sys.exit(finish(main))
