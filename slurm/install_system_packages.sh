#!/usr/bin/env bash
# Install what pip cannot: the libraries that draw off-screen pictures, and a Slurm for the cluster tests.
# As root on Debian or Ubuntu it installs what is missing; elsewhere it prints the one line to run, and goes on.
set -euo pipefail

drawing=(libegl1 libgl1 libopengl0 libgl1-mesa-dri libosmesa6)
slurm=(munge slurmctld slurmd slurm-client)

command -v dpkg-query >/dev/null || {
    echo "system packages: this is no Debian; needed are EGL or OSMesa, and for the Slurm tests munge, slurmctld, slurmd"
    exit 0
}
missing=()
for package in "${drawing[@]}" "${slurm[@]}"; do
    status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" != 0 ]; then
    echo "system packages are missing; as root: apt-get install --no-install-recommends -y ${missing[*]}"
    echo "(without the first five no pictures; without the last four the Slurm tests are skipped)"
    exit 0
fi

echo "system packages: installing ${missing[*]}"
log=$(mktemp)
guard=/usr/sbin/policy-rc.d
made_guard=no
if [ ! -e $guard ]; then
    # The packages would start daemons of their own; the tests start theirs.
    printf '#!/bin/sh\nexit 101\n' >$guard
    chmod 755 $guard
    made_guard=yes
fi
cleanup() {
    [ $made_guard = no ] || rm -f $guard
    rm -f "$log"
}
trap cleanup EXIT

install() {
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "${missing[@]}" </dev/null >>"$log" 2>&1
}
if ! install; then
    # The list of packages may be old or missing.
    apt-get update -q </dev/null >>"$log" 2>&1 || true
    install || {
        tail -20 "$log" >&2
        echo "system packages: apt-get failed; by hand: apt-get install --no-install-recommends -y ${missing[*]}" >&2
        exit 1
    }
fi
