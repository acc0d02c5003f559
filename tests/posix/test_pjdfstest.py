"""pjdfstest through the mount: what POSIX says of calls, in 8,800 checks. PJDFSTEST names its directory, built.

`git clone https://github.com/pjd/pjdfstest && cd pjdfstest && autoreconf -ifs && ./configure && make pjdfstest`
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.posix.mounts import Mounted, missing

PJDFSTEST = os.environ.get("PJDFSTEST", "")
LACKING = missing() or ("" if PJDFSTEST else "PJDFSTEST is not set") or ("" if shutil.which("prove") else "no prove (perl)")
WHOLE_S = 1500


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(WHOLE_S + 60)
@pytest.mark.skipif(bool(LACKING), reason=LACKING)
async def test_pjdfstest(world: Any) -> None:
    async with world(oss=2, clients=0) as w, Mounted(w) as m:
        os.chmod(w.directory, 0o755)
        work = m.path / "pjd"
        await m.call(work.mkdir)
        prove = await asyncio.create_subprocess_exec(
            "prove", "-r", str(Path(PJDFSTEST).resolve() / "tests"), cwd=work, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await asyncio.wait_for(prove.communicate(), WHOLE_S)
        assert prove.returncode == 0, said.decode(errors="replace")[-8000:]
        await m.call(shutil.rmtree, work)
