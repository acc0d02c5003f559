"""Do clients that cache see one file system? A history of what they did and saw (coherence_history.py) is judged here.

    history.begin(client, kind, target, *args, handle=...) ... history.succeeded(op, result)

| kind | target, args | result |
|---|---|---|
| write | file, offset, length, tag | |
| append | file, length, tag | |
| truncate | file, size | |
| read | file, offset, length | Data |
| size | file | bytes |
| fsync | file | |
| create, mkdir | name | FID |
| open | name, may it create | FID |
| unlink, rmdir | name | |
| rename | name, new name | |
| link | new name, FID | |
| lookup | name | FID |
| links | FID | count |
| list | directory | {name: FID} |
| chmod | FID, permissions | |
| mode | FID | permissions |
| flock | file, owner, exclusive or None (unlock), first byte, last byte, does it wait | |

The rules. Each of these is linearizable on its own, that is, seen as if changed at one moment between the beginning and
the end of what changed it: every byte of a file; the size of each object; the names of a directory; the permissions of
a file. So no read returns anything but the last completed or a concurrent write, and nothing older once something newer
was seen. (Linearizability is local: Herlihy and Wing 1990; what takes several RPCs without a common lock is several.)
An append is where the file ended, wherever it is seen, in one place only. Record locks exclude each other.

Who is gone (killed, or evicted; from a file that he has made also if by the MDT, for his locks may have been promised):
what its client had in its cache may be lost with it, each byte or not, unless an fsync said otherwise, or another
client has read it, or another client has done anything there later (then it was written back). A size that another
client was told may be lost: glimpses take no lock; so may the permissions that an author has given his file, if nobody
else has seen them (client/kept_attrs.py). What had no answer happened once or never. An evicted client's reads
count like everybody's, except while it has not heard of an eviction that did not wait for its lease, and its lease
lasts.

When a target dies before something is durable: what was acknowledged is lost if its client is gone, else it is replayed
before anybody looks. What had no answer yet is sent again after recovery; others may have seen it before, and then not
for a while. (Not so what was done under a lock that kept the others away: data of clients that cache.) So what was seen
before such a death, or from a cache before the target had recovered, does not count for what it touches.

A write that finds no room may be seen in the size, until its author has heard of it: he counts it before it is answered,
or others, who ask the OST, would see a size that his own programs do not see yet.

How: coherence_search.py. Not judged: times, and whether what two registers show fits together (a size and the bytes
behind it).
"""

from __future__ import annotations

from collections.abc import Sequence

from lustrelite.sim import coherence_data, coherence_names
from lustrelite.sim.coherence_history import History


def check(history: History, *, mdt: str, names: Sequence[str]) -> list[str]:
    """Everything that is not coherent; `names` are those that the history may speak of, kept by the target `mdt`."""
    problems: list[str] = []
    for name, file in history.files.items():
        problems += coherence_data.check(history, name, file)
    problems += coherence_names.check(history, mdt, names)
    problems += coherence_names.check_modes(history, mdt)
    problems += coherence_names.check_locks(history, mdt)
    return problems
