"""Permanent parameters when the MGS is away."""

from __future__ import annotations

from typing import Any

import pytest

from lustrelite.wire.mgs import SetParam


async def test_a_permanent_parameter_is_not_set_late_when_the_mgs_was_away(cluster: Any) -> None:
    async with cluster(clients=1, oss=1) as c:
        config = c.a.fs.connections.config
        await c.mgs.kill()
        await c.until(lambda: config.mgs.state != "FULL")
        with pytest.raises(TimeoutError, match="the MGS does not answer in 8 s; nothing is changed"):
            await config.set_param("tunables.spin_us", "7")
        await c.mgs.start()
        await c.settle()
        await config.set_param("tunables.debug", "0")
        assert c.mgs.target().params == {"lustre": {"tunables.debug": "0"}}


async def test_who_may_have_told_the_mgs_says_so_and_tells_it_once(cluster: Any) -> None:
    async with cluster(clients=1, oss=1) as c:
        config = c.a.fs.connections.config
        c.net.hold(SetParam, reply=True)
        with pytest.raises(TimeoutError, match="it may have heard"):
            await config.set_param("tunables.spin_us", "7")
        c.net.heal()
        await c.settle()
        assert SetParam not in [type(request.body) for request in (*config.mgs.sending.values(), *config.mgs.delayed)]
        await config.set_param("tunables.spin_us", "")
        assert c.mgs.target().params == {"lustre": {}}
