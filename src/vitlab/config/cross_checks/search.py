"""What does not fit in how a search is kept."""

from vitlab.config.cross_checks.config_reader import ConfigReader, Conflicts
from vitlab.config.storage_address import find_address_problem


def search_conflicts(read: ConfigReader) -> Conflicts:
    """Yield what is wrong with a search's storage, of the whole group: an address may hold a password."""
    address = read("sweep.storage")
    if address and (problem := find_address_problem(address)):
        yield "sweep", problem
