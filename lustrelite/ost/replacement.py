"""An OST in the place of one that is lost for good: mkfs.lustrelite --ost --reformat --replace.

An OST that was formatted and has never granted an object is not the one that the MDT has used: its objects are gone. Whoever
lets it serve under the old name makes empty files of all that lay there. That may be what the administrator wants, or a disk
that was not mounted when he ran mkfs; so he has to say it, and what he says is in the store until the MDT has been here.
Without it the MGS takes no other target under a name that it knows, and the OST itself refuses an MDT that has used objects of it.

What the MDT has used is made anew, blank, also objects of files that were removed since: `lustrelite fsck --repair` removes those.

Clients and the MDT live on, and go by numbers that only grow: the incarnation (an older one is a zombie) and the transno. Those
of a replacement begin above all that any OST of this name can have reached.

Source: mkfs.lustre --replace; LDD_F_VIRGIN, mgs_check_index(), mgs/mgs_llog.c
"""

from __future__ import annotations

from lustrelite.ids import first_transno
from lustrelite.store import schema
from lustrelite.store.kv import Store
from lustrelite.store.room import ESSENTIAL
from lustrelite.store.schema import META

REPLACES = schema.meta_key("replaces")


def replace_lost(store: Store, seconds: int) -> None:
    """The new OST of `store` replaces one that has started, and recovered, less than once in each of `seconds` since 1970."""
    writes = {"instance": seconds, "last_transno": first_transno(seconds)}
    store.apply(
        {(META, REPLACES): schema.pack_meta(True)}
        | {(META, schema.meta_key(name)): schema.pack_meta(value) for name, value in writes.items()},
        kind=ESSENTIAL,
    )  # fmt: skip
    store.flush()
