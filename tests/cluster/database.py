"""A PostgreSQL of one's own, Debian's, on one of two machines, and Optuna's proxy before it."""

import contextlib
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.cluster.machines import ADDRESS, Machines
from tests.conftest import wait_for

USER = "postgres"  # Debian's; the server refuses to run as root
PASSWORD = "not-to-be-seen"
HOST = "left"
PROXY = f"grpc://{HOST}:13000"
DIRECT = f"postgresql://vitlab@{HOST}/trials"


def find_program(name: str) -> str:
    """Return the path of one of PostgreSQL's programs, which Debian has beside the PATH, or nothing."""
    there = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(there[-1]) if there else shutil.which(name) or ""


def why_not() -> str:
    """Say why there can be no PostgreSQL here; empty where there can."""
    if not find_program("initdb"):
        return "no PostgreSQL (Debian: apt-get install postgresql)"
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return f"a PostgreSQL needs the user {USER}, which Debian's package makes"
    return ""


class Database:
    """The server, and the proxy; both end with `stop`.

    Args:
        machines: on the left one of which it runs.
    """

    def __init__(self, machines: Machines) -> None:
        self.machines = machines
        self.folder = Path(tempfile.mkdtemp(prefix="vitlab-database-"))  # where its user may come
        self.passfile = self.folder / "pgpass"
        self.env = {"PGPASSFILE": str(self.passfile)}
        self._server: subprocess.Popen[bytes] | None = None
        self._proxy: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Make a data base with the user vitlab, who has a password, and start the server."""
        lines = (f"{host}:5432:trials:vitlab:{PASSWORD}\n" for host in ("localhost", HOST))
        self.passfile.write_text("".join(lines))
        self.passfile.chmod(0o600)
        (self.folder / "password").write_text(PASSWORD)
        for path in (self.folder, self.folder / "password"):
            shutil.chown(path, USER, USER)
        self.folder.chmod(0o755)
        data, sure = str(self.folder / "data"), ["--auth-local=trust", "--auth-host=scram-sha-256"]
        made = [find_program("initdb"), "-D", data, "-U", "vitlab", "-N", *sure]
        subprocess.run(
            [*made, f"--pwfile={self.folder}/password"], user=USER, group=USER, extra_groups=[], check=True,
            capture_output=True, cwd=self.folder,
        )  # fmt: skip
        with open(f"{data}/pg_hba.conf", "a") as rules:
            rules.write("host all all samenet scram-sha-256\n")
        self.start_server()
        self._call("createdb", "trials")

    def start_server(self) -> None:
        """Start the server, and wait until it answers."""
        options = [f"listen_addresses=localhost,{ADDRESS[HOST]}", f"unix_socket_directories={self.folder}"]
        options += ["fsync=off", "max_connections=50"]
        command = [find_program("postgres"), "-D", f"{self.folder}/data"]
        drop = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
        for option in options:
            command += ["-c", option]
        self._server = self.machines.start(HOST, *drop, *command, log="postgres")
        wait_for(lambda: self._call("pg_isready", check=False) == 0, 60)

    def stop_server(self) -> None:
        """End the server with no time to say good-bye; what it has promised is in its log."""
        if self._server:
            self._server.kill()
            self._server.wait()

    def start_proxy(self, script: Path) -> None:
        """Start the proxy as docs/cluster.md does."""
        self._proxy = self.machines.start(HOST, "bash", str(script), env=self.env, log="proxy")

    def stop_proxy(self) -> None:
        """Kill the proxy."""
        if self._proxy:
            self._proxy.kill()
            self._proxy.wait()

    def _call(self, name: str, *arguments: str, check: bool = True) -> int:
        command = [find_program(name), "-h", str(self.folder), "-U", "vitlab", *arguments]
        return subprocess.run(command, check=check, capture_output=True, cwd=self.folder).returncode

    def count_trials(self) -> int:
        """Return how many trials the tables have, of all searches."""
        command = [find_program("psql"), "-h", str(self.folder), "-U", "vitlab", "-tAc"]
        command += ["select count(*) from trials", "trials"]
        return int(subprocess.run(command, capture_output=True, check=True).stdout)

    def stop(self) -> None:
        """End both, and remove what they have written."""
        with contextlib.suppress(OSError):
            self.stop_proxy()
            self.stop_server()
        shutil.rmtree(self.folder, ignore_errors=True)

    def logs(self) -> str:
        """Return what the server and the proxy have printed."""
        names = ("postgres", "proxy")
        files = [file for name in names if (file := self.machines.folder / f"{name}.log").exists()]
        return "\n".join(f"--- {file.name}\n{file.read_text()[-4000:]}" for file in files)
