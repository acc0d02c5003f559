"""Planted bugs in extended attributes and access lists: the attribute swarm must find them.

The same kind of list as mutations.py.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mutations import Mutation, Plant, a_resent_request_is_executed_again, without

from lustrelite import acl
from lustrelite.mdt import attributes, locks
from lustrelite.mdt import create as mdt_create
from lustrelite.sim.swarm import ATTRIBUTES
from lustrelite.store import schema

ATTRIBUTE_MUTATIONS: list[Mutation] = []


def mutation(plant: Plant) -> Plant:
    """Enter a mutation under its function's name."""
    ATTRIBUTE_MUTATIONS.append(Mutation(plant.__name__.replace("_", " "), plant, ATTRIBUTES))
    return plant


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
