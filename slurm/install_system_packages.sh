#!/usr/bin/env bash
# What pip cannot install: OpenGL to draw pictures without a screen; for the tests Slurm and a browser.
# `make setup` calls this each time; when everything is there it takes no time and says nothing.
# As root on Debian or Ubuntu it installs what is missing; elsewhere it says what to type, and goes on.
set -euo pipefail

# Without these nothing can be drawn; libosmesa6 is the second back end, for machines whose EGL has no driver.
GL=(libegl1 libgl1 libopengl0 libgl1-mesa-dri)
OSMESA=(libosmesa6)
# The throw-away one-machine cluster of the tests. None of it is started here.
SLURM=(munge slurmctld slurmd slurm-client)
# The browser in which the tests open a report.
BROWSER=(chromium)

POLICY=/usr/sbin/policy-rc.d
MARK="# made by PlaNet's install_system_packages.sh, for as long as it runs"

missing() { # PACKAGE...: print those that are not installed
    local package
    for package in "$@"; do
        [[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" == installed ]] || echo "$package"
    done
}

find_missing() {
    mapfile -t gl < <(missing "${GL[@]}")
    mapfile -t osmesa < <(missing "${OSMESA[@]}")
    mapfile -t slurm < <(missing "${SLURM[@]}")
    # A machine that belongs to a cluster keeps its own Slurm.
    if [[ -e /etc/slurm/slurm.conf ]] || { command -v sbatch >/dev/null && [[ "$(missing slurm-client)" ]]; }; then
        slurm=()
    fi
    mapfile -t browser < <(missing "${BROWSER[@]}")
    command -v chromium >/dev/null && browser=() # it may come from elsewhere, such as a snap
    all=("${gl[@]}" "${osmesa[@]}" "${slurm[@]}" "${browser[@]}")
}

keep_services_down() { # what this script installs must not be started; a policy of the system's own is put back
    if [[ -e $POLICY ]] && ! grep -qF "$MARK" "$POLICY"; then
        mv "$POLICY" "$POLICY.kept"
    fi
    trap 'rm -f "$POLICY" "$log"; [[ ! -e $POLICY.kept ]] || mv "$POLICY.kept" "$POLICY"' EXIT
    printf '#!/bin/sh\n%s\nexit 101\n' "$MARK" >"$POLICY"
    chmod +x "$POLICY"
}

install() { # PACKAGE...
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 "$@" </dev/null >>"$log" 2>&1
}

get() { # PACKAGE...: with the lists as they are, then with fresh ones (a bare system has none)
    install "$@" && return
    apt-get update -q -o DPkg::Lock::Timeout=600 </dev/null >>"$log" 2>&1 || true
    install "$@"
}

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    echo "system packages: no apt here. Needed are EGL (or OSMesa) and OpenGL, for the tests also munge, slurmctld," \
        "slurmd and chromium; python -m planet.doctor says what is there"
    exit 0
fi

find_missing
((${#all[@]})) || exit 0

if [[ $EUID -ne 0 ]]; then
    echo "system packages are missing; as root: apt-get update && apt-get install -y --no-install-recommends ${all[*]}"
    ((${#gl[@]})) || echo "(only tests need them: they are skipped or say so)"
    exit 0
fi

exec 9>/var/lock/planet-system-packages # one at a time: a second `make setup` waits, then finds nothing missing
flock 9
find_missing
((${#all[@]})) || exit 0

log=$(mktemp)
keep_services_down
echo "system packages: installing ${all[*]}"
if ((${#gl[@]})) && ! get "${gl[@]}"; then
    tail -n 20 "$log" >&2
    echo "system packages: cannot install ${gl[*]}, without which nothing can be drawn (network? /etc/apt/sources.list?)" >&2
    exit 1
fi
for group in "${osmesa[*]}" "${slurm[*]}" "${browser[*]}"; do
    # shellcheck disable=SC2086 # a list of packages
    if [[ $group ]] && ! get $group; then
        tail -n 5 "$log"
        echo "system packages: cannot install $group; going on without (only tests need them)"
    fi
done
