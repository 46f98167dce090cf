#!/usr/bin/env bash
# What runs containers here. To be sourced: find_engine sets ENGINE to docker or podman, find_base
# sets BASE_IMAGE, and both say on stderr what they do. The folder that find_engine is given keeps
# Podman's settings, and lives as long as they are needed. Bash.

# Docker where its engine answers, Podman otherwise.
find_engine() {
    if docker info > /dev/null 2>&1; then
        ENGINE=docker
    elif command -v podman > /dev/null; then
        ENGINE=podman
        configure_podman "${1:-}"
    else
        echo "no container engine: install Docker or Podman" >&2
        return 1
    fi
}

# Whether the engine runs a container at all: many a sandbox has one that cannot.
usable_engine() {
    find_engine "${1:-}" && find_base && "$ENGINE" run --rm --network host "$BASE_IMAGE" true
}

# Podman asks for limits and for a cgroup manager that root in a sandbox may not have.
configure_podman() {
    local files processes
    if [ -n "${CONTAINERS_CONF:-}" ]; then return; fi
    files=$(ulimit -Hn) processes=$(ulimit -Hu)
    if [ "$files" = unlimited ]; then files=1048576; fi
    # Podman itself takes 32768 processes, and what it starts cannot have more.
    if [ "$processes" = unlimited ] || [ "$processes" -gt 32768 ]; then processes=32768; fi
    CONTAINERS_CONF=$(mktemp --tmpdir="$1" containers-XXXXXX.conf)
    export CONTAINERS_CONF
    {
        echo "[containers]"
        echo "default_ulimits = [\"nofile=$files:$files\", \"nproc=$processes:$processes\"]"
        echo "[engine]"
        if [ ! -S /run/systemd/private ]; then echo 'cgroup_manager = "cgroupfs"'; fi
        if command -v runc > /dev/null; then echo 'runtime = "runc"'; fi
    } > "$CONTAINERS_CONF"
}

# The base that BASE_IMAGE names, or the official one; where no registry can be reached, one that
# Debian's packages make (45 s on 2 cores, as root).
find_base() {
    local official=python:3.11-slim-bookworm own=localhost/expunge-base:bookworm
    if [ -n "${BASE_IMAGE:-}" ]; then return; fi
    if "$ENGINE" image inspect "$own" > /dev/null 2>&1; then
        BASE_IMAGE=$own
    elif "$ENGINE" image inspect "$official" > /dev/null 2>&1 \
        || timeout 300 "$ENGINE" pull --quiet "$official" > /dev/null 2>&1; then
        BASE_IMAGE=$official
    else
        echo "$official cannot be pulled; a base is made from Debian's packages" >&2
        make_base "$own" && BASE_IMAGE=$own
    fi
}

make_base() {
    local work root
    command -v debootstrap > /dev/null || install_from_debian debootstrap || {
        echo "that takes debootstrap, which root can install" >&2
        return 1
    }
    work=$(mktemp --directory --tmpdir expunge-base-XXXXXX) root=$work/root
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" \
        > "$work/log" 2>&1 || { tail -3 "$work/log" >&2; rm -r "$work"; return 1; }
    rm -r "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/usr/share/doc
    tar --create --directory "$root" . | "$ENGINE" import - "$1" > /dev/null \
        || { rm -r "$work"; return 1; }
    rm -r "$work"
}

install_from_debian() {
    { command -v apt-get > /dev/null && [ "$(id -u)" = 0 ]; } || return 1
    apt-get update --quiet=2 >&2 \
        && DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes \
            --no-install-recommends "$@" > /dev/null
}
