"""Where the trials of a search are kept: Optuna's storages, and what they say when they do not answer."""

import random
import time
import warnings
from pathlib import Path
from urllib.parse import urlsplit

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.pruners import BasePruner
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from vitlab.config.storage_address import get_kind
from vitlab.core.errors import UserError
from vitlab.core.extras import need

FILE = "study.db"  # in the search's folder: SQLite
JOURNAL_FILE = "study.journal"  # there too, with sweep.storage=journal
NAME = "vitlab"  # of the study in a file
CONNECT = 10  # seconds that a server has to answer
TRIES = 5  # of several processes that make the tables of an empty data base at once, one succeeds

# What is raised where a server does not answer, or a damaged file is read.
ERRORS: tuple[type[Exception], ...] = (SQLAlchemyError, StorageInternalError)


class Storage:
    """The storage of one search.

    Args:
        address: ``sweep.storage``, checked by `vitlab.config.storage_address`; None: a file of SQLite's.

    Attributes:
        shared: whether several processes may use it.
        errors: what it raises when it does not answer; nothing of a file's.
    """

    def __init__(self, address: str | None) -> None:
        self.address = address
        self.kind = get_kind(address or "")
        self.shared = address is not None
        self.errors = ERRORS if self.kind in ("postgresql", "mysql") else ()
        self._server: BaseStorage | None = None

    def connect(self) -> None:
        """Find the server, if the storage has one, before anything is written.

        Raises:
            UserError: it does not answer, or what asks it is not installed.
        """
        what = f"sweep.storage={self.address}"
        if self.kind == "grpc":
            need("grpc", "google.protobuf", extra="storage", what=what)
            import grpc

            self.errors = (*ERRORS, grpc.RpcError, ConnectionError)
            connect = self._connect_proxy
        elif self.kind in ("postgresql", "mysql"):
            if self.kind == "postgresql" and "+" not in str(self.address).partition(":")[0]:
                need("psycopg", extra="storage", what=what)
            connect = self._connect_database
        else:
            return
        try:
            self._server = connect()
        except ImportError as error:
            missing = getattr(error.__cause__, "name", None) or error
            raise UserError(f"{what} needs a driver that is not installed: {missing}") from None
        except RuntimeError as error:  # tables of another version of Optuna's
            raise UserError(f"{what}: {error}") from None
        except self.errors as error:
            expected = "Optuna's proxy" if self.kind == "grpc" else "a data base"
            raise UserError(
                f"{what} does not answer: expected {expected} there, found: {explain(error)}. Start it, or "
                "correct the address; nothing was written."
            ) from None

    def _connect_proxy(self) -> BaseStorage:
        parts = urlsplit(str(self.address))
        host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else str(parts.hostname)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            proxy = GrpcStorageProxy(host=host, port=parts.port or 0)
        proxy.wait_server_ready(CONNECT)
        return proxy

    def _connect_database(self) -> BaseStorage:
        options = {"connect_args": {"connect_timeout": CONNECT}, "pool_pre_ping": True}
        for _ in range(TRIES - 1):
            try:
                return RDBStorage(str(self.address), options)
            except (ProgrammingError, IntegrityError, StorageInternalError):
                time.sleep(random.random())
        return RDBStorage(str(self.address), options)

    def open(self, folder: Path, name: str, pruner: BasePruner) -> optuna.Study:
        """Return the study of a search, made if it is not there.

        Args:
            folder: of the search.
            name: of the study on a server, which has those of other searches too.
            pruner: ends trials early.

        Raises:
            UserError: the file is damaged, or the server has gone.
        """
        file = folder / (JOURNAL_FILE if self.shared else FILE)
        try:
            place: BaseStorage | str | None = self._server
            if place is None:
                place = make_journal(file) if self.shared else f"sqlite:///{file.absolute()}"
            return optuna.create_study(
                storage=place,
                study_name=name if self._server else NAME,
                direction="maximize",
                pruner=pruner,
                load_if_exists=True,
            )
        except self.errors as error:
            raise UserError(f"{self.describe_outage(error)}; type the same again when it does.") from None
        except (SQLAlchemyError, RuntimeError, ValueError, AssertionError, KeyError) as error:
            raise UserError(
                f"{file} cannot be read as Optuna's record of a search ({explain(error)}); "
                "sweep.new=true starts afresh."
            ) from None

    def describe_outage(self, error: Exception) -> str:
        """Return that the server does not answer, in a sentence."""
        return f"sweep.storage={self.address} does not answer ({explain(error)})"


def make_journal(file: Path) -> JournalStorage:
    """Return a journal; its lock asks of the disk what `vitlab.core.claim` asks: O_EXCL."""
    return JournalStorage(JournalFileBackend(str(file), JournalFileOpenLock(str(file))))


def explain(error: BaseException) -> str:
    """Return in a line what an error of a storage says: a driver's own words, where there are any."""
    # SQLAlchemy's has the driver's error, and Optuna's was caused by SQLAlchemy's.
    inner = error.__cause__ if isinstance(error, StorageInternalError) else getattr(error, "orig", None)
    if inner:
        return explain(inner)
    details = getattr(error, "details", None)  # gRPC's
    text = details() if callable(details) else str(error)
    line = (str(text).strip().splitlines() or [type(error).__name__])[0]
    return line.partition(". ")[0].rstrip(".")
