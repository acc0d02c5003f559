#!/bin/sh
# A base image without a registry: Debian's minimal system with Python, made by debootstrap. Needs root.
#
#   deploy/make-base-image.sh [NAME] [SUITE] [MIRROR]
set -eu
name=${1:-lustrelite-base}
suite=${2:-bookworm}
mirror=${3:-http://deb.debian.org/debian}

command -v debootstrap >/dev/null || { echo "debootstrap is missing: apt-get install debootstrap" >&2; exit 1; }
command -v docker >/dev/null || { echo "docker is missing: apt-get install docker.io" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "must be root: debootstrap makes a root file system" >&2; exit 1; }

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$suite" "$root" "$mirror"
# What a company's proxy needs to be trusted, this machine has already.
if [ -d /usr/local/share/ca-certificates ]; then
    mkdir -p "$root/usr/local/share/ca-certificates"
    cp -r /usr/local/share/ca-certificates/. "$root/usr/local/share/ca-certificates/"
    chroot "$root" update-ca-certificates >/dev/null
fi
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
tar -C "$root" -c . | docker import --change 'CMD ["/bin/bash"]' - "$name"
echo "made image $name: docker build --build-arg BASE=$name --network host -f deploy/Dockerfile -t lustrelite ."
