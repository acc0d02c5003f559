"""lustrelite fsck: examine a stopped cluster's stores, or a running one through its servers; repair a stopped one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from lustrelite import format as target_format
from lustrelite import fsck as checker
from lustrelite.cli.context import Where, where, with_file_system
from lustrelite.cli.errors import Refused
from lustrelite.client.fs import FileSystem
from lustrelite.errors import FormatRefused, LinkLost, OpError, StoreFailed
from lustrelite.fsck import ERROR, Report
from lustrelite.fsck.changes import Options
from lustrelite.fsck.repair import FAILED, LEFT, Outcome, Repair
from lustrelite.ids import parse_target_name
from lustrelite.store import pages
from lustrelite.store.kv import Store
from lustrelite.store.objects import ObjectFiles
from lustrelite.store.schema import TARGET_FILE

PAUSE_S = 2.0  # between two readings of a running system: what is under way settles meanwhile
SHOWN_MAX = 50
Targets = dict[str, Path]  # by name: where they are


class Failed(Refused):
    """The examination or the repair could not be made."""

    exit_code = FAILED


@contextlib.contextmanager
def _operational() -> Iterator[None]:
    """What keeps fsck from its work gives the status that e2fsck has for that."""
    try:
        yield
    except Refused as error:
        raise Failed(error.message) from None
    except OpError as error:
        raise Failed(os.strerror(error.errno) + (f": {error.what}" if error.what else "")) from None
    except (FormatRefused, StoreFailed, LinkLost) as error:
        raise Failed(str(error)) from None
    except BrokenPipeError:
        raise  # nobody reads on: the work is done
    except OSError as error:
        raise Failed(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")) from None


def fsck(options: Options, directories: Sequence[Path] = (), *, as_json: bool, repair: bool, dry_run: bool) -> int:
    """Check, or repair, what the command is about, and tell the result; returns the exit status.  Failed

    `directories` are stopped targets that belong to no state directory.
    """
    with _operational():
        targets = targets_in(directories)
        if repair or dry_run:
            if targets:
                outcome = repair_targets(targets, options, dry_run=dry_run)
            else:
                outcome = repair_stopped(where(), options, dry_run=dry_run)
            _tell_outcome(outcome, as_json)
            return outcome.status
        report = check_stopped(targets) if targets else _check()
        _tell_report(report, as_json)
        return LEFT if report.errors else 0


def targets_in(directories: Sequence[Path]) -> Targets:
    """The targets in these directories: all of one file system.  Refused"""
    found: Targets = {}
    for directory in directories:
        config = target_format.read_target(directory)
        if config.name in found:
            raise Refused(f"{directory} holds {config.name}, and so does {found[config.name]}: which one is meant?")
        if config.kind != "MGS":  # nothing of the files is there
            found[config.name] = directory
    fsnames = {parse_target_name(name)[0] for name in found}
    if directories and (len(fsnames) != 1 or not any("-MDT" in name for name in found)):
        raise Refused("name all targets of one file system, its MDT among them: --target MDT_DIR --target OST_DIR ...")
    return found


def _check() -> Report:
    here = where()
    if here.mgsnode:
        return with_file_system(check_mounted)
    cluster = here.cluster().need()
    if not any(cluster.record(name) for name in cluster.members):
        return check_stopped(cluster.targets())
    if not cluster.unserved():
        return with_file_system(check_mounted)
    raise Refused("part of the cluster is down: start it (`lustrelite up`) or stop all of it first")


def _tell_report(report: Report, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(report.as_json()))
        return
    _tell_problems(report)
    click.echo(summary(report))


def _tell_problems(report: Report) -> None:
    others = [problem for problem in report.problems if problem.severity != ERROR]
    for problem in [*report.errors, *others][:SHOWN_MAX]:
        click.echo(f"{problem.severity}: {problem.kind}: {problem.subject}: {problem.detail}")


def _tell_outcome(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(outcome.as_json()))
        return
    word = "would mend" if outcome.dry_run else "mended"
    for one in outcome.mended:
        click.echo(f"{word}: {one}")
    if outcome.found.clean:
        click.echo(summary(outcome.found))
        return
    if outcome.left.found:
        click.echo("would be left:" if outcome.dry_run else "left:")
        _tell_problems(outcome.left)
    click.echo(f"found: {summary(outcome.found)}")
    click.echo(f"{'would be' if outcome.dry_run else 'now'}: {summary(outcome.left)}")


def summary(report: Report) -> str:
    """The report in one line."""
    counts = ", ".join(f"{count} {name}" for name, count in report.counts.items() if count)
    if report.clean:
        return f"clean: {counts}"
    found = ", ".join(f"{count} {kind}" for kind, count in report.found.items())
    return f"{'NOT CLEAN' if report.errors else 'no errors, only warnings'}: {found} (of {counts})"


@contextlib.contextmanager
def open_targets(targets: Targets, *, readonly: bool) -> Iterator[tuple[Store, dict[int, tuple[Store, ObjectFiles]]]]:
    """The stores of stopped targets: that of the MDT, and those of the OSTs with their data files by index.

    Each target is owned meanwhile, so that nobody starts it.  Errors: OpError(EBUSY), somebody runs it
    """
    with contextlib.ExitStack() as stack:
        mdts: list[Store] = []
        osts: dict[int, tuple[Store, ObjectFiles]] = {}
        for name, directory in targets.items():
            if name == "MGS":
                continue
            stack.callback(target_format.claim(directory).release)
            _, kind, index = parse_target_name(name)
            store = Store.open(directory, kind, readonly=readonly)
            stack.callback(store.close)
            if kind == "OST":
                osts[index] = (store, ObjectFiles(directory))
                stack.callback(osts[index][1].close)
                if not readonly:
                    store.put_back(osts[index][1])
            else:
                mdts.append(store)
        (mdt,) = mdts
        yield mdt, osts


def settle(targets: Targets) -> None:
    """Every target is the one that its name says and its database whole; then what killed targets have in their logs goes into
    their databases and files.

    Errors: FormatRefused, StoreFailed say which target must be restored; OpError(EBUSY), somebody runs it
    """
    for name, directory in targets.items():
        config = target_format.read_target(directory)
        if config.name != name:
            raise FormatRefused(f"{directory / TARGET_FILE} is that of {config.name}: restore the one of {name} from a backup")
        with contextlib.ExitStack() as stack:
            stack.callback(target_format.claim(directory).release)
            pages.check(directory)
            store = stack.enter_context(contextlib.closing(Store.open(directory, config.kind)))
            if config.kind == "OST":
                store.put_back(stack.enter_context(contextlib.closing(ObjectFiles(directory))))


def check_stopped(targets: Targets) -> Report:
    """Examine the stores of a file system that is not running."""
    settle(targets)
    with open_targets(targets, readonly=True) as (mdt, osts):
        return checker.check(mdt, osts)


def repair_stopped(here: Where, options: Options, *, dry_run: bool) -> Outcome:
    """Repair the stores of a cluster that is not running, or (`dry_run`) say what would be done."""
    if here.mgsnode:
        raise Refused("a file system is repaired where its targets are, with its servers stopped: fsck --repair --target DIR ...")
    cluster = here.cluster().need()
    with cluster.locked():
        live = [name for name in cluster.members if cluster.record(name)]
        if live:
            raise Refused(f"the cluster is running ({', '.join(live)}): stop it first (`lustrelite down`)")
        return repair_targets(cluster.targets(), options, dry_run=dry_run)


def repair_targets(targets: Targets, options: Options, *, dry_run: bool) -> Outcome:
    """Repair these targets of one file system, or (`dry_run`) say what would be done."""
    settle(targets)
    with open_targets(targets, readonly=dry_run) as (mdt, osts):
        repair = Repair(mdt, osts, now_ns=time.time_ns(), options=options)
        outcome = repair.plan()
        outcome.dry_run = dry_run
        if not dry_run:
            repair.apply()
    if outcome.mended and not dry_run:
        outcome.left = check_stopped(targets)  # what is there now, not what was meant to be
    return outcome


async def check_mounted(fs: FileSystem) -> Report:
    """Examine a running cluster through the mount's connections; root only."""
    imports = fs.connections.imports
    osts = {parse_target_name(n)[2]: checker.RpcReader(imp) for n, imp in imports.items() if "-OST" in n}
    (mdt,) = (checker.RpcReader(imp) for name, imp in imports.items() if "-MDT" in name)
    return await checker.check_running(mdt, osts, lambda: asyncio.sleep(PAUSE_S))
