"""Try a trained network in the browser: drop an image, and see its classes and where the network looks.

python demo.py outputs/runs/NAME
python demo.py outputs/runs/NAME --port 8000

The page is this machine's alone (127.0.0.1): it loads nothing from the network and sends nothing there, and
what is uploaded is deleted at the end. Ctrl-C ends it. It needs gradio: .venv/bin/pip install -e '.[demo]'
"""

import sys

from vitlab.core.cli import Parser, finish
from vitlab.core.errors import UserError
from vitlab.core.extras import need


def main() -> None:
    parser = Parser(prog="demo.py", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder, or a checkpoint")
    parser.add_argument("--port", type=int, help="of the page; by default the first free one from 7860")
    given = parser.parse_args()
    if given.port is not None and not 1 <= given.port <= 65535:
        raise UserError(f"--port {given.port}: expected 1 to 65535.")
    need("gradio", extra="demo", what="demo.py")
    from vitlab.inference.inputs import find_weights

    checkpoint, _ = find_weights(given.run)
    from vitlab.inference.demo import serve  # torch and gradio take seconds to import

    serve(checkpoint, given.port)


if __name__ == "__main__":
    sys.exit(finish(main))
