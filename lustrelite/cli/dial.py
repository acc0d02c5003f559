"""llctl ping: is somebody there who speaks our protocol?"""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

from lustrelite.ids import Nid
from lustrelite.rpc.transport import SocketNetwork


class _Nobody:
    """The end of a link on which nothing is to happen."""

    def frame_received(self, link: Any, kind: int, header: Any, bulk: memoryview | None) -> None: ...
    def bulk_buffer(self, link: Any, kind: int, header: Any, length: int) -> memoryview:
        return memoryview(bytearray(length))
    def link_lost(self, link: Any, why: str) -> None: ...


def dial(nid: Nid) -> str:
    """Open a link to `nid` and close it again; returns who answered.  LinkLost"""

    async def main() -> str:
        network = SocketNetwork(random.Random(os.getpid()), name="llctl")
        link = await network.connect(nid, _Nobody(), bulk_connections=0)
        peer = link.peer
        link.close("ping")
        return peer

    return asyncio.run(main())
