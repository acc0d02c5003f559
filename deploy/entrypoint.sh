#!/bin/sh
# What a container runs: mgs, mds, oss or client; anything else is a command of its own.
#
#   FSNAME    name of the file system                       lustre
#   MGSNODE   where the MGS listens                         mgs:9880@tcp
#   INDEX     numbers of the targets of this server         0
#   PORT      where this server listens                     9880
#
# A target that is not there yet is formatted, once. The container's host name is the NID, so that clients find the
# server again when it comes back with another address. No caller is authenticated: keep the network private.
set -eu

role=${1:-}
name=${HOSTNAME:-$(hostname)}
fsname=${FSNAME:-lustre}
mgsnode=${MGSNODE:-mgs:9880@tcp}
port=${PORT:-9880}
common="--name $name --run-dir ${LUSTRELITE_RUN_DIR:-/run/lustrelite} --metrics-host 0.0.0.0 --metrics-port ${METRICS_PORT:-9881}"

targets=
format() { # KIND INDEX
    directory=/data/$1$2
    [ -e "$directory/target.json" ] ||
        mkfs.lustrelite --quiet "--$1" --fsname "$fsname" --index "$2" --mgsnode "$mgsnode" "$directory"
    targets="$targets --target $directory"
}

case $role in
mgs)
    [ -e /data/mgs/target.json ] || mkfs.lustrelite --quiet --mgs /data/mgs
    exec lustrelite-mgs $common --allow-remote --listen "$name:$port@tcp" --target /data/mgs
    ;;
mds)
    for index in ${INDEX:-0}; do format mdt "$index"; done
    exec lustrelite-mds $common --allow-remote --listen "$name:$port@tcp" $targets
    ;;
oss)
    for index in ${INDEX:-0}; do format ost "$index"; done
    exec lustrelite-oss $common --allow-remote --listen "$name:$port@tcp" $targets
    ;;
client)
    # Who mounts as root takes no directory of another user's; servers' containers leave it to the user of the image.
    [ "$(id -u)" != 0 ] || chown root "${LUSTRELITE_RUN_DIR:-/run/lustrelite}"
    exec lustrelite-client $common --mgsnode "$mgsnode" --fsname "$fsname"
    ;;
*)
    exec "$@"
    ;;
esac
