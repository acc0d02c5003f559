"""Planted bugs in extended attributes, access lists and access times: the attribute swarm must find them.

The same kind of list as mutations.py.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mutations import Mutation, a_resent_request_is_executed_again, entered, without

from lustrelite import acl
from lustrelite.client.late_closes import LateCloses
from lustrelite.client.open_files import OpenFiles as ClientOpenFiles
from lustrelite.mdt import attributes, locks
from lustrelite.mdt import create as mdt_create
from lustrelite.mdt import open as mdt_open
from lustrelite.sim.swarm import ATTRIBUTES
from lustrelite.store import schema

ATTRIBUTE_MUTATIONS: list[Mutation] = []
mutation = entered(ATTRIBUTE_MUTATIONS, ATTRIBUTES)


@mutation
def an_attribute_that_was_set_is_set_again_when_it_is_resent(patch):
    a_resent_request_is_executed_again(patch)


@mutation
def rows_of_attributes_are_not_saved(patch):
    without(schema.XATTRS, kind="MDT")(patch)


@mutation
def rows_of_removed_attributes_stay(patch):
    without(schema.XATTRS, kind="MDT", deletes=True)(patch)


@mutation
def attributes_are_set_whatever_the_flags_say(patch):
    put = attributes._put_xattr
    patch.setattr(attributes, "_put_xattr", lambda txn, inode, req: put(txn, inode, req._replace(flags=0)))


@mutation
def an_attribute_is_set_under_the_locks_of_others(patch):
    patch.setattr(locks, "XATTR", 0)


@mutation
def an_access_list_is_set_under_permissions_of_others(patch):
    patch.setattr(locks, "acl", SimpleNamespace(ACCESS=b""))


@mutation
def a_replayed_create_inherits_nothing(patch):
    make = mdt_create.make_child

    def poor(mdt: Any, txn: Any, parent_fid: Any, parent: Any, *args: Any, **options: Any) -> Any:
        inode = make(mdt, txn, parent_fid, parent._replace(default_acl=b"") if txn.replay else parent, *args, **options)
        if txn.replay and parent.default_acl:
            put = schema.unpack_inode(txn.writes[schema.INODES, parent_fid])
            txn.writes[schema.INODES, parent_fid] = schema.pack_inode(put._replace(default_acl=parent.default_acl))
        return inode

    patch.setattr(mdt_create, "make_child", poor)


@mutation
def chmod_leaves_the_access_list_alone(patch):
    patch.setattr(acl, "with_mode", lambda data, mode: data)


@mutation
def a_list_that_says_no_more_than_the_mode_is_kept(patch):
    mode_of = acl.mode_of
    patch.setattr(attributes.acl, "mode_of", lambda entries, mode: (mode_of(entries, mode)[0], False))


@mutation
def what_is_closed_late_was_not_read(patch):
    closed = LateCloses.closed
    patch.setattr(LateCloses, "closed", lambda self, handle, fid, mtime, atime: closed(self, handle, fid, mtime, 0))
    patch.setattr(LateCloses, "read", lambda self, fid, atime: None)


@mutation
def the_mdt_forgets_when_times_were_set(patch):
    patch.setattr(mdt_open.OpenFiles, "atime_set_at", lambda self, fid, inode, atime: 0)


@mutation
def only_the_mdt_in_memory_knows_when_times_were_set(patch):
    patch.setattr(mdt_open.OpenFiles, "atime_set_at", lambda self, fid, inode, atime: self.atimes_set.get(fid, 0))


@mutation
def what_was_read_before_a_change_was_read_before_utimes(patch):
    def doubtful(self: Any, fid: Any, inode: Any, atime: int) -> int:
        return int(self.atimes_set.get(fid, inode.ctime if atime < self.since else 0))

    patch.setattr(mdt_open.OpenFiles, "atime_set_at", doubtful)


@mutation
def utimes_does_not_end_what_was_read_here(patch):
    patch.setattr(ClientOpenFiles, "forget_times", lambda self, fid, mtime, atime: None)
