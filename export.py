"""Export a trained network: a folder with its weights, a model card, and code to use them without vitlab.

python export.py outputs/runs/NAME --format onnx             pixels in, probabilities out, for ONNX Runtime
python export.py outputs/runs/NAME --format onnx --int8      and a file in 8 bits, with what it costs
python export.py outputs/runs/NAME --format timm             timm.create_model("local-dir:FOLDER", …)
python export.py best.ckpt --format safetensors --out mine   weights by name, from a checkpoint alone

An export is checked before it is there: its probabilities (ONNX) or logits (timm) on 256 images of the run's
hold-out are compared with PyTorch's. Where the run's data are not at hand, --images names others.
"""

import sys
from pathlib import Path

from vitlab.core.cli import Parser, finish
from vitlab.core.console import make_console
from vitlab.core.errors import UserError
from vitlab.core.suggest import suggest

FORMATS = ("safetensors", "onnx", "timm")


def main() -> None:
    parser = Parser(prog="export.py", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder, or a checkpoint")
    parser.add_argument("--format", required=True, metavar="NAME", help=f"of {', '.join(FORMATS)}")
    parser.add_argument("--out", metavar="DIR", help="by default export/FORMAT in the run folder")
    parser.add_argument(
        "--weights",
        metavar="ema|raw",
        help="of a run with callbacks.ema: the average (as by default), or what the optimizer left",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="files, folders, globs to check the export on",
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="onnx: normalised float32 images in, logits out, nothing else inside",
    )
    parser.add_argument("--int8", action="store_true", help="onnx: write a file in 8 bits too")
    parser.add_argument(
        "--max-drop", type=float, metavar="POINTS", help="onnx: of accuracy, that 8 bits may cost at most (1)"
    )
    parser.add_argument("--force", action="store_true", help="onnx: export in 8 bits whatever it costs")
    given = parser.parse_args()
    if given.format not in FORMATS:
        raise UserError(
            f"--format {given.format}: there is no such format{suggest(given.format, FORMATS)}; there are "
            f"{', '.join(FORMATS)}."
        )
    if given.weights not in (None, "ema", "raw"):
        raise UserError(f"--weights {given.weights}: expected ema or raw.")
    if given.max_drop is not None and not given.max_drop >= 0:
        raise UserError(f"--max-drop {given.max_drop:g}: expected points of accuracy, 0 or more.")
    if given.raw and given.int8:
        raise UserError(
            "--int8 needs the preprocessing inside the file, and --raw leaves it out: choose one."
        )
    needs = {
        "--raw": (given.raw, given.format == "onnx", "--format onnx"),
        "--int8": (given.int8, given.format == "onnx", "--format onnx"),
        "--max-drop": (given.max_drop is not None, given.int8, "--int8"),
        "--force": (given.force, given.int8, "--int8"),
        "--images": (given.images, given.format != "safetensors", "--format onnx or timm"),
    }
    for option, (used, has_effect, where) in needs.items():
        if used and not has_effect:
            raise UserError(f"{option} has an effect with {where} alone.")
    from vitlab.inference.inputs import find_images, find_weights

    checkpoint, home = find_weights(given.run)
    images = find_images(given.images)
    from vitlab.inference.export import Request, export  # torch takes seconds to import

    request = Request(
        checkpoint=checkpoint,
        home=home,
        format=given.format,
        out=Path(given.out) if given.out else home / "export" / given.format,
        weights=given.weights,
        raw=given.raw,
        int8=given.int8,
        max_drop=1.0 if given.max_drop is None else given.max_drop,
        force=given.force,
        images=images,
    )
    export(request, make_console())


if __name__ == "__main__":
    sys.exit(finish(main))
