"""Real programs on the mount, also while the servers are killed: no error may reach them, and nothing may be lost.

FSX and FSSTRESS name the programs of xfstests (ltp/fsx.c, ltp/fsstress.c), DBENCH dbench 4, PGBIN PostgreSQL's
directory of programs; SQLite is Python's, and git is everywhere. What is not there is skipped.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from lustrelite.cli.cluster import source_root
from tests.torture.fire import FULL, needs, place, program, size

FSX, FSSTRESS, DBENCH = program("FSX", "fsx"), program("FSSTRESS", "fsstress"), program("DBENCH", "dbench")
DBENCH_LOAD = os.environ.get("DBENCH_LOAD", "/usr/share/dbench/client.txt")
PGBIN = os.environ.get("PGBIN") or max(map(str, Path("/usr/lib/postgresql").glob("*/bin")), default="")
LONGEST_S = size(100, 3 * 3600)  # for one program

JOURNALS = ["delete", "truncate", "persist", "wal"] if FULL else ["delete", "wal"]

fire = pytest.mark.parametrize("kills", [False, True] if FULL else [True], ids=lambda kills: "kills" if kills else "peace")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * LONGEST_S + 100)]


@needs(FSX, "FSX names no fsx")
@pytest.mark.processes
@fire
async def test_fsx(world: Any, kills: bool) -> None:
    """Reads, writes, mappings, truncations, holes of one file, against a copy in memory; another one on the other mount."""
    count = size(2000, 1_000_000)
    async with place(world, mounts=2, kills=kills) as p:
        tops = [m.path / f"fsx{number}" for number, m in enumerate(p.mounts)]
        for top in tops:
            await p.mounts[0].call(top.mkdir)
        said = await asyncio.gather(*[
            p.run(FSX, "-q", "-N", count, "-S", 100 + number, "f", cwd=top, timeout_s=LONGEST_S)
            for number, top in enumerate(tops)
        ])
        assert all("operations completed A-OK" in text for text in said)


@needs(FSSTRESS, "FSSTRESS names no fsstress")
@pytest.mark.processes
@fire
async def test_fsstress(world: Any, kills: bool) -> None:
    """Every system call there is, at random, from two mounts in one tree; then both see the same tree."""
    count = size(300, 30_000)
    async with place(world, mounts=2, kills=kills) as p:
        tree = p.first / "s"
        await p.mounts[0].call(tree.mkdir)
        await asyncio.gather(*[
            p.run(FSSTRESS, "-d", m.path / "s", "-n", count, "-p", "2", "-s", 7 + number, timeout_s=LONGEST_S)
            for number, m in enumerate(p.mounts)
        ])
        listing = ("find", ".", "-printf", r"%p %y %m %s %n %U %l\n")
        found = [await p.run(*listing, cwd=m.path / "s", timeout_s=LONGEST_S) for m in p.mounts]
        assert found[0].count("\n") > 20 and sorted(found[0].splitlines()) == sorted(found[1].splitlines())


@needs(DBENCH if os.path.exists(DBENCH_LOAD) else "", "DBENCH names no dbench")
@pytest.mark.processes
@fire
async def test_dbench(world: Any, kills: bool) -> None:
    async with place(world, kills=kills) as p:
        said = await p.run(DBENCH, "-t", size(5, 300), "-c", DBENCH_LOAD, "-D", p.first, "8", timeout_s=LONGEST_S)
        assert "Throughput" in said, said[-2000:]


@needs(program("GIT", "git"), "git is not installed")
@pytest.mark.processes
@fire
async def test_git(world: Any, kills: bool) -> None:
    """Clone, check out, commit, pack examine and build a repository."""
    copies = size(1, 8)
    async with place(world, mounts=2, kills=kills) as p:
        w, other = p.world, p.mounts[1].path

        async def git(*words: object, cwd: Path) -> str:
            return await p.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "-c", "safe.directory=*", *map(str, words),
                               cwd=cwd, timeout_s=LONGEST_S, env={"GIT_CONFIG_NOSYSTEM": "1", "HOME": str(w.directory)})  # fmt: skip

        source = w.directory / "source"
        for number in range(copies):
            shutil.copytree(source_root() / "lustrelite", source / f"lustrelite{number}", ignore=shutil.ignore_patterns("__pycache__"))
        await git("init", "-q", cwd=source)
        await git("add", ".", cwd=source)
        await git("commit", "-q", "-m", "one", cwd=source)
        await git("clone", "-q", f"file://{source}", p.first / "clone", cwd=p.first)
        clone = p.first / "clone"
        assert await git("status", "--porcelain", cwd=clone) == ""
        await git("checkout", "-q", "-b", "two", cwd=clone)
        moved = await p.mounts[0].call(_edit, clone)
        await git("add", "-A", cwd=clone)
        await git("commit", "-q", "-m", "two", cwd=clone)
        await git("checkout", "-q", "HEAD~1", cwd=clone)
        await git("checkout", "-q", "two", cwd=clone)
        await git("gc", "-q", cwd=clone)
        said = await git("fsck", "--full", "--strict", cwd=other / "clone")
        assert "error" not in said and "missing" not in said and "corrupt" not in said, said
        assert await git("status", "--porcelain", cwd=other / "clone") == ""
        for path in moved:
            assert (other / "clone" / path).exists()
        await p.run(sys.executable, "-m", "compileall", "-q", "lustrelite0", cwd=clone, timeout_s=LONGEST_S,
                    env={"PYTHONPYCACHEPREFIX": ""})  # there, not where the tests have theirs  # fmt: skip
        built = [len(list(top.rglob("*.pyc"))) for top in (clone / "lustrelite0", other / "clone/lustrelite0")]
        assert built[0] == built[1] > 100


def _edit(clone: Path) -> list[Path]:
    """Change, move and add files; which are new."""
    files = sorted(path for path in clone.rglob("*.py"))
    for path in files[::3]:
        path.write_text(path.read_text() + "\n# changed\n")
    moved = [path.rename(path.with_name("moved_" + path.name)) for path in files[1::7]]
    return [path.relative_to(clone) for path in moved]


SQLITE_WORKER = """
import sqlite3, sys
path, worker, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
db = sqlite3.connect(path, timeout=300, isolation_level=None)
for number in range(count):
    db.execute("BEGIN IMMEDIATE")
    n, = db.execute("SELECT n FROM counter").fetchone()
    db.execute("UPDATE counter SET n = ?", (n + 1,))
    db.execute("INSERT INTO log VALUES (?, ?, ?)", (worker, number, str(n) * 50))
    if number % 10 == 9:
        db.execute("DELETE FROM log WHERE worker = ? AND number = ?", (worker, number - 5))
    db.execute("COMMIT")
    print(number, flush=True)
db.close()
"""


@needs("python", "")
@pytest.mark.parametrize("journal", JOURNALS)
@pytest.mark.processes
@fire
async def test_sqlite(world: Any, kills: bool, journal: str) -> None:
    """Several processes, on both mounts: every commit that was answered is there, once.

    WAL shares memory: one mount.
    """
    count, workers = size(25, 1000), 4
    async with place(world, mounts=2, kills=kills) as p:
        tops = [p.first] if journal == "wal" else [m.path for m in p.mounts]
        path = p.first / "db"

        def make() -> None:
            db = sqlite3.connect(path)
            assert db.execute(f"PRAGMA journal_mode = {journal}").fetchone() == (journal,)
            db.execute("CREATE TABLE counter (n INTEGER)")
            db.execute("CREATE TABLE log (worker INTEGER, number INTEGER, text TEXT, PRIMARY KEY (worker, number))")
            db.execute("INSERT INTO counter VALUES (0)")
            db.commit()
            db.close()

        def look(at: Path) -> None:
            db = sqlite3.connect(at, timeout=60)
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert db.execute("SELECT n FROM counter").fetchone() == (count * workers,)
            assert db.execute("SELECT count(*) FROM log").fetchone() == ((count - count // 10) * workers,)
            db.close()

        await p.mounts[0].call(make)
        await asyncio.gather(*[
            p.run(sys.executable, "-c", _with_journal(journal), tops[number % len(tops)] / "db", number, count, timeout_s=LONGEST_S)
            for number in range(workers)
        ])
        for m in p.mounts:
            await m.call(look, m.path / "db")


def _with_journal(journal: str) -> str:
    """The mode of the journal is the connection's, but for WAL, which is the file's."""
    return SQLITE_WORKER.replace("for number", f'db.execute("PRAGMA journal_mode = {journal}")\nfor number', 1)


@needs(PGBIN, "PGBIN names no PostgreSQL")
@pytest.mark.processes
@fire
async def test_postgresql(world: Any, kills: bool) -> None:
    """initdb with checksums, pgbench of 4 clients; no transaction fails, none is lost, and no page is damaged."""
    nobody = pwd.getpwnam("nobody").pw_uid
    seconds = size(6, 300)
    async with place(world, kills=kills) as p:
        data, sockets = p.first / "pg", p.world.directory / "s"
        for directory in (data, sockets):
            await p.mounts[0].call(directory.mkdir, 0o700)
            await p.mounts[0].call(os.chown, directory, nobody, nobody)
        at = ("-h", sockets, "-U", "nobody")

        async def pg(name: str, *words: object, quiet: bool = False) -> str:
            return await p.run(f"{PGBIN}/{name}", *map(str, words), cwd=Path("/"), timeout_s=LONGEST_S, user=nobody,
                               quiet=quiet, env={"LC_ALL": "C", "PGDATA": str(data), "HOME": "/"})  # fmt: skip

        async def ask(sql: str) -> int:
            return int(await pg("psql", *at, "-Atc", sql, "postgres"))

        await pg("initdb", "-k", "-A", "trust")
        options = f"-c listen_addresses= -c unix_socket_directories={sockets} -c shared_buffers=4MB -c checkpoint_timeout=30s"
        await pg("pg_ctl", "-w", "-t", "300", "-l", p.world.directory / "s" / "log", "-o", options, "start", quiet=True)
        try:
            await pg("pgbench", *at, "-i", "-q", "-s", size(1, 5), "postgres")
            said = await pg("pgbench", *at, "-c", "4", "-T", seconds, "postgres")
            done = int(re.search(r"actually processed: (\d+)", said)[1])  # type: ignore[index]
            assert done > 0 and "number of failed transactions: 0 " in said, said
            assert await ask("SELECT count(*) FROM pgbench_history") == done
            moved = await ask("SELECT sum(delta) FROM pgbench_history")
            for table in ("accounts", "tellers", "branches"):
                assert await ask(f"SELECT sum({table[0]}balance) FROM pgbench_{table}") == moved
        finally:
            await pg("pg_ctl", "-w", "-t", "300", "-m", "fast", "stop")
        assert "Bad checksums:  0" in await pg("pg_checksums", "--check")
        log = await p.mounts[0].call((sockets / "log").read_text)
        assert not re.search("ERROR|PANIC|could not", log), log[-3000:]
