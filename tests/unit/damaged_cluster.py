"""Stores of a small cluster, written to directly, and every kind of damage that can be done to them."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from lustrelite import fsck
from lustrelite.ids import NO_FID, ROOT_FID, Fid, fid_text, make_fid
from lustrelite.store import schema
from lustrelite.store.kv import Store
from lustrelite.store.objects import ObjectFiles
from lustrelite.store.schema import Inode, ObjectRecord, PoolRecord
from lustrelite.wire.mdt import Layout

SEQ = 0x200000401
DIR, SUB, FILE, HARD, LINK, ORPHAN = (make_fid(SEQ, n) for n in range(1, 7))
ABSENT = make_fid(SEQ, 99)
S_DIR, S_REG, S_LNK = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777


class DamagedCluster:
    """Stores of one MDT and two OSTs, written to directly.

    / - d (DIR) - sub (SUB) - f (FILE: OST0:1, OST1:1), h2 (HARD)
      - h1 (HARD: OST0:2), l (LINK, symlink);  ORPHAN (OST0:3) open and unlinked
    OST0:4 is written but its file is destroyed (in the destroy log); 5 and 6 are granted and not used yet.
    """

    def __init__(self, top: Path) -> None:
        self.mdt = Store.open(top / "mdt", "MDT", create=True, durable=False)
        self.osts: dict[int, tuple[Store, ObjectFiles]] = {}
        for index in (0, 1):
            directory = top / f"ost{index}"
            store = Store.open(directory, "OST", create=True, durable=False)
            self.osts[index] = (store, ObjectFiles(directory, durable=False))
        self.inode(ROOT_FID, S_DIR, 3, parent=ROOT_FID)
        self.inode(DIR, S_DIR, 3, parent=ROOT_FID)
        self.inode(SUB, S_DIR, 2, parent=DIR)
        self.inode(FILE, S_REG, 1, stripes=((0, 1), (1, 1)))
        self.inode(HARD, S_REG, 2, stripes=((0, 2),))
        self.inode(LINK, S_LNK, 1)
        self.inode(ORPHAN, S_REG, 0, stripes=((0, 3),))
        self.put(schema.ORPHANS, ORPHAN, b"")
        self.name(ROOT_FID, b"d", DIR, S_DIR)
        self.name(DIR, b"sub", SUB, S_DIR)
        self.name(SUB, b"f", FILE, S_REG)
        self.name(SUB, b"h2", HARD, S_REG)
        self.name(ROOT_FID, b"h1", HARD, S_REG)
        self.name(ROOT_FID, b"l", LINK, S_LNK)
        self.put(schema.XATTRS, schema.xattr_key(FILE, b"user.a"), b"1")
        self.put(schema.POOLS, schema.pool_key(0), schema.pack_pool(PoolRecord(4, 6)))
        self.put(schema.POOLS, schema.pool_key(1), schema.pack_pool(PoolRecord(1, 6)))
        self.put(schema.OST_LOG, schema.log_key(0, 4), schema.pack_log(schema.OstLogRecord(7, None)))
        for index in (0, 1):
            self.ost_put(index, schema.META, schema.meta_key("last_id"), schema.pack_meta(6))
            for oid in range(1, 7):
                self.object(index, oid, NO_FID, 0)
        self.object(0, 1, FILE, 0, b"data")
        self.object(1, 1, FILE, 1, b"data")
        self.object(0, 3, ORPHAN, 0, b"data")
        self.object(0, 4, ABSENT, 0, b"data")
        # OST1: ids 2 to 6 are the pool (last_used is 1)

    def put(self, table: str, key: bytes, value: bytes | None) -> None:
        self.mdt.apply({(table, key): value})

    def ost_put(self, index: int, table: str, key: bytes, value: bytes | None) -> None:
        self.osts[index][0].apply({(table, key): value})

    def inode(
        self, fid: Fid, mode: int, nlink: int, *, parent: Fid = NO_FID, stripes: tuple[tuple[int, int], ...] = ()
    ) -> None:
        layout = Layout(1 << 20, 0, "", stripes) if stripes else None
        inode = Inode(mode, 0, 0, nlink, 0, 0, 0, 0, 1, 1, 1, 1, 5, layout, None, b"", parent)
        if fid == FILE:
            inode = inode._replace(xattrs=len(b"user.a") + 1)
        self.put(schema.INODES, fid, schema.pack_inode(inode))

    def name(self, parent: Fid, name: bytes, child: Fid, mode: int, *, link: bool = True) -> None:
        self.put(schema.NAMES, schema.name_key(parent, name), schema.pack_entry(child, stat.S_IFMT(mode)))
        if link:
            self.put(schema.LINKS, schema.link_key(child, parent, name), b"")

    def no_name(self, parent: Fid, name: bytes, child: Fid, *, link: bool = False) -> None:
        self.put(schema.NAMES, schema.name_key(parent, name), None)
        if not link:
            self.put(schema.LINKS, schema.link_key(child, parent, name), None)

    def object(self, index: int, oid: int, owner: Fid, stripe: int, data: bytes = b"") -> None:
        record = ObjectRecord(0, 0, 1, 1, 1, 1, owner, stripe)
        self.ost_put(index, schema.OBJECTS, schema.object_key(oid), schema.pack_object(record))
        if data:
            self.osts[index][1].write(oid, 0, data)

    def check(self) -> fsck.Report:
        return fsck.check(self.mdt, self.osts)

    def close(self) -> None:
        for store, files in self.osts.values():
            files.close()
            store.abort()
        self.mdt.abort()


def drop_inode(c: DamagedCluster) -> None:
    c.put(schema.INODES, LINK, None)


def unlinked_name_without_inode(c: DamagedCluster) -> None:
    c.name(DIR, b"x", ABSENT, S_REG, link=False)


def name_in_file(c: DamagedCluster) -> None:
    c.no_name(ROOT_FID, b"l", LINK)
    c.name(FILE, b"l", LINK, S_LNK)


def drop_link(c: DamagedCluster) -> None:
    c.put(schema.LINKS, schema.link_key(FILE, SUB, b"f"), None)


def drop_name_keep_link(c: DamagedCluster) -> None:
    c.inode(HARD, S_REG, 1, stripes=((0, 2),))
    c.no_name(SUB, b"h2", HARD, link=True)


def name_type(c: DamagedCluster) -> None:
    c.name(ROOT_FID, b"l", LINK, S_REG)


def name_claims_directory(c: DamagedCluster) -> None:
    c.name(ROOT_FID, b"l", LINK, S_DIR)
    c.inode(ROOT_FID, S_DIR, 4, parent=ROOT_FID)


def name_cookie(c: DamagedCluster) -> None:
    c.no_name(ROOT_FID, b"l", LINK, link=True)
    wrong = ROOT_FID + (12345).to_bytes(8, "big") + b"l"
    c.put(schema.NAMES, wrong, schema.pack_entry(LINK, stat.S_IFLNK))


def lost_inode(c: DamagedCluster) -> None:
    c.no_name(ROOT_FID, b"l", LINK)


def wrong_nlink(c: DamagedCluster) -> None:
    c.inode(HARD, S_REG, 3, stripes=((0, 2),))


def wrong_directory_nlink(c: DamagedCluster) -> None:
    c.inode(DIR, S_DIR, 2, parent=ROOT_FID)


def wrong_root_nlink(c: DamagedCluster) -> None:
    c.inode(ROOT_FID, S_DIR, 2, parent=ROOT_FID)


def wrong_parent(c: DamagedCluster) -> None:
    c.inode(SUB, S_DIR, 2, parent=ROOT_FID)


def two_directory_names(c: DamagedCluster) -> None:
    c.name(DIR, b"again", SUB, S_DIR)
    c.inode(DIR, S_DIR, 4, parent=ROOT_FID)


def cycle(c: DamagedCluster) -> None:
    c.no_name(ROOT_FID, b"d", DIR)
    c.name(SUB, b"d", DIR, S_DIR)
    c.inode(ROOT_FID, S_DIR, 2, parent=ROOT_FID)
    c.inode(SUB, S_DIR, 3, parent=DIR)
    c.inode(DIR, S_DIR, 3, parent=SUB)


def no_root(c: DamagedCluster) -> None:
    c.put(schema.INODES, ROOT_FID, None)


def orphan_with_nlink(c: DamagedCluster) -> None:
    c.inode(ORPHAN, S_REG, 1, stripes=((0, 3),))


def orphan_with_name(c: DamagedCluster) -> None:
    c.name(DIR, b"o", ORPHAN, S_REG)


def orphan_without_inode(c: DamagedCluster) -> None:
    c.put(schema.ORPHANS, ABSENT, b"")


def xattr_without_inode(c: DamagedCluster) -> None:
    c.put(schema.XATTRS, schema.xattr_key(ABSENT, b"user.a"), b"1")


def wrong_xattr_bytes(c: DamagedCluster) -> None:
    c.put(schema.XATTRS, schema.xattr_key(LINK, b"user.a"), b"1")


def ost_unknown(c: DamagedCluster) -> None:
    c.inode(HARD, S_REG, 2, stripes=((7, 2),))
    c.put(schema.OST_LOG, schema.log_key(0, 2), schema.pack_log(schema.OstLogRecord(7, None)))


def object_missing(c: DamagedCluster) -> None:
    c.ost_put(0, schema.OBJECTS, schema.object_key(2), None)


def object_shared(c: DamagedCluster) -> None:
    c.inode(HARD, S_REG, 2, stripes=((0, 2), (1, 1)))


def object_owner(c: DamagedCluster) -> None:
    c.object(0, 1, FILE, 1)


def object_user(c: DamagedCluster) -> None:
    record = ObjectRecord(1000, 0, 1, 1, 1, 1, FILE, 0)
    c.ost_put(0, schema.OBJECTS, schema.object_key(1), schema.pack_object(record))


def object_condemned(c: DamagedCluster) -> None:
    c.put(schema.OST_LOG, schema.log_key(0, 1), schema.pack_log(schema.OstLogRecord(7, None)))


def object_orphan(c: DamagedCluster) -> None:
    c.put(schema.OST_LOG, schema.log_key(0, 4), None)


def data_missing(c: DamagedCluster) -> None:
    c.osts[1][1].remove(1)


def data_orphan(c: DamagedCluster) -> None:
    c.osts[1][1].write(99, 0, b"left over")


def last_id(c: DamagedCluster) -> None:
    c.object(1, 7, NO_FID, 0)


def last_used_behind(c: DamagedCluster) -> None:
    c.put(schema.POOLS, schema.pool_key(1), None)


def last_used_ahead(c: DamagedCluster) -> None:
    c.put(schema.POOLS, schema.pool_key(1), schema.pack_pool(PoolRecord(20, 30)))
    for oid in range(2, 7):
        c.put(schema.OST_LOG, schema.log_key(1, oid), schema.pack_log(schema.OstLogRecord(7, None)))


def unreadable_inode(c: DamagedCluster) -> None:
    c.put(schema.INODES, LINK, b"\xc1rubbish")


def unreadable_object(c: DamagedCluster) -> None:
    c.ost_put(0, schema.OBJECTS, schema.object_key(2), b"\x91\x01")


def root_named(c: DamagedCluster) -> None:
    c.name(SUB, b"up", ROOT_FID, S_DIR)


def name_cookie_taken(c: DamagedCluster) -> None:
    wrong = ROOT_FID + (12345).to_bytes(8, "big") + b"h1"
    c.put(schema.NAMES, wrong, schema.pack_entry(ABSENT, stat.S_IFREG))


def lost_directory_inode(c: DamagedCluster) -> None:
    c.put(schema.INODES, SUB, None)


def lost_file_inode(c: DamagedCluster) -> None:
    c.put(schema.INODES, HARD, None)
    c.object(0, 2, HARD, 0, b"hard")


def directory_in_itself(c: DamagedCluster) -> None:
    c.no_name(DIR, b"sub", SUB)
    c.name(SUB, b"sub", SUB, S_DIR)
    c.inode(DIR, S_DIR, 2, parent=ROOT_FID)
    c.inode(SUB, S_DIR, 3, parent=SUB)


def lost_record_with_data(c: DamagedCluster) -> None:
    c.ost_put(0, schema.OBJECTS, schema.object_key(1), None)


def implausible_object_id(c: DamagedCluster) -> None:
    c.inode(HARD, S_REG, 2, stripes=((0, 1 << 50),))
    c.put(schema.OST_LOG, schema.log_key(0, 2), schema.pack_log(schema.OstLogRecord(7, None)))


def inode_of_wrong_types(c: DamagedCluster) -> None:
    c.put(schema.INODES, LINK, schema.pack_meta(["x"] * len(Inode._fields)))


def object_of_wrong_types(c: DamagedCluster) -> None:
    c.ost_put(0, schema.OBJECTS, schema.object_key(2), schema.pack_meta(["x"] * len(ObjectRecord._fields)))


def unreadable_name(c: DamagedCluster) -> None:
    c.put(schema.NAMES, schema.name_key(ROOT_FID, b"broken"), b"short")


def unreadable_link(c: DamagedCluster) -> None:
    c.put(schema.LINKS, FILE + b"short", b"")


def unreadable_inode_key(c: DamagedCluster) -> None:
    c.put(schema.INODES, b"\1\2\3", b"x")


def unreadable_object_key(c: DamagedCluster) -> None:
    c.ost_put(1, schema.OBJECTS, b"\1\2\3", b"x")


def unreadable_pool(c: DamagedCluster) -> None:
    c.put(schema.POOLS, schema.pool_key(1), b"\xc1")


def unreadable_last_id(c: DamagedCluster) -> None:
    c.ost_put(1, schema.META, schema.meta_key("last_id"), b"\xc1")


def unreadable_log(c: DamagedCluster) -> None:
    c.put(schema.OST_LOG, schema.pool_key(0) + b"xyz", b"")


def orphan_with_data(c: DamagedCluster) -> None:
    """Objects of two stripes of a file that is gone, one without data, one whose file's FID is in use."""
    c.put(schema.POOLS, schema.pool_key(1), schema.pack_pool(PoolRecord(4, 6)))
    c.object(1, 2, ABSENT, 0, b"first stripe")
    c.object(1, 3, ABSENT, 1, b"second stripe")
    c.object(1, 4, FILE, 0, b"of a file that has others")


# damage -> (kind, subject) of everything that must be found, and nothing else
PLANTED: list[tuple[Any, set[tuple[str, str]]]] = [
    (drop_inode, {("name-without-inode", f"{fid_text(ROOT_FID)}/l")}),
    (
        unlinked_name_without_inode,
        {("name-without-inode", f"{fid_text(DIR)}/x"), ("name-without-link", f"{fid_text(DIR)}/x")},
    ),
    (name_in_file, {("name-in-no-directory", f"{fid_text(FILE)}/l")}),
    (drop_link, {("name-without-link", f"{fid_text(SUB)}/f")}),
    (drop_name_keep_link, {("link-without-name", fid_text(HARD))}),
    (name_type, {("name-type", fid_text(LINK))}),
    (name_claims_directory, {("name-type", fid_text(LINK))}),
    (name_cookie, {("name-cookie", f"{fid_text(ROOT_FID)}/l")}),
    (lost_inode, {("inode-without-name", fid_text(LINK))}),
    (wrong_nlink, {("link-count", fid_text(HARD))}),
    (wrong_directory_nlink, {("link-count", fid_text(DIR))}),
    (wrong_root_nlink, {("link-count", fid_text(ROOT_FID))}),
    (wrong_parent, {("directory-parent", fid_text(SUB))}),
    (two_directory_names, {("directory-names", fid_text(SUB))}),
    (cycle, {("directory-unreachable", fid_text(DIR)), ("directory-unreachable", fid_text(SUB))}),
    (no_root, {("root-missing", fid_text(ROOT_FID)), ("name-in-no-directory", f"{fid_text(ROOT_FID)}/d")}),
    (orphan_with_nlink, {("orphan-linked", fid_text(ORPHAN))}),
    (orphan_with_name, {("orphan-linked", fid_text(ORPHAN))}),
    (orphan_without_inode, {("orphan-without-inode", fid_text(ABSENT))}),
    (xattr_without_inode, {("xattr-without-inode", fid_text(ABSENT))}),
    (wrong_xattr_bytes, {("xattr-bytes", fid_text(LINK))}),
    (ost_unknown, {("ost-unknown", "OST0007:2")}),
    (object_missing, {("object-missing", "OST0000:2")}),
    (object_shared, {("object-shared", "OST0001:1")}),
    (object_owner, {("object-owner", "OST0000:1")}),
    (object_user, {("object-user", "OST0000:1")}),
    (object_condemned, {("object-condemned", "OST0000:1")}),
    (object_orphan, {("object-orphan", "OST0000:4")}),
    (data_missing, {("data-missing", "OST0001:1")}),
    (data_orphan, {("data-orphan", "OST0001:99")}),
    (last_id, {("last-id", "OST0001:7")}),
    (last_used_behind, {("last-used", "OST0001:1")}),
    (last_used_ahead, {("last-used", "OST0001")}),
    (unreadable_inode, {("record-unreadable", fid_text(LINK))}),
    (unreadable_object, {("record-unreadable", "OST0000:2")}),
    (root_named, {("root-named", f"{fid_text(SUB)}/up"), ("link-without-name", fid_text(ROOT_FID))}),
    (
        name_cookie_taken,
        {
            ("name-cookie", f"{fid_text(ROOT_FID)}/h1"), ("name-without-link", f"{fid_text(ROOT_FID)}/h1"),
            ("name-without-inode", f"{fid_text(ROOT_FID)}/h1"),
        },
    ),
    (
        lost_directory_inode,
        {("name-without-inode", f"{fid_text(DIR)}/sub"), ("name-in-no-directory", f"{fid_text(SUB)}/f")},
    ),
    (
        lost_file_inode,
        {
            ("name-without-inode", f"{fid_text(ROOT_FID)}/h1"), ("name-without-inode", f"{fid_text(SUB)}/h2"),
            ("object-orphan", "OST0000:2"),
        },
    ),
    (directory_in_itself, {("directory-unreachable", fid_text(SUB))}),
    (lost_record_with_data, {("object-missing", "OST0000:1"), ("data-orphan", "OST0000:1")}),
    (
        implausible_object_id,
        {
            ("object-missing", f"OST0000:{1 << 50}"), ("last-used", f"OST0000:{1 << 50}"),
        },
    ),
    (inode_of_wrong_types, {("record-unreadable", fid_text(LINK))}),
    (object_of_wrong_types, {("record-unreadable", "OST0000:2")}),
    (unreadable_name, {("record-unreadable", f"names:{schema.name_key(ROOT_FID, b'broken').hex()}")}),
    (unreadable_link, {("record-unreadable", f"links:{(FILE + b'short').hex()}")}),
    (unreadable_inode_key, {("record-unreadable", "inodes:010203")}),
    (unreadable_object_key, {("record-unreadable", "OST0001:010203")}),
    (unreadable_pool, {("record-unreadable", "OST0001:last_used"), ("last-used", "OST0001:1")}),
    (
        unreadable_last_id,
        {("record-unreadable", "OST0001:last_id"), ("last-used", "OST0001")}
        | {("last-id", f"OST0001:{oid}") for oid in range(1, 7)},
    ),
    (unreadable_log, {("record-unreadable", "OST0000:0000000078797a")}),
    (orphan_with_data, {("object-orphan", f"OST0001:{oid}") for oid in (2, 3, 4)}),
]  # fmt: skip
