"""Links of a client: one that dies young is nobody's."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lustrelite.errors import LinkLost
from lustrelite.ids import Nid
from lustrelite.rpc.links import LinkPool
from lustrelite.rpc.service import Service
from lustrelite.tunables import Tunables


@pytest.mark.parametrize("turns", range(5))
async def test_a_link_that_is_lost_before_its_import_has_it_is_not_given_out(turns: int) -> None:
    """The import is not on it yet, so it would not hear of the loss, and wait for its Connect until that times out."""

    async def connect(nid: Nid, receiver: Any, *, bulk_connections: int) -> Any:
        link = SimpleNamespace()
        asyncio.get_running_loop().call_soon(lose, turns, receiver, link)
        return link

    def lose(turns: int, receiver: Any, link: Any) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(lose, turns - 1, receiver, link)
        else:
            receiver.link_lost(link, "died young")

    node = SimpleNamespace(
        now=asyncio.get_running_loop().time, network=SimpleNamespace(connect=connect), tunables=Tunables(),
        spawn=lambda coro, name: asyncio.get_running_loop().create_task(coro, name=name),
    )  # fmt: skip
    pool = LinkPool(cast(Any, node))
    try:
        link = await pool.get(Nid("10.0.0.1:1@tcp"))
    except LinkLost:
        assert not pool.links
    else:
        assert not link.closed


@pytest.mark.simulated
@pytest.mark.parametrize("limit", [6.1, 6.2, 6.3, 6.7, 6.9])
async def test_links_over_which_nobody_connects_are_closed_in_time(limit: float) -> None:
    """However their times are rounded: a timer for the rest of such a time, and no time left, came again for ever (seed 10580057)."""
    now = asyncio.get_running_loop().time
    node = SimpleNamespace(now=now, dead=False, tunables=Tunables(evict_silent_s=limit))
    service = Service(cast(Any, node))
    closed: list[float] = []
    begun = [now()]
    for _ in range(50):
        link = SimpleNamespace()
        link.close = lambda why, accepted=service._accept(cast(Any, link)): (closed.append(now()), service.idle.pop(accepted))
        await asyncio.sleep(0.0987654321)
        begun.append(now())
    await asyncio.sleep(7)
    assert closed == pytest.approx([one + limit for one in begun[:50]])
    service.close()
