"""How names, back-pointers and inodes are put right: one function for each kind of problem."""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import Any

from lustrelite.fsck.changes import ONE_STRIPE, Changes, Mend
from lustrelite.fsck.report import Problem
from lustrelite.ids import NO_FID, ROOT_FID, Fid, fid_text
from lustrelite.recovery.versions import ABSENT
from lustrelite.store import schema
from lustrelite.store.schema import INODES, LINKS, NAMES, OBJECTS, ORPHANS, XATTRS, Inode, ObjectRecord, Owner
from lustrelite.tunables import DESTROY
from lustrelite.wire.mdt import Layout

BLANK = schema.pack_object(ObjectRecord(0, 0, 0, 0, 0, ABSENT, NO_FID, 0))


def unreadable(changes: Changes, problems: list[Problem]) -> None:
    """A row that does not decode goes.

    An object's becomes a blank one, so that its data counts as data of an object.
    """
    for problem in problems:
        index, table, key = problem.where
        if table == OBJECTS and schema.is_object_key(key):
            changes.osts[index].rows.put(OBJECTS, key, BLANK)
            changes.did(problem, "replaced by a blank record")
        else:
            (changes.mdt if index is None else changes.osts[index].rows).delete(table, key)
            changes.did(problem, "removed")


def no_root(changes: Changes, problems: list[Problem]) -> None:
    """A new root; the names in it are where they were."""
    root = changes.new_inode(stat.S_IFDIR | 0o755, nlink=2, parent=ROOT_FID)
    changes.put_inode(ROOT_FID, root)
    changes.did(problems[0], "made again, owned by root, mode 0755")


def root_named(changes: Changes, problems: list[Problem]) -> None:
    """The root has no name."""
    for problem in problems:
        changes.drop_name(problem.where[0])
        changes.did(problem, "name removed")


def misfiled(changes: Changes, problems: list[Problem]) -> None:
    """A name goes where it is looked for; if another one is there, that one stays."""
    for problem in problems:
        key = problem.where[0]
        value = changes.mdt.get(NAMES, key)
        assert value is not None
        parent, _, name = schema.split_name_key(key)
        right = schema.name_key(parent, name)
        if changes.mdt.get(NAMES, right) is None:
            changes.mdt.delete(NAMES, key)
            changes.mdt.put(NAMES, right, value)
            changes.did(problem, "filed under its own hash")
        elif changes.mdt.get(NAMES, right) == value:
            changes.mdt.delete(NAMES, key)
            changes.did(problem, "second copy removed")
        else:
            changes.drop_name(key)
            changes.did(problem, "removed: another file has this name")


def in_no_directory(changes: Changes, problems: list[Problem]) -> None:
    """A directory that is gone but has names is made again; names in anything else go."""
    for problem in problems:
        (parent,) = problem.where
        if changes.mdt.get(INODES, parent) is None:
            changes.put_inode(parent, changes.new_inode(stat.S_IFDIR | 0o700, nlink=2))
            changes.did(problem, f"directory {fid_text(parent)} made again, owned by root, mode 0700")
            continue
        keys = [key for key, _ in changes.mdt.scan(NAMES, prefix=parent)]
        for key in keys:
            changes.drop_name(key)
        changes.did(problem, f"{len(keys)} names removed: {fid_text(parent)} is no directory")


def leads_nowhere(changes: Changes, problems: list[Problem]) -> None:
    """If the file's one object is there, the file is made again around it; else the name goes."""
    objects: dict[Fid, list[tuple[int, int, ObjectRecord]]] | None = None
    for problem in problems:
        parent, name, fid = problem.where
        key = schema.name_key(parent, name)
        entry = changes.mdt.get(NAMES, key)
        if entry is None or changes.mdt.get(INODES, fid) is not None:
            continue
        if objects is None:
            objects = _objects_of_nobody(changes)
        found = objects.get(fid, [])
        if len(found) == 1 and found[0][2].stripe == 0 and stat.S_ISREG(schema.unpack_entry(entry)[1]):
            index, oid, record = found[0]
            layout = Layout(ONE_STRIPE, 0, "", ((index, oid),))
            times = (record.atime, record.mtime, record.ctime)
            inode = changes.new_inode(
                stat.S_IFREG | 0o600, nlink=1, layout=layout, owner=Owner(record.uid, record.gid, record.projid), times=times
            )
            changes.put_inode(fid, inode)
            changes.did(problem, f"file made again around object {oid} of OST{index:04x}, mode 0600")
        else:
            changes.drop_name(key)
            changes.did(problem, "name removed")


def _objects_of_nobody(changes: Changes) -> dict[Fid, list[tuple[int, int, ObjectRecord]]]:
    """(OST, id, record) of the objects that no layout names and that are not condemned, by the file they point back to."""
    found: dict[tuple[int, int], ObjectRecord] = {}
    for index, ost in changes.osts.items():
        for key, value in ost.rows.scan(OBJECTS):
            record = schema.unpack_object(value)
            oid = schema.split_object_key(key)
            if record.owner != NO_FID and not changes.is_condemned(index, oid):
                found[index, oid] = record
    for _, value in changes.mdt.scan(INODES):
        layout = schema.unpack_inode(value).layout
        for stripe in layout.stripes if layout is not None else ():
            found.pop((stripe[0], stripe[1]), None)
    by_fid: dict[Fid, list[tuple[int, int, ObjectRecord]]] = {}
    for (index, oid), record in found.items():
        by_fid.setdefault(record.owner, []).append((index, oid, record))
    return by_fid


def several_names(changes: Changes, problems: list[Problem]) -> None:
    """A directory keeps the name that its parent pointer speaks of. (What is no directory may have many.)"""
    children = {problem.where[0]: problem for problem in problems}
    names: dict[Fid, list[bytes]] = {}
    for key, value in changes.mdt.scan(NAMES):
        child, kind = schema.unpack_entry(value)
        if child in children and stat.S_ISDIR(kind):
            names.setdefault(child, []).append(key)
    for child, problem in children.items():
        inode = changes.inode(child)
        keys = names.get(child, [])
        if inode is None:
            continue
        if not stat.S_ISDIR(inode.mode):
            for key in keys:
                changes.mdt.put(NAMES, key, schema.pack_entry(child, stat.S_IFMT(inode.mode)))
            changes.did(problem, "it is no directory: the type beside its names corrected")
            continue
        keys.sort(key=lambda key: not key.startswith(inode.parent))
        for key in keys[1:]:
            changes.drop_name(key)
        changes.did(problem, f"{len(keys) - 1} names removed")


def no_link(changes: Changes, problems: list[Problem]) -> None:
    """The back-pointer of a name."""
    for problem in problems:
        parent, name, child = problem.where
        if changes.mdt.get(INODES, child) is not None:
            changes.mdt.put(LINKS, schema.link_key(child, parent, name), b"")
            changes.did(problem, "back-pointer written")


def no_name(changes: Changes, problems: list[Problem]) -> None:
    """A back-pointer to nothing."""
    for problem in problems:
        changes.mdt.delete(LINKS, problem.where[0])
        changes.did(problem, "back-pointer removed")


def no_inode(table: str) -> Mend:
    """The mend for rows of `table` that belong to no inode."""

    def mend(changes: Changes, problems: list[Problem]) -> None:
        for problem in problems:
            changes.mdt.delete(table, problem.where[0])
            changes.did(problem, "removed")

    return mend


def orphan_linked(changes: Changes, problems: list[Problem]) -> None:
    """With a name it is no orphan.

    Without one it is, and the MDT destroys it at its start unless somebody has it open.
    """
    for problem in problems:
        fid, names = problem.where
        inode = changes.inode(fid)
        assert inode is not None
        if names:
            changes.mdt.delete(ORPHANS, fid)
            changes.did(problem, "no orphan any more: it has a name")
        else:
            changes.put_inode(fid, inode._replace(nlink=0))
            changes.did(problem, f"nlink {inode.nlink} -> 0")


def nameless(changes: Changes, problems: list[Problem]) -> None:
    """What has no name gets one in lost+found, or is destroyed; directories with something in them never are."""
    for problem in problems:
        (fid,) = problem.where
        inode = changes.inode(fid)
        assert inode is not None
        directory = stat.S_ISDIR(inode.mode)
        if changes.options.orphans == DESTROY and not (directory and _has_names(changes, fid)):
            _destroy(changes, fid, inode)
            changes.did(problem, "destroyed")
            continue
        path = changes.lose_to(fid_text(fid).strip("[]"), fid, stat.S_IFMT(inode.mode))
        changes.put_inode(fid, inode._replace(nlink=inode.nlink if directory else 1))
        changes.did(problem, f"is now {path}")


def _has_names(changes: Changes, fid: Fid) -> bool:
    return next(changes.mdt.scan(NAMES, prefix=fid), None) is not None


def _destroy(changes: Changes, fid: Fid, inode: Inode) -> None:
    """As an unlink does: its objects go to the log of their OSTs."""
    changes.mdt.delete(INODES, fid)
    for key, _ in list(changes.mdt.scan(XATTRS, prefix=fid)):
        changes.mdt.delete(XATTRS, key)
    for index, oid in inode.layout.stripes if inode.layout is not None else ():
        changes.condemn(index, oid)


def unreachable(changes: Changes, problems: list[Problem]) -> None:
    """Every circle of directories is cut open at one of them, which loses its name (and gets one in lost+found)."""
    homes: dict[Fid, Fid] = {problem.where[0]: problem.where[1] for problem in problems}
    subjects = {problem.where[0]: problem for problem in problems}
    seen: dict[Fid, None] = {}
    for start in homes:
        path: dict[Fid, None] = {}
        at = start
        while at in homes and at not in seen and at not in path:
            path[at] = None
            at = homes[at]
        seen.update(path)
        if at not in path:
            continue
        around = list(path)
        first = min(around[around.index(at) :])
        for key, value in list(changes.mdt.scan(NAMES, prefix=homes[first])):
            if schema.unpack_entry(value)[0] == first:
                changes.drop_name(key)
        changes.did(subjects[first], "a directory below itself: its name removed")


def entry_type(changes: Changes, problems: list[Problem]) -> None:
    """The type beside a name is the inode's."""
    for problem in problems:
        (fid,) = problem.where
        inode = changes.inode(fid)
        assert inode is not None
        for key, _ in list(changes.mdt.scan(LINKS, prefix=fid)):
            _, parent, name = schema.split_link_key(key)
            changes.mdt.put(NAMES, schema.name_key(parent, name), schema.pack_entry(fid, stat.S_IFMT(inode.mode)))
        changes.did(problem, "the type beside its names corrected")


def inode_says(field: str, show: Callable[[Any], object] = str) -> Mend:
    """The inode's `field` becomes what was found; `show` makes text of its values."""

    def mend(changes: Changes, problems: list[Problem]) -> None:
        for problem in problems:
            fid, found = problem.where
            inode = changes.inode(fid)
            assert inode is not None
            changes.put_inode(fid, inode._replace(**{field: found}))
            changes.did(problem, f"{field} {show(getattr(inode, field))} -> {show(found)}")

    return mend


NAME_MENDS: dict[str, Mend] = {
    "record-unreadable": unreadable,
    "root-missing": no_root,
    "root-named": root_named,
    "name-cookie": misfiled,
    "name-in-no-directory": in_no_directory,
    "name-without-inode": leads_nowhere,
    "directory-names": several_names,
    "name-without-link": no_link,
    "link-without-name": no_name,
    "xattr-bytes": inode_says("xattrs"),
    "xattr-without-inode": no_inode(XATTRS),
    "orphan-without-inode": no_inode(ORPHANS),
    "orphan-linked": orphan_linked,
    "inode-without-name": nameless,
    "directory-unreachable": unreachable,
    "directory-parent": inode_says("parent", fid_text),
    "name-type": entry_type,
    "link-count": inode_says("nlink"),
}
