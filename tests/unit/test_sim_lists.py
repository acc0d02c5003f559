"""The model's access lists: what chmod and inheritance make of them, and that the product's code says the same."""

from __future__ import annotations

import errno
import itertools

import pytest

from lustrelite import acl
from lustrelite.sim import access_lists
from lustrelite.sim.access_lists import ACCESS, DEFAULT
from lustrelite.sim.attribute_swarm import LISTS, MODES
from lustrelite.sim.model import Model, Refused
from lustrelite.wire.mdt import XATTR_CREATE, XATTR_REPLACE

NAMED = access_lists.pack("u::rwx,u:7:rw-,g::r-x,m::rwx,o::---")


def test_a_file_inherits_what_its_mode_leaves_of_the_default_list():
    model = Model()
    model.mkdir("/d")
    model.setxattr("/d", DEFAULT, NAMED)
    model.create("/d/f", 0o640)
    assert model.stat("/d/f")[1] == 0o640
    assert model.getxattr("/d/f", ACCESS) == access_lists.pack("u::rw-,u:7:rw-,g::r-x,m::r--,o::---")
    model.mkdir("/d/e", 0o755)
    assert model.listxattr("/d/e") == (ACCESS, DEFAULT)


def test_chmod_changes_the_mask_and_a_list_the_mode():
    model = Model()
    model.create("/f")
    model.setxattr("/f", ACCESS, NAMED)
    assert model.stat("/f")[1] == 0o770
    model.chmod("/f", 0o640)
    assert model.getxattr("/f", ACCESS) == access_lists.pack("u::rw-,u:7:rw-,g::r-x,m::r--,o::---")
    model.setxattr("/f", ACCESS, access_lists.pack("u::rw-,g::r--,o::r--"))
    assert model.listxattr("/f") == () and model.stat("/f")[1] == 0o644
    with pytest.raises(Refused) as refused:
        model.setxattr("/f", DEFAULT, NAMED)
    assert refused.value.errno == errno.EACCES


@pytest.mark.parametrize(("value", "mode"), list(itertools.product(LISTS, MODES)))
def test_the_model_and_the_product_say_the_same(value, mode):
    assert acl.mode_of(acl.parse(value), 0) == (access_lists.permissions(value), not access_lists.says_more(value))
    assert acl.with_mode(value, mode) == access_lists.changed(value, mode)
    assert acl.inherited(value, mode)[:2] == access_lists.inherited(value, mode)


def test_attributes_are_created_or_replaced():
    model = Model()
    model.create("/f")
    for flags, number in ((XATTR_REPLACE, errno.ENODATA), (XATTR_CREATE, 0), (XATTR_CREATE, errno.EEXIST), (XATTR_REPLACE, 0)):
        try:
            model.setxattr("/f", "user.a", b"1", flags)
            assert not number
        except Refused as refused:
            assert refused.errno == number
    assert model.listxattr("/f") == ("user.a",)
