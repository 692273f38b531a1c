"""What people type and what folders are called is printed as text, in one place."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitlab.core import console
from vitlab.core.cli import finish
from vitlab.core.console import RunConsole, make_console, say
from vitlab.core.errors import UserError
from vitlab.core.run_folder import RunFolder

# Rich's markup, an emoji of Rich's, a Windows path, and a terminal escape that would clear the screen.
TYPED = r"ops=[crop,flip] [bold]x[/] :smile: C:\data\[red] " + "\x1b[2J\x07end"
SHOWN = TYPED.replace("\x1b", "�").replace("\x07", "�")


def test_a_run_prints_what_was_typed_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(tmp_path)
    RunConsole(folder).print(f"note: {TYPED}")
    assert capsys.readouterr().out == f"note: {SHOWN}\n"
    assert folder.log.read_text() == f"note: {SHOWN}\n"


def test_lines_and_errors_are_printed_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise UserError(TYPED)

    say(TYPED)
    assert finish(refuse) == 1
    assert capsys.readouterr() == (f"{SHOWN}\n", f"error: {SHOWN}\n")


def test_the_cells_of_a_table_are_printed_as_text() -> None:
    table = Table(TYPED)
    table.add_row(TYPED)
    out = io.StringIO()
    make_console(file=out, width=200).print(table, soft_wrap=False)
    assert out.getvalue().count(SHOWN) == 2


def test_style_comes_from_richs_own_objects() -> None:
    terminal = make_console(file=io.StringIO(), force_terminal=True, color_system="standard")
    assert isinstance(terminal, Console)
    with terminal.capture() as capture:
        terminal.print(Text.assemble(("name", "bold"), " [value]"))
    assert capture.get() == "\x1b[1mname\x1b[0m [value]\n"


def test_what_is_no_terminal_has_lines_of_one_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "33")
    assert make_console(file=io.StringIO()).width == console.WIDTH
