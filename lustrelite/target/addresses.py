"""What stopped targets know of where others are: changed when a file system has moved, or is a copy of another.

A copy has the names, UUIDs and stamps of what it was copied from, and until its own targets have registered it would
have the addresses too: its MDT would meet the OSTs of the other and destroy, as orphans, what the other has used since.
Source: tunefs.lustre --writeconf; mgs_erase_logs(), mgs/mgs_llog.c
"""

from __future__ import annotations

from collections.abc import Mapping

from lustrelite.store import schema
from lustrelite.store.kv import Store
from lustrelite.store.room import ESSENTIAL
from lustrelite.store.schema import META, TARGETS

KNOWN_OSTS = "known_osts"  # of an MDT: what the MGS said last: (OSTs, permanent parameters)

_VERSION = schema.meta_key("config_version")


def set_addresses(store: Store, kind: str, nids: Mapping[str, tuple[str, ...]]) -> None:
    """Every target is where `nids`, by its name, says; what is not among them has to register before anybody finds it.

    `store` is that of a target of `kind`.
    """
    writes: dict[tuple[str, bytes], bytes | None] = {}
    if kind == "MDT":
        writes[META, schema.meta_key(KNOWN_OSTS)] = None
    elif kind == "MGS":
        value = store.get(META, _VERSION)
        version = int(schema.unpack_meta(value)) if value is not None else 0
        for key, row in store.scan(TARGETS):
            record = schema.unpack_target(row)
            here = nids.get(record.info.name)
            version += 1
            info = record.info._replace(nids=here or (), version=version)
            writes[TARGETS, key] = schema.pack_target(record._replace(info=info)) if here else None
        writes[META, _VERSION] = schema.pack_meta(version)
    store.apply(writes, kind=ESSENTIAL)
    store.flush()
