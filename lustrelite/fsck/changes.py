"""What a repair changes: a draft of every target, what was done so far, and the steps that several mends need."""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping
from typing import NamedTuple

from lustrelite.fsck.draft import Draft, DraftFiles
from lustrelite.fsck.report import Problem
from lustrelite.ids import NO_FID, ROOT_FID, SEQ_NORMAL, Fid, make_fid
from lustrelite.mdt.reading import NEXT_SEQUENCE
from lustrelite.store import schema
from lustrelite.store.kv import Store
from lustrelite.store.objects import ObjectFiles
from lustrelite.store.schema import INODES, LINKS, META, NAMES, OST_LOG, Inode, Owner
from lustrelite.tunables import KEEP
from lustrelite.wire.mdt import Layout

LOST_FOUND = b"lost+found"
ONE_STRIPE = 1 << 20  # stripe size of a file with one object: it makes no difference


class Options(NamedTuple):
    """What the administrator has decided."""

    orphans: str = KEEP  # or DESTROY: what belongs to no file, or has no name
    replace_lost_osts: bool = False  # objects on OSTs that are not there: new, empty ones instead


class Mended(NamedTuple):
    """One thing that was put right."""

    kind: str
    subject: str
    did: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.subject}: {self.did}"


class OstDraft(NamedTuple):
    """One OST as it would be."""

    rows: Draft
    files: DraftFiles


class Changes:
    """The file system of a stopped cluster, as it would be."""

    def __init__(
        self, mdt: Store, osts: Mapping[int, tuple[Store, ObjectFiles]], *, now_ns: int, options: Options | None = None
    ) -> None:
        self.options = options or Options()
        self.now_ns = now_ns
        self.mdt = Draft(mdt)
        self.osts = {index: OstDraft(Draft(store), DraftFiles(files)) for index, (store, files) in sorted(osts.items())}
        self.mended: list[Mended] = []
        self.raised: dict[int, int] = {}  # OST -> last_used before it was raised
        self._lost_found: Fid | None = None
        self._sequence = 0
        self._fids = 0
        self._version = 0

    def did(self, problem: Problem, what: str) -> None:
        """Note what was done about a problem."""
        self.mended.append(Mended(problem.kind, problem.subject, what))

    # ------------------------------------------------------------ what several mends need

    def inode(self, fid: Fid) -> Inode | None:
        """The inode `fid`, if there is one."""
        value = self.mdt.get(INODES, fid)
        return None if value is None else schema.unpack_inode(value)

    def put_inode(self, fid: Fid, inode: Inode) -> None:
        """Make or change an inode."""
        self.mdt.put(INODES, fid, schema.pack_inode(inode))

    def new_inode(self, mode: int, *, nlink: int, parent: Fid = NO_FID, layout: Layout | None = None,
                  owner: Owner = Owner(0, 0, 0), times: tuple[int, int, int] | None = None) -> Inode:  # fmt: skip
        """An inode of our own making."""
        if not self._version:
            value = self.mdt.get(META, schema.meta_key("last_transno"))
            self._version = schema.unpack_meta(value) if value is not None else 1 << 32
        atime, mtime, ctime = times or (self.now_ns,) * 3
        uid, gid, projid = owner
        return Inode(
            mode, uid, gid, nlink, 0, 0, 0, 0, atime, mtime, ctime, self.now_ns, self._version, layout, None, b"", parent,
            projid,
        )  # fmt: skip

    def new_fid(self) -> Fid:
        """A FID that nobody has had: from a sequence of our own, which the MDT will not give to a client."""
        if not self._sequence:
            key = schema.meta_key(NEXT_SEQUENCE)
            value = self.mdt.get(META, key)
            self._sequence = schema.unpack_meta(value) if value is not None else SEQ_NORMAL
            self.mdt.put(META, key, schema.pack_meta(self._sequence + 1))
        while True:
            self._fids += 1
            fid = make_fid(self._sequence, self._fids)
            if self.mdt.get(INODES, fid) is None:
                return fid

    def condemn(self, index: int, oid: int) -> None:
        """The next start destroys the object, as if its file had been removed (mdt/ost_log.py)."""
        self.mdt.put(OST_LOG, schema.log_key(index, oid), schema.pack_log(schema.OstLogRecord(0, None)))

    def is_condemned(self, index: int, oid: int) -> bool:
        """Is it to be destroyed?"""
        value = self.mdt.get(OST_LOG, schema.log_key(index, oid))
        return value is not None and schema.unpack_log(value).owner is None

    def add_name(self, parent: Fid, name: bytes, child: Fid, kind: int) -> None:
        """A name with its back-pointer. Counts are not touched."""
        self.mdt.put(NAMES, schema.name_key(parent, name), schema.pack_entry(child, kind))
        self.mdt.put(LINKS, schema.link_key(child, parent, name), b"")

    def drop_name(self, key: bytes) -> None:
        """Remove the name in this row, with its back-pointer."""
        value = self.mdt.get(NAMES, key)
        if value is None:
            return
        parent, _, name = schema.split_name_key(key)
        child, _ = schema.unpack_entry(value)
        self.mdt.delete(NAMES, key)
        link = schema.link_key(child, parent, name)
        if self.mdt.get(LINKS, link) is not None:
            self.mdt.delete(LINKS, link)

    def lose_to(self, name: str, fid: Fid, kind: int) -> str:
        """Give `fid` a name in lost+found; returns its path."""
        directory = self._find_lost_found()
        wanted, number = name.encode(), 1
        while self.mdt.get(NAMES, schema.name_key(directory, wanted)) is not None:
            number += 1
            wanted = f"{name}-{number}".encode()
        self.add_name(directory, wanted, fid, kind)
        return f"/lost+found/{wanted.decode()}"

    def _find_lost_found(self) -> Fid:
        if self._lost_found is not None and self.inode(self._lost_found) is not None:
            return self._lost_found
        name, number = LOST_FOUND, 0
        while (entry := self.mdt.get(NAMES, schema.name_key(ROOT_FID, name))) is not None:
            fid = schema.unpack_entry(entry)[0]
            inode = self.inode(fid)
            if inode is not None and stat.S_ISDIR(inode.mode):
                self._lost_found = fid
                return fid
            number += 1
            name = LOST_FOUND + f".{number}".encode()
        fid = self.new_fid()
        self.put_inode(fid, self.new_inode(stat.S_IFDIR | 0o700, nlink=2, parent=ROOT_FID))
        self.add_name(ROOT_FID, name, fid, stat.S_IFDIR)
        root = self.inode(ROOT_FID)
        assert root is not None  # an earlier stage made it
        self.put_inode(ROOT_FID, root._replace(nlink=root.nlink + 1))
        self._lost_found = fid
        return fid


Mend = Callable[[Changes, list[Problem]], None]
