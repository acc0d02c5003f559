"""Version-based recovery: when is a replay after a gap still the next change of what it touches?

Every inode and OST object stores the transno of its last version-relevant change (permissions, owner, links, name
made); times, sizes and directory contents do not count, so that clients may share a directory (2.x rule,
protocol-facts 3.7). A modifying request declares up to four versions in fixed slots. In normal operation they travel
back in the reply; in a replay they come with the request and must equal what is found (Transaction.check compares).
A replay without versions, or with fewer than are declared, matches nothing.
"""

from __future__ import annotations

ABSENT = 1  # the version of a name or object that is not there (ENOENT_VERSION)
UNCHECKED = 0  # the slot is not used
