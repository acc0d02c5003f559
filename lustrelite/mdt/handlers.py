"""The handler table of the MDT: every message of wire/mdt.py, and how it is served. What waits for what: locks.py."""

from __future__ import annotations

from lustrelite.mdt import attributes, create, link, locks, open, reading, rename  # noqa: A004  open is what it is called
from lustrelite.mdt.locks import prepared
from lustrelite.store.room import OWED
from lustrelite.target.handlers import Handler, mutating, waiting
from lustrelite.target.handlers import reading as looking
from lustrelite.wire import mdt as wire

HANDLERS: dict[type, Handler] = {
    wire.Create: mutating(
        create.create, prepare=prepared(locks.create_wants, create.wish_of_create), rebuild=attributes.rebuild_attr
    ),
    wire.Open: mutating(
        open.open_file, prepare=prepared(locks.open_wants, open.wish_of_open), rebuild=open.rebuild_open
    ),
    wire.Close: mutating(
        open.close, prepare=prepared(locks.close_wants), rebuild=open.rebuild_close, room=OWED
    ),
    wire.Reopen: mutating(open.reopen, rebuild=open.rebuild_reopen, room=OWED),
    wire.Closes: mutating(
        open.close_many, prepare=prepared(locks.closes_wants), rebuild=open.rebuild_close, room=OWED
    ),
    wire.Link: mutating(link.link, prepare=prepared(locks.link_wants)),
    wire.Unlink: mutating(link.unlink, prepare=prepared(locks.unlink_wants), rebuild=link.rebuild_unlink),
    wire.Rename: mutating(rename.rename, prepare=prepared(locks.rename_wants), rebuild=rename.rebuild_rename),
    wire.Setattr: mutating(
        attributes.setattr_, prepare=prepared(locks.setattr_wants), rebuild=attributes.rebuild_attr
    ),
    wire.Setattrs: mutating(attributes.setattr_many, room=OWED),
    wire.Setxattr: mutating(attributes.setxattr, prepare=prepared(locks.setxattr_wants)),
    wire.SetDirStripe: mutating(attributes.set_dir_stripe, prepare=prepared(locks.setxattr_wants)),
    wire.Getattr: looking(locks.told(reading.getattr_)),
    wire.Lookup: looking(locks.told(reading.lookup)),
    wire.GetRoot: looking(reading.get_root),
    wire.Readdir: looking(reading.readdir),
    wire.Getxattr: looking(attributes.getxattr),
    wire.Getxattrs: looking(attributes.getxattrs),
    wire.Listxattr: looking(attributes.listxattr),
    wire.GetDirStripe: looking(attributes.get_dir_stripe),
    wire.Readlink: looking(reading.readlink),
    wire.FidToPath: looking(reading.fid_to_path),
    wire.Statfs: looking(reading.statfs),
    wire.Sync: waiting(reading.sync),
    wire.AllocateSequence: waiting(reading.allocate_sequence),
}
