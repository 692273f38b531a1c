"""Compare runs: a table on the screen, leaderboards, figures and one page.

python compare.py outputs/STUDY                                  into outputs/STUDY/report/
python compare.py outputs/STUDY --baseline patch_size=4 depth=6  differences to one group, seed by seed
python compare.py outputs/STUDY --out experiments/STUDY          what a study keeps
python compare.py outputs/STUDY --detect 0.2                     how many seeds 0.2 points take
"""

import sys

from vitlab.compare import MARGIN, compare
from vitlab.core.cli import Parser, finish
from vitlab.core.console import make_console


def main() -> None:
    parser = Parser(prog="compare.py", description=__doc__)
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", help="run folders are found at any depth below it"
    )
    parser.add_argument(
        "--baseline",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="the group that others are held against: values that only it has, or its name in quotes; by "
        "default that of the first run",
    )
    parser.add_argument(
        "--margin", type=float, default=MARGIN, help="points within which two groups count as equal (0.5)"
    )
    parser.add_argument(
        "--detect", type=float, default=MARGIN, help="points that more seeds are to find 4 times in 5 (0.5)"
    )
    parser.add_argument(
        "--all-tests", action="store_true", help="show every group's test accuracy, not only the best one's"
    )
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="json: one object, with the verdicts"
    )
    parser.add_argument("--out", metavar="DIR", help="where to write; by default report/ in the folder")
    arguments = parser.parse_args()
    compare(
        arguments.folders,
        arguments.baseline,
        arguments.out,
        make_console(),
        margin=arguments.margin,
        detect=arguments.detect,
        all_tests=arguments.all_tests,
        as_json=arguments.format == "json",
    )


if __name__ == "__main__":
    sys.exit(finish(main))
