"""Examples at the end of every command's --help: what people type most often. A test parses each of them."""

from __future__ import annotations

import click

EXAMPLES = {
    "lustrelite": {
        "up": ("lustrelite up", "lustrelite up --osts 4 --oss 2 --mds-failover", "lustrelite up --set tunables.stripe_count=2"),
        "status": ("lustrelite status", "lustrelite status --json"),
        "down": ("lustrelite down",),
        "start": ("lustrelite start mds1", "lustrelite start lustre-OST0000"),
        "stop": ("lustrelite stop oss1",),
        "kill": ("lustrelite kill mds1",),
        "events": ("lustrelite events -f", "lustrelite events mds1 -n 20 --prefix recovery."),
        "ls": ("lustrelite ls -l /docs", "lustrelite ls -R lustre:/docs"),
        "cat": ("lustrelite cat /docs/a",),
        "cp": ("lustrelite cp -r ~/Documents lustre:/docs", "lustrelite cp lustre:/docs/a /tmp", "lustrelite cp lustre:/a lustre:/b"),
        "mv": ("lustrelite mv /docs/a /docs/b",),
        "rm": ("lustrelite rm /docs/a", "lustrelite rm -r /docs"),
        "mkdir": ("lustrelite mkdir -p -m 750 /a/b/c",),
        "stat": ("lustrelite stat /docs/a",),
        "mount": ("lustrelite mount /mnt/lustre", "lustrelite mount /mnt/lustre -o ro"),
        "umount": ("lustrelite umount /mnt/lustre", "lustrelite umount -l /mnt/lustre"),
        "fsck": ("lustrelite fsck", "lustrelite fsck --repair --dry-run",
                 "lustrelite fsck --target /srv/mdt0 --target /srv/ost0"),
        "backup": ("lustrelite backup /backups/monday.tar.gz",),
        "restore": ("lustrelite restore /backups/monday.tar.gz",),
        "demo": ("lustrelite demo", "lustrelite demo --source /usr/share/doc --clients 3"),
        "sim": ("lustrelite sim --runs 100", "lustrelite sim --seed 4711"),
    },
    "llctl": {
        "dl": ("llctl dl",),
        "get_param": ("llctl get_param 'mdt.*.recovery_status'", "llctl get_param -n version", "llctl get_param 'mgs.MGS.live.*'"),
        "set_param": ("llctl set_param 'mdt.*.commit_on_sharing=0'", "llctl set_param -P tunables.commit_interval_s=2"),
        "list_param": ("llctl list_param 'obdfilter.*'", "llctl list_param -R mdt", "llctl list_param -F 'tunables.*'"),
        "abort_recovery": ("llctl --device lustre-MDT0000 abort_recovery",),
        "deactivate": ("llctl --device lustre-OST0000-osc-1a2b3c4d deactivate",),
        "activate": ("llctl --device lustre-OST0000-osc-1a2b3c4d activate",),
        "conf_param": ("llctl conf_param lustre-OST0000.osc.active=0", "llctl conf_param lustre-OST0000.failover.mode=failout"),
        "list_nids": ("llctl list_nids",),
        "ping": ("llctl ping 10.0.0.1:988@tcp",),
        "hold_commits": ("llctl hold_commits lustre-MDT0000",),
        "release_commits": ("llctl release_commits lustre-MDT0000",),
        "commit": ("llctl commit lustre-MDT0000",),
        "dump_locks": ("llctl dump_locks lustre-MDT0000", "llctl dump_locks lustre-MDT0000 '[0x200000401:0x1:0x0]'"),
        "clear": ("llctl clear",),
        "events": ("llctl events --prefix lock. -n 50",),
    },
}


def add_examples(group: click.Group, program: str) -> None:
    """Let the help of every command of `program` end with its examples."""
    for name, lines in EXAMPLES[program].items():
        group.commands[name].epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
