"""What the verbs share: how they read their arguments, and how they end."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from vitlab.core.console import hide_passwords, printable
from vitlab.core.disk import disk_problem
from vitlab.core.errors import UserError
from vitlab.core.signals import Interrupted
from vitlab.core.suggest import suggest


class Parser(argparse.ArgumentParser):
    """A parser that shows a docstring as it is written, and says mistakes as all verbs do."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        unknown = message.partition("unrecognized arguments: ")[2].partition(" ")[0].partition("=")[0]
        meant = suggest(unknown, self._option_string_actions) if unknown else ""
        raise UserError(f"{message}{meant}. See python {self.prog} --help.")


def finish(work: Callable[[], object]) -> int:
    """Do ``work``; an error that is not the user's is a fault of vitlab's, and keeps its traceback.

    Returns:
        The exit status: 0; 1 with one line for a mistake of the user's; 128 + n for signal n.
    """
    try:
        work()
    except UserError as error:
        print(printable(hide_passwords(f"error: {error}")), file=sys.stderr)
        return 1
    except Interrupted as stop:
        return stop.exit_code
    except KeyboardInterrupt:  # before or after training, where there is nothing to keep
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still buffered
        return 1
    except Exception as error:
        if not (problem := disk_problem(error)):
            raise
        print(printable(f"error: {problem}."), file=sys.stderr)
        return 1
    return 0
