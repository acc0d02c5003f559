"""The handler table of the MDT: every message of wire/mdt.py, and how it is served."""

from __future__ import annotations

from lustrelite.mdt import attributes, create, link, open, reading, rename  # noqa: A004  open is what it is called
from lustrelite.target.handlers import Handler, mutating, waiting
from lustrelite.target.handlers import reading as looking
from lustrelite.wire import mdt as wire

HANDLERS: dict[type, Handler] = {
    wire.Create: mutating(create.create, prepare=create.prepare_create, rebuild=attributes.rebuild_attr),
    wire.Open: mutating(open.open_file, prepare=open.prepare_open, rebuild=open.rebuild_open),
    wire.Close: mutating(open.close, rebuild=open.rebuild_close, essential=True),
    wire.Link: mutating(link.link),
    wire.Unlink: mutating(link.unlink, rebuild=link.rebuild_unlink),
    wire.Rename: mutating(rename.rename, rebuild=link.rebuild_unlink),
    wire.Setattr: mutating(attributes.setattr_, rebuild=attributes.rebuild_attr),
    wire.Setxattr: mutating(attributes.setxattr),
    wire.SetDirStripe: mutating(attributes.set_dir_stripe),
    wire.Getattr: looking(reading.getattr_),
    wire.Lookup: looking(reading.lookup),
    wire.GetRoot: looking(reading.get_root),
    wire.Readdir: looking(reading.readdir),
    wire.Getxattr: looking(attributes.getxattr),
    wire.Listxattr: looking(attributes.listxattr),
    wire.GetDirStripe: looking(attributes.get_dir_stripe),
    wire.Readlink: looking(reading.readlink),
    wire.FidToPath: looking(reading.fid_to_path),
    wire.Statfs: looking(reading.statfs),
    wire.Sync: waiting(reading.sync),
    wire.AllocateSequence: waiting(reading.allocate_sequence),
}
