"""Compare runs: a table on the screen, leaderboards, figures and one page.

python compare.py outputs/STUDY                                  into outputs/STUDY/report/
python compare.py outputs/STUDY --baseline patch_size=4 depth=6  differences to one group, seed by seed
python compare.py outputs/STUDY --out experiments/STUDY          what a study keeps
"""

import sys

from vitlab.compare import compare
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
        help="the group that others are held against: values that only it has, or its name in quotes",
    )
    parser.add_argument("--out", metavar="DIR", help="where to write; by default report/ in the folder")
    arguments = parser.parse_args()
    compare(arguments.folders, arguments.baseline, arguments.out, make_console())


if __name__ == "__main__":
    sys.exit(finish(main))
