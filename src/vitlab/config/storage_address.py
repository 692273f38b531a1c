"""``sweep.storage``: where Optuna keeps the trials of a search that several processes work on."""

from urllib.parse import parse_qsl, urlsplit

from vitlab.core.console import hide_passwords
from vitlab.core.suggest import suggest

JOURNAL = "journal"
# How each kind of address is written.
FORMS = {
    "postgresql": "postgresql://USER@HOST/DATABASE",
    "mysql": "mysql+DRIVER://USER@HOST/DATABASE",
    "grpc": "grpc://HOST:PORT (Optuna's proxy before one of these)",
    JOURNAL: "journal (a file in the search's folder)",
}


def get_kind(address: str) -> str:
    """Return the key of `FORMS` that an address begins with, or whatever it begins with instead."""
    return address.partition(":")[0].partition("+")[0]


def find_address_problem(address: str) -> str:
    """Return what is wrong with an address, in a sentence without its password, or nothing."""
    kind, shown = get_kind(address), f"sweep.storage={hide_passwords(address)}"
    if kind == "sqlite":
        return (
            f"{shown}: SQLite is what a search has without sweep.storage, and for one process: leave it out, "
            f"or give {_list_forms()}"
        )
    if kind == JOURNAL or address.endswith(".journal"):
        path = f"{shown}: the journal lies in the search's folder: write sweep.storage={JOURNAL}"
        return "" if address == JOURNAL else path
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as error:
        return f"{shown} cannot be read ({error}): expected {FORMS.get(kind, _list_forms())}"
    if parts.password is not None or any("password" in key.lower() for key, _ in parse_qsl(parts.query)):
        return (
            f"{shown}: a password on a command line can be read by others, and would stand in the search's "
            "record: leave it out, and put it into ~/.pgpass (or the file that PGPASSFILE names), or, for "
            "MySQL, into an option file (?read_default_file=…)"
        )
    if kind not in FORMS:
        return f"{shown}: expected {_list_forms()}, found '{kind}'{suggest(kind, FORMS)}"
    whole = parts.hostname and port and not parts.path.strip("/") if kind == "grpc" else parts.path.strip("/")
    if not parts.scheme or not whole:
        return f"{shown}: expected {FORMS[kind]}"
    return ""


def _list_forms() -> str:
    *others, last = FORMS.values()
    return f"{', '.join(others)} or {last}"
