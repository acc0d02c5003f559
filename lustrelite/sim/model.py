"""What a file tree should be: the oracle's model, and a tree as a client sees it, to compare with."""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lustrelite.sim import access_lists
from lustrelite.sim.access_lists import ACCESS, DEFAULT
from lustrelite.wire.mdt import XATTR_CREATE, XATTR_REPLACE
from lustrelite.wire.ost import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE


class Refused(Exception):
    """The model's answer is an errno."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.errno = number


class Seen(NamedTuple):
    """One path of a tree, in the model or as a client sees it."""

    kind: str  # dir, file, symlink, other
    mode: int  # permission bits
    nlink: int
    content: bytes | None  # of a file; the target of a symlink; None is "anything"
    xattrs: tuple[tuple[str, bytes], ...]
    mtime: int | None  # of a file, as it was set by utime; BY_CLOCK; None is "anything"
    atime: int | None  # likewise


BY_CLOCK = 0
READ = -1  # an access time: by the clock, as soon as who has read it closes it; until then perhaps
NO_CLOCK_BEFORE = 10**18  # ns: what is earlier was set by utime, and a read replaces it
Tree = dict[str, Seen]


@dataclass
class Node:
    """An inode of the model. Never changed once it is in a tree: replaced."""

    kind: str
    mode: int
    content: bytes = b""
    fuzzy: bool = False
    xattrs: tuple[tuple[str, bytes], ...] = ()
    mtime: int | None = BY_CLOCK
    atime: int | None = BY_CLOCK


class Model:
    """A file tree: absolute paths to inode numbers, inode numbers to nodes. A copy is cheap."""

    def __init__(self, directories: tuple[str, ...] = ()) -> None:
        self.names: dict[str, int] = {"/": 1}
        self.nodes: dict[int, Node] = {1: Node("dir", 0o755)}
        self.handles: dict[int, int] = {}  # open handle -> inode
        self.read_by: frozenset[int] = frozenset()  # open handles that have read since the access time was set
        self._next = 2
        for path in directories:
            self.mkdir(path)

    def copy(self) -> Model:
        """An independent copy."""
        other = Model.__new__(Model)
        other.names = dict(self.names)
        other.nodes = dict(self.nodes)
        other.handles = dict(self.handles)
        other.read_by = self.read_by
        other._next = self._next
        return other

    def key(self) -> tuple[Any, ...]:
        """Equal for equal trees; inode numbers count, which only makes more of them."""
        return (
            tuple(sorted(self.names.items())),
            tuple(
                (n, node.mode, node.content, node.fuzzy, node.xattrs, node.mtime, node.atime)
                for n, node in sorted(self.nodes.items())
            ),
            tuple(sorted(self.handles.items())),
            tuple(sorted(self.read_by)),
        )

    # -- looking

    def find(self, path: str) -> int:
        """The inode at `path`; Refused(ENOENT), Refused(ENOTDIR)."""
        number = self.names.get(path)
        if number is None:
            self._parent(path)
            raise Refused(errno.ENOENT)
        return number

    def _parent(self, path: str) -> None:
        """Refuse unless the directory of `path` is there."""
        upper = parent(path)
        number = self.names.get(upper)
        if number is None:
            self._parent(upper)
            raise Refused(errno.ENOENT)
        if self.nodes[number].kind != "dir":
            raise Refused(errno.ENOTDIR)

    def children(self, path: str) -> list[str]:
        """Paths of what is in the directory `path`."""
        prefix = "/" if path == "/" else path + "/"
        return [p for p in self.names if p.startswith(prefix) and p != "/" and "/" not in p[len(prefix) :]]

    def _nlink(self, number: int) -> int:
        if self.nodes[number].kind == "dir":
            path = next(p for p, n in self.names.items() if n == number)
            return 2 + sum(self.nodes[self.names[p]].kind == "dir" for p in self.children(path))
        return sum(n == number for n in self.names.values())

    def tree(self) -> Tree:
        """Everything but the root."""
        subdirs: dict[str, int] = {}
        links: dict[int, int] = {}
        for path, number in self.names.items():
            links[number] = links.get(number, 0) + 1
            if self.nodes[number].kind == "dir" and path != "/":
                upper = parent(path)
                subdirs[upper] = subdirs.get(upper, 0) + 1
        tree = {}
        for path, number in self.names.items():
            if path == "/":
                continue
            node = self.nodes[number]
            nlink = 2 + subdirs.get(path, 0) if node.kind == "dir" else links[number]
            tree[path] = self._seen(node, nlink)
        return tree

    def seen(self, path: str) -> Seen:
        """What stat and read say of `path`."""
        number = self.find(path)
        return self._seen(self.nodes[number], self._nlink(number))

    @staticmethod
    def _seen(node: Node, nlink: int) -> Seen:
        content = None if node.fuzzy or node.kind == "dir" else node.content
        mtime = node.mtime if node.kind == "file" else None
        atime = node.atime if node.kind == "file" and node.atime != READ else None
        return Seen(node.kind, node.mode, nlink, content, node.xattrs, mtime, atime)

    # -- changing: each raises Refused before it changes anything

    def _make(self, path: str, node: Node) -> int:
        self._parent(path)
        if path in self.names:
            raise Refused(errno.EEXIST)
        default = dict(self.nodes[self.names[parent(path)]].xattrs).get(DEFAULT, b"")
        if default and node.kind != "symlink":
            mode, access = access_lists.inherited(default, node.mode)
            lists = {ACCESS: access, DEFAULT: default if node.kind == "dir" else b""}
            node = replace(node, mode=mode, xattrs=tuple((name, value) for name, value in lists.items() if value))
        number = self._next
        self._next += 1
        self.names[path] = number
        self.nodes[number] = node
        return number

    def _drop(self, number: int) -> None:
        if number not in self.names.values() and number not in self.handles.values():
            del self.nodes[number]

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        self._make(path, Node("dir", mode))

    def create(self, path: str, mode: int = 0o644) -> None:
        """open(O_CREAT | O_EXCL), close."""
        self._make(path, Node("file", mode))

    def symlink(self, target: str, path: str) -> None:
        self._make(path, Node("symlink", 0o777, target.encode()))

    def link(self, path: str, new: str) -> None:
        number = self.find(path)
        self._parent(new)
        if new in self.names:
            raise Refused(errno.EEXIST)
        if self.nodes[number].kind == "dir":
            raise Refused(errno.EPERM)
        self.names[new] = number

    def unlink(self, path: str) -> None:
        number = self.find(path)
        if self.nodes[number].kind == "dir":
            raise Refused(errno.EISDIR)
        del self.names[path]
        self._drop(number)

    def rmdir(self, path: str) -> None:
        number = self.find(path)
        if self.nodes[number].kind != "dir":
            raise Refused(errno.ENOTDIR)
        if self.children(path):
            raise Refused(errno.ENOTEMPTY)
        del self.names[path]
        del self.nodes[number]

    def rename(self, old: str, new: str) -> None:
        number = self.find(old)
        self._parent(new)
        if new.startswith(old + "/"):
            raise Refused(errno.EINVAL)
        there = self.names.get(new)
        if there == number:
            return
        is_dir = self.nodes[number].kind == "dir"
        if there is not None:
            if old.startswith(new + "/"):
                raise Refused(errno.ENOTEMPTY)
            if is_dir and self.nodes[there].kind != "dir":
                raise Refused(errno.ENOTDIR)
            if not is_dir and self.nodes[there].kind == "dir":
                raise Refused(errno.EISDIR)
            if is_dir and self.children(new):
                raise Refused(errno.ENOTEMPTY)
        del self.names[old]
        self.names[new] = number
        if there is not None:
            self._drop(there)
        if is_dir:
            prefix = old + "/"
            for path in [p for p in self.names if p.startswith(prefix)]:
                self.names[new + path[len(old) :]] = self.names.pop(path)

    def exchange(self, old: str, new: str) -> None:
        """rename with RENAME_EXCHANGE."""
        number, other = self.find(old), self.find(new)
        if old != new and (new.startswith(old + "/") or old.startswith(new + "/")):
            raise Refused(errno.EINVAL)
        if number == other:
            return
        moved = {}
        for here, there in ((old, new), (new, old)):
            for path in [p for p in self.names if p == here or p.startswith(here + "/")]:
                moved[there + path[len(here) :]] = self.names[path]
        for path in [p for p in self.names if p.startswith((old + "/", new + "/"))]:
            del self.names[path]
        self.names.update(moved)

    def chmod(self, path: str, mode: int) -> None:
        number = self.find(path)
        xattrs = dict(self.nodes[number].xattrs)
        if ACCESS in xattrs:
            xattrs[ACCESS] = access_lists.changed(xattrs[ACCESS], mode)
        self._replace(number, mode=mode, xattrs=tuple(sorted(xattrs.items())))

    def utime(self, path: str, mtime: int, atime: int) -> None:
        number = self.find(path)
        self._replace(number, mtime=mtime, atime=atime)
        self.read_by -= {handle for handle, opened in self.handles.items() if opened == number}

    def setxattr(self, path: str, name: str, value: bytes, flags: int = 0) -> None:
        number = self.find(path)
        if name in (ACCESS, DEFAULT):
            self._set_list(number, name, value)
            return
        xattrs = dict(self.nodes[number].xattrs)
        if flags & XATTR_CREATE and name in xattrs:
            raise Refused(errno.EEXIST)
        if flags & XATTR_REPLACE and name not in xattrs:
            raise Refused(errno.ENODATA)
        self._replace(number, xattrs=tuple(sorted({**xattrs, name: value}.items())))

    def removexattr(self, path: str, name: str) -> None:
        number = self.find(path)
        if name in (ACCESS, DEFAULT):
            self._set_list(number, name, b"")
            return
        xattrs = dict(self.nodes[number].xattrs)
        if name not in xattrs:
            raise Refused(errno.ENODATA)
        del xattrs[name]
        self._replace(number, xattrs=tuple(sorted(xattrs.items())))

    def _set_list(self, number: int, name: str, value: bytes) -> None:
        """An access list, or none. One that says no more than the mode is not kept."""
        node = self.nodes[number]
        xattrs, mode = dict(node.xattrs), node.mode
        if name == DEFAULT and value and node.kind != "dir":
            raise Refused(errno.EACCES)
        xattrs.pop(name, None)
        if value and name == ACCESS:
            mode = access_lists.permissions(value)
        if value and (name == DEFAULT or access_lists.says_more(value)):
            xattrs[name] = value
        self._replace(number, mode=mode, xattrs=tuple(sorted(xattrs.items())))

    def _replace(self, number: int, **fields: Any) -> None:
        node = self.nodes[number]
        self.nodes[number] = replace(node, **fields)

    def _file(self, path: str) -> int:
        number = self.find(path)
        if self.nodes[number].kind == "dir":
            raise Refused(errno.EISDIR)
        return number

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """open(O_CREAT | O_TRUNC), write, close."""
        if path not in self.names:
            self._make(path, Node("file", mode, data))
        else:
            self._replace(self._file(path), content=data, fuzzy=False, mtime=BY_CLOCK)

    def write_at(self, path: str, offset: int, data: bytes) -> None:
        """open, pwrite, close."""
        self._splice(self._file(path), offset, data)

    def _splice(self, number: int, offset: int, data: bytes) -> None:
        if not data:
            return  # a write of nothing does not even extend the file
        content = self.nodes[number].content.ljust(offset, b"\0")
        self._replace(number, content=content[:offset] + data + content[offset + len(data) :], mtime=BY_CLOCK)

    def truncate(self, path: str, size: int) -> None:
        number = self._file(path)
        node = self.nodes[number]
        changed = len(node.content) != size and not node.fuzzy  # else it may change nothing, or its size is not known
        content = node.content[:size].ljust(size, b"\0")
        self._replace(number, content=content, fuzzy=node.fuzzy and size > 0, mtime=BY_CLOCK if changed else None)

    def fallocate(self, path: str, mode: int, start: int, length: int) -> None:
        """open, fallocate, close."""
        number = self._file(path)
        node = self.nodes[number]
        end = start + length
        content = node.content
        if mode & (FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE):
            content = content[:start] + bytes(max(min(end, len(content)) - start, 0)) + content[end:]
        if not mode & FALLOC_KEEP_SIZE:
            content = content.ljust(end, b"\0")
        self._replace(number, content=content, mtime=None)

    def open(self, path: str, create: bool, handle: int) -> None:
        """An open for reading and writing, known as `handle`."""
        if create and path not in self.names:
            number = self._make(path, Node("file", 0o644))
        else:
            number = self._file(path)
        self.handles[handle] = number

    def pwrite(self, handle: int, offset: int, data: bytes) -> None:
        self._splice(self.handles[handle], offset, data)

    def close(self, handle: int) -> None:
        number = self.handles.pop(handle)
        if handle in self.read_by:
            self.read_by -= {handle}
            if self.nodes[number].atime in (READ, None):
                self._replace(number, atime=BY_CLOCK)
        self._drop(number)

    # -- looking, as operations

    def _was_read(self, number: int, atime: int) -> bool:
        """The access time by which a file was read; False: perhaps not, for there was nothing, or may have been.

        One in the future stays.
        """
        node = self.nodes[number]
        certain = bool(node.content) and not node.fuzzy
        if node.atime is None or (node.atime < NO_CLOCK_BEFORE and node.atime != BY_CLOCK):
            self._replace(number, atime=atime if certain else None)
        return certain

    def read(self, path: str) -> bytes | None:
        number = self._file(path)
        self._was_read(number, BY_CLOCK)
        node = self.nodes[number]
        return None if node.fuzzy else node.content

    def pread(self, handle: int) -> bytes | None:
        number = self.handles[handle]
        if self._was_read(number, READ):
            self.read_by |= {handle}
        node = self.nodes[number]
        return None if node.fuzzy else node.content

    def stat(self, path: str) -> tuple[str, int, int, int | None, int | None]:
        """(kind, permissions, link count, time of change, of access)."""
        seen = self.seen(path)
        return seen.kind, seen.mode, seen.nlink, seen.mtime, seen.atime

    def exists(self, path: str) -> bool:
        return path in self.names

    def readlink(self, path: str) -> str:
        node = self.nodes[self.find(path)]
        if node.kind != "symlink":
            raise Refused(errno.EINVAL)
        return node.content.decode()

    def listdir(self, path: str) -> tuple[str, ...]:
        if self.nodes[self.find(path)].kind != "dir":
            raise Refused(errno.ENOTDIR)
        return tuple(sorted(p.rpartition("/")[2] for p in self.children(path)))

    def getxattr(self, path: str, name: str) -> bytes:
        value = dict(self.nodes[self.find(path)].xattrs).get(name)
        if value is None:
            raise Refused(errno.ENODATA)
        return value

    def listxattr(self, path: str) -> tuple[str, ...]:
        return tuple(name for name, _ in self.nodes[self.find(path)].xattrs)

    # -- what is left of an operation that went halfway

    def smear(self, name: str, args: tuple[Any, ...]) -> None:
        """Data and time of the file that the operation writes may be anything from now on."""
        if name in ("pwrite", "close"):
            number = self.handles.get(args[0])
        else:
            number = self.names.get(args[0])
        if number is not None and self.nodes[number].kind == "file":
            self._replace(number, fuzzy=True, mtime=None)

    def smear_all(self) -> None:
        """Data and time of every file may be anything."""
        for number, node in self.nodes.items():
            if node.kind == "file":
                self._replace(number, fuzzy=True, mtime=None)


READS = frozenset({"read", "pread", "stat", "exists", "readlink", "listdir", "getxattr", "listxattr"})
BY_HANDLE = frozenset({"pread", "pwrite", "close"})
READS_DATA = frozenset({"read", "pread"})
WRITES_DATA = frozenset({"write", "write_at", "truncate", "fallocate", "pwrite"})


def parent(path: str) -> str:
    """The directory of `path`."""
    return path.rpartition("/")[0] or "/"


def difference(expected: Tree, observed: Tree) -> str:
    """What of `observed` is not as expected; "" if nothing."""
    lines = []
    for path in sorted(expected.keys() | observed.keys()):
        want, have = expected.get(path), observed.get(path)
        if want is None or have is None:
            lines.append(f"{path} is {'missing' if have is None else f'there ({have.kind})'}")
            continue
        for name, a, b in zip(Seen._fields, want, have, strict=True):
            if a != b and not (name in ("content", "mtime", "atime") and a is None):
                lines.append(f"{path}: {name} is {short(b)}, should be {short(a)}")
    return "; ".join(lines[:6]) + (f"; and {len(lines) - 6} more" if lines[6:] else "")


def short(value: Any) -> str:
    if isinstance(value, bytes) and len(value) > 24:
        return f"{value[:12]!r}..{len(value)} bytes"
    return repr(value)
