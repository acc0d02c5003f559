"""Parallel operations in one directory: one is held up in the middle, the other has the same name or another one.

Lustre locks the hash of a name, so that operations on one name wait for each other and others do not. Here a change
is made in one turn, and waits only for what clients cache (lustrelite/mdt/locks.py). What must hold is the same: each
happens wholly before or wholly after the other, by its answer and by what all clients see, and other names do not wait.

An operation is held up on its way to the MDS, or in the MDS because a third client is slow to give back its locks.
Source: lustre/tests/sanityn.sh test_40a to test_46h, and others of the kind
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from mounts import Mount, mounts, some_cache, two_mounts
from steps import refused, soon

from lustrelite.errors import OpError
from lustrelite.sim.model import Model, Refused
from lustrelite.wire.locks import BlockingCallback
from lustrelite.wire.mdt import Create, Link, Lookup, Open, Rename, Unlink

Outcome = Any  # what it returned, or ("refused", errno)


class Step(NamedTuple):
    """An operation of a client, and of the oracle's model."""

    name: str
    args: tuple[Any, ...]

    async def do(self, client: Any) -> Outcome:
        """As the client."""
        try:
            result = await getattr(client, self.name)(*self.args)
        except OpError as error:
            return "refused", error.errno
        if self.name == "stat":
            return ("dir" if result.is_dir else "file"), result.nlink
        return result

    def expected(self, model: Model) -> Outcome:
        """As the model."""
        how = {"create": (0o644,), "mkdir": (0o755,), "open": (True, 1)}.get(self.name, ())
        try:
            result = getattr(model, self.name)(*self.args, *how)
        except Refused as refused:
            return "refused", refused.errno
        if self.name == "stat":
            return result[0], result[2]
        return sorted(result) if self.name == "listdir" else result


# What is done first, to f: what must be there, the operation, its message.
FIRST: dict[str, tuple[list[str], Step, type]] = {
    "create": ([], Step("open_new", ("f",)), Open),
    "mkdir": ([], Step("mkdir", ("f",)), Create),
    "unlink": (["f"], Step("unlink", ("f",)), Unlink),
    "rename onto it": (["f2"], Step("rename", ("f2", "f")), Rename),
    "rename away": (["f"], Step("rename", ("f", "f2")), Rename),
    "link": (["f2"], Step("link", ("f2", "f")), Link),
}
SECOND = {
    "a": Step("mkdir", ("f",)),
    "b": Step("create", ("f",)),
    "c": Step("link", ("f3", "f")),
    "d": Step("unlink", ("f",)),
    "e": Step("rename", ("f3", "f")),
    "f": Step("rename", ("f", "f4")),
    "g": Step("stat", ("f",)),
    "h": Step("listdir", ("",)),
}
PAIRS = [  # number, the first, letters of the second; "!": it is refused if it comes after the first
    ("41", "create", "a! b! c! d e f g h"),
    ("42", "mkdir", "a! b! c! d e! f g h"),
    ("43", "unlink", "b c d! e f! g! h"),
    ("44", "rename onto it", "a! b! c! d e f g h"),
    ("45", "rename away", "b c d! e f! g! h"),
    ("46", "link", "a! b! c! d e f g h"),
]


def pairs() -> Iterator[Any]:
    for number, first, letters in PAIRS:
        for letter in letters.split():
            name = f"SN {number}{letter[0]}"
            yield pytest.param(first, letter[0], letter.endswith("!"), marks=pytest.mark.lustre(name), id=name)


class In:
    """A client's operations in one directory, as the oracle records them."""

    def __init__(self, client: Any, directory: str) -> None:
        self.client = client
        self.directory = directory

    def __getattr__(self, name: str) -> Any:
        return lambda *names: getattr(self.client, name)(*[self._path(each) for each in names])

    def _path(self, name: str) -> str:
        return f"{self.directory}/{name}" if name else self.directory

    async def open_new(self, name: str) -> None:
        """open(O_CREAT) and close."""
        await (await self.client.open(self._path(name), create=True)).close()


def in_directory(step: Step, directory: str) -> Step:
    """The same for the model, with whole paths; its open is a create."""
    paths = tuple(f"{directory}/{name}" if name else directory for name in step.args)
    return Step("open" if step.name == "open_new" else step.name, paths)


def outcomes(there: list[str], directory: str, *steps: Step) -> tuple[list[Outcome], Model]:
    """What the model answers to the steps, one after the other."""
    model = Model((directory,))
    for name in there:
        model.create(f"{directory}/{name}", 0o644)
    return [in_directory(step, directory).expected(model) for step in steps], model


async def everybody_sees(c: Any, directory: str, model: Model) -> None:
    """All clients see what the model has."""
    names = [path.rpartition("/")[2] for path in model.children(directory)]
    for client in c.clients.values():
        assert await client.listdir(directory) == sorted(names)
        for name in ("f", "f2", "f3", "f4"):
            expected = in_directory(Step("stat", (name,)), directory).expected(model)
            assert await Step("stat", (name,)).do(In(client, directory)) == expected, (client.name, name)


@pytest.mark.parametrize(("name", "letter", "fails"), list(pairs()))
async def test_operations_on_one_name_happen_one_after_the_other(
    cluster: Any, name: str, letter: str, fails: bool
) -> None:
    """Source: lustre/tests/sanityn.sh test_41a to test_46h"""
    there, first, message = FIRST[name]
    second = SECOND[letter]
    if name == "mkdir" and letter == "d":
        second = Step("rmdir", second.args)
    if name == "link" and letter == "c":
        second = Step("link", ("f", "f"))
    there = [*there, "f3"] if "f3" in second.args else there
    async with two_mounts(cluster, "abc", clients=4) as (c, *_):
        for number, (one, other) in enumerate(((c.a, c.b), (c.a, c.d), (c.d, c.b))):
            # held up on its way: the second does not wait
            directory = f"/p{number}"
            before, model = outcomes(there, directory, second, first)
            await c.a.mkdir(directory)
            for each in there:
                await c.b.create(f"{directory}/{each}")
            for client in (one, other):
                await client.listdir(directory)
            held = c.net.hold(message, to=c.mds, source=one)
            doing = soon(first.do(In(one, directory)))
            await held.caught()
            assert await second.do(In(other, directory)) == before[0]
            assert not doing.done()
            held.release()
            assert await doing == before[1]
            await everybody_sees(c, directory, model)

            # held up in the MDS, for the locks of a third client
            directory = f"/q{number}"
            after, model_after = outcomes(there, directory, first, second)
            before, model_before = outcomes(there, directory, second, first)
            assert (type(after[1]) is tuple and after[1][0] == "refused") == fails
            await c.a.mkdir(directory)
            for each in there:
                await c.a.create(f"{directory}/{each}")
            await c.c.listdir(directory)
            for each in there:
                await c.c.stat(f"{directory}/{each}")
            held = c.net.hold(BlockingCallback, to=c.c)
            doing = soon(first.do(In(one, directory)))
            await held.caught()
            following = soon(second.do(In(other, directory)))
            await asyncio.sleep(1)
            assert not doing.done()
            waits = not following.done()
            assert waits or letter in "gh" or before[0] is not None, "it could be done and did not wait"
            assert not (waits and letter in "gh"), "who only looks waits for nobody"
            held.release()
            if waits:
                assert [await doing, await following] == after
            else:
                assert [await following, await doing] == before
            await everybody_sees(c, directory, model_after if waits else model_before)
        c.never_saw("client.evicted")


OTHERS = [  # what is done meanwhile, to other names
    Step("open_new", ("f-2",)),
    Step("mkdir", ("f-3",)),
    Step("link", ("f-2", "f-4")),
    Step("rename", ("f-2", "f-5")),
    Step("stat", ("f-3",)),
    Step("stat", ("f-4",)),
    Step("listdir", ("",)),
    Step("unlink", ("f-4",)),
    Step("unlink", ("f-5",)),
    Step("rmdir", ("f-3",)),
]


@some_cache
@pytest.mark.parametrize(
    ("there", "first", "message"),
    [
        pytest.param([], Step("mkdir", ("f",)), Create, marks=pytest.mark.lustre("SN 40a"), id="mkdir"),
        pytest.param([], Step("open_new", ("f",)), Open, marks=pytest.mark.lustre("SN 40b"), id="create"),
        pytest.param(["f"], Step("link", ("f", "f-0")), Link, marks=pytest.mark.lustre("SN 40c"), id="link"),
        pytest.param(["f"], Step("unlink", ("f",)), Unlink, marks=pytest.mark.lustre("SN 40d"), id="unlink"),
        pytest.param(["f"], Step("rename", ("f", "f-0")), Rename, marks=pytest.mark.lustre("SN 40e"), id="rename"),
    ],
)
async def test_operations_on_other_names_do_not_wait(
    cluster: Any, mix: str, there: list[str], first: Step, message: type
) -> None:
    """Source: lustre/tests/sanityn.sh test_40a to test_40e"""
    async with two_mounts(cluster, mix + "c", clients=3) as (c, *_):
        for directory in ("/p", "/q"):
            await c.a.mkdir(directory)
            for each in there:
                await c.a.create(f"{directory}/{each}")
            if directory == "/p":  # on its way to the MDS
                held = c.net.hold(message, to=c.mds, source=c.a)
            elif there:  # in it: the third client is slow to give back the file, not the directory
                await c.c.stat(f"{directory}/f")
                held = c.net.hold(BlockingCallback, to=c.c)
            else:  # in it: for a new name there is only the directory to wait for
                c.faults.arm("target.execute", "delay", on=c.mds, peer=c.a.uuid, delay_s=3.0)
                held = None
            doing = soon(first.do(In(c.a, directory)))
            await (held.caught() if held is not None else asyncio.sleep(0.5))
            began = c.loop.time()
            for step in OTHERS:
                result = await step.do(In(c.b, directory))
                assert not (type(result) is tuple and result[0] == "refused"), step
            assert not doing.done() and c.loop.time() < began + 1.0
            if held is not None:
                held.release()
            assert await doing is None
            _, model = outcomes(there, directory, first)
            await everybody_sees(c, directory, model)
        c.never_saw("client.evicted")


async def one_of_two(c: Any, first: Any, second: Any) -> int:
    """Begin both at once; one must succeed and the other find its work: which."""
    results = await asyncio.gather(first, second, return_exceptions=True)
    won = [number for number, result in enumerate(results) if not isinstance(result, BaseException)]
    assert len(won) == 1, results
    lost = results[1 - won[0]]
    assert isinstance(lost, OpError) and lost.errno == errno.EEXIST, lost
    return won[0]


@pytest.mark.lustre("SN 41i", "SN 43j")
@pytest.mark.parametrize("kind", ["create", "mkdir"])
@some_cache
async def test_of_two_that_make_a_name_at_once_one_makes_it(cluster: Any, mix: str, kind: str) -> None:
    """Source: lustre/tests/sanityn.sh test_41i, test_43j"""
    async with two_mounts(cluster, mix) as (c, a, b):
        won = [0, 0]

        async def make(mount: Mount) -> None:
            if kind == "mkdir":
                await mount.mkdir("/u/f")
            else:
                await (await mount.open("/u/f", os.O_RDWR | os.O_CREAT | os.O_EXCL)).close()

        for number in range(60):
            if number % 3 == 0:  # one of them waits a little in the MDS
                c.faults.arm("target.execute", "delay", on=c.mds, delay_s=0.0005 * (number % 4))
            elif number % 3 == 1:  # or arrives late
                c.net.slow(Create if kind == "mkdir" else Open, delay_s=0.002, source=(c.a, c.b)[number % 2])
            one, other = (a, b) if number % 2 else (b, a)
            winner = one if await one_of_two(c, make(one), make(other)) == 0 else other
            won["ab".index(winner.client.name)] += 1
            assert (await a.stat("/u/f")).fid == (await b.stat("/u/f")).fid
            await (a.rmdir if kind == "mkdir" else a.unlink)("/u/f")
        assert min(won) > 5, f"{won}: no race"


@pytest.mark.lustre("SN 43a", "SN 45a")
@pytest.mark.parametrize("how", ["removed", "renamed"])
@some_cache
async def test_a_name_that_the_other_mount_took_away_can_be_made_again(cluster: Any, mix: str, how: str) -> None:
    """Source: lustre/tests/sanityn.sh test_43a, test_45a"""
    async with two_mounts(cluster, mix) as (_, a, b):
        for number in range(100):
            await a.mkdir("/u/d")
            if how == "removed":
                await b.rmdir("/u/d")
            else:
                await b.rename("/u/d", f"/u/d.{number}")
        assert len(await a.names("/u")) == len(await b.names("/u")) == (0 if how == "removed" else 100)


@pytest.mark.lustre("SN 115")
@some_cache
async def test_a_name_that_is_made_twice_while_others_come_and_go_is_there_once(cluster: Any, mix: str) -> None:
    """Source: lustre/tests/sanityn.sh test_115"""
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.makedirs("/u/d/one")
        for number in range(30):
            await b.mkdir(f"/u/d/f{number}")
        held = c.net.hold(Create, to=c.mds, source=c.a)
        making = soon(a.mkdir("/u/d/two"))
        await held.caught()
        await b.mkdir("/u/d/two")
        await b.rmdir("/u/d/one")
        held.release()
        with refused(errno.EEXIST):
            await making
        expected = sorted([f"f{number}" for number in range(30)] + ["two"])
        assert await a.names("/u/d") == await b.names("/u/d") == expected
        assert (await a.stat("/u/d")).nlink == (await b.stat("/u/d")).nlink == 33


@pytest.mark.lustre("SN 81d")
@some_cache
async def test_both_mounts_move_files_out_of_one_directory_at_once(cluster: Any, mix: str) -> None:
    """Source: lustre/tests/sanityn.sh test_81d"""
    async with two_mounts(cluster, mix) as (c, *_):
        both = mounts(c)
        await both[0].makedirs("/u/d/temporary")
        for number in range(60):
            await both[0].create(f"/u/d/temporary/f{number:02}")
        for mount in both:
            assert len(await mount.names("/u/d/temporary")) == 60
        began = c.loop.time()
        await asyncio.gather(
            *[both[number % 2].rename(f"/u/d/temporary/f{number:02}", f"/u/d/f{number:02}") for number in range(60)]
        )
        assert c.loop.time() < began + 1.0, "they do not wait for each other"
        for mount in both:
            assert await mount.names("/u/d/temporary") == []
            assert await mount.names("/u/d") == sorted([f"f{number:02}" for number in range(60)] + ["temporary"])


@pytest.mark.lustre("SN 93")
@some_cache
async def test_files_that_are_made_at_once_have_each_object_on_an_ost_of_its_own(cluster: Any, mix: str) -> None:
    """Source: lustre/tests/sanityn.sh test_93"""
    async with two_mounts(cluster, mix, oss=4) as (c, a, b):
        for number in range(10):
            c.faults.arm("target.execute", "delay", on=c.mds, delay_s=0.001, skip=number % 3)
            await asyncio.gather(a.setstripe(f"/u/a{number}", -1), b.setstripe(f"/u/b{number}", -1))
            for name in (f"/u/a{number}", f"/u/b{number}"):
                layout = await b.getstripe(name)
                assert sorted(index for index, _ in layout.stripes) == [0, 1, 2, 3]


@pytest.mark.lustre("SN 43k")
@some_cache
async def test_a_file_is_written_anew_while_the_other_mount_removes_it(cluster: Any, mix: str) -> None:
    """Source: lustre/tests/sanityn.sh test_43k"""
    async with two_mounts(cluster, mix) as (c, a, b):
        left = []
        for number in range(40):
            await b.write_file("/u/f", b"before")
            await a.stat("/u/f")
            if number % 2:
                held = c.net.hold(Open, to=c.mds, source=c.a)
                writing = soon(a.write_file("/u/f", b"content"))
                await held.caught()
                await b.unlink("/u/f")
                held.release()
                await writing
            else:
                if number % 4:
                    c.net.slow(Unlink, delay_s=0.001, to=c.mds)
                await asyncio.gather(a.write_file("/u/f", b"content"), b.unlink("/u/f"))
            left.append(await b.exists("/u/f"))
            assert left[-1] == await a.exists("/u/f")
            if left[-1]:
                assert await a.content("/u/f") == await b.content("/u/f") == b"content"
        assert all(left[1::2]) and not all(left[::2])


@pytest.mark.lustre("SN 45j")
@some_cache
@pytest.mark.parametrize("message", [Lookup, Open])
async def test_a_file_is_read_while_the_other_mount_renames_another_one_over_it(
    cluster: Any, mix: str, message: type
) -> None:
    """Source: lustre/tests/sanityn.sh test_45j"""
    async with two_mounts(cluster, mix) as (c, a, b):
        for number in range(20):
            await b.write_file("/u/f", b"file1")
            await b.write_file("/u/f2", b"file2")
            if number % 2:
                c.net.slow(message, delay_s=0.001, to=c.mds, source=c.a)
            data, _ = await asyncio.gather(a.read_file("/u/f"), b.rename("/u/f2", "/u/f"))
            assert data in (b"file1", b"file2")
            assert await a.content("/u/f") == b"file2" and await a.names("/u") == ["f"]
