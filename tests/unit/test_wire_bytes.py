"""The bytes of one sample of every message are pinned: a change of the wire format cannot happen by accident.

The samples follow the declarations: every field has another value, so that two fields that change places show. A new or
changed message needs a line in the VERSION log of wire/message.py and

    python tests/unit/test_wire_bytes.py --rewrite

and the diff of wire_bytes.json is then read by somebody. Source of the idea: lustre/utils/wiretest.c.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import sys
import types
import typing
from itertools import count
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

import lustrelite.wire
from lustrelite.ids import Fid, make_fid
from lustrelite.wire import message
from lustrelite.wire.frame import WIRE_VERSION
from lustrelite.wire.session import Hello

for _module in pkgutil.iter_modules(lustrelite.wire.__path__, "lustrelite.wire."):
    importlib.import_module(_module.name)

GOLDEN = Path(__file__).with_name("wire_bytes.json")


def sample(annotation: Any, numbers: Any, *, bare: bool) -> Any:
    """A value of `annotation` made from `numbers`; what is optional is None and what may be empty is, if `bare`."""
    if annotation is Fid:
        return make_fid(0x200000400 + next(numbers), next(numbers))
    if isinstance(annotation, typing.NewType):
        return sample(annotation.__supertype__, numbers, bare=bare)
    if annotation is Any or annotation in (None, type(None)):
        return None
    if annotation is bool:
        return not bare
    if annotation is int:
        number = next(numbers)
        return number if bare else (number << 40) + number  # more than 32 bits: times, sizes and xids have them
    if annotation in (str, bytes):
        text = f"text{next(numbers)}"
        return text if annotation is str else text.encode()
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        if bare:
            return None
        return sample(next(a for a in args if a is not type(None)), numbers, bare=bare)
    if origin is tuple and args[-1] is Ellipsis:
        return () if bare else (sample(args[0], numbers, bare=bare), sample(args[0], numbers, bare=bare))
    if origin is tuple:
        return tuple(sample(a, numbers, bare=bare) for a in args)
    hints = typing.get_type_hints(annotation)
    return annotation(*(sample(hints[name], numbers, bare=bare) for name in annotation._fields))


def declared() -> dict[str, type]:
    """Everything that has bytes of its own, by the name in the golden file."""
    found = {"Hello": Hello, "RequestHeader": message.RequestHeader, "ReplyHeader": message.ReplyHeader}
    for opcode, spec in sorted(message.BY_OPCODE.items()):
        found[f"{opcode} {spec.name}"] = spec.cls
        found[f"{opcode} {spec.name} reply {spec.reply.__name__}"] = spec.reply
    return found


def pinned() -> dict[str, dict[str, str]]:
    """What the golden file should hold: for each name the bytes of a full sample and of a bare one."""
    return {
        name: {
            "full": message.pack(sample(cls, count(1), bare=False)).hex(),
            "bare": message.pack(sample(cls, count(1), bare=True)).hex(),
        }
        for name, cls in declared().items()
    }


def test_programs_say_the_newest_version_of_the_log():
    """So that a program of another version is refused at the HELLO, and not at the first message that differs."""
    numbers = [int(number) for number in re.findall(r"^    (\d+) +20\d\d-", message.__doc__ or "", re.MULTILINE)]
    assert numbers == list(range(1, WIRE_VERSION + 1))


def test_every_message_has_a_pinned_sample_and_no_sample_is_left_over():
    assert list(json.loads(GOLDEN.read_text())) == list(declared()), "see the head of this file"


@pytest.mark.parametrize("name", declared())
def test_bytes_are_as_pinned(name):
    assert pinned()[name] == json.loads(GOLDEN.read_text()).get(name), "see the head of this file"


@pytest.mark.parametrize("name", [n for n in declared() if n[0].isdigit()])
def test_pinned_bytes_decode_to_the_sample(name):
    cls = declared()[name]
    golden = json.loads(GOLDEN.read_text())[name]
    for form, bare in (("full", False), ("bare", True)):
        value = message.checker(cls)(message.unpack(bytes.fromhex(golden[form])))
        assert value == sample(cls, count(1), bare=bare)
        assert type(value) is cls


if __name__ == "__main__":
    if sys.argv[1:] != ["--rewrite"]:
        sys.exit(__doc__)
    GOLDEN.write_text(json.dumps(pinned(), indent=1) + "\n")
