#!/usr/bin/env bash
# Runs the tests of the images and of the pipelines in containers. With Podman, as root, nothing but
# loopback is there: they run in a network namespace of their own.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/engine.sh
folder=$(mktemp --directory)
trap 'rm -r "$folder"' EXIT
find_engine "$folder"
export EXPUNGE_TEST_ENGINE=$ENGINE
pytest=("${VENV:-.venv}/bin/pytest" -m containers tests/containers "$@")
if [ "$ENGINE" = docker ]; then
    "${pytest[@]}"
    exit
fi

export DOCKER_HOST=unix://$folder/podman.sock
serve() {
    podman system service --time 0 "$DOCKER_HOST" 2> "$folder/service.log" &
    for _ in $(seq 100); do [ -S "$folder/podman.sock" ] && break; sleep 0.1; done
    if [ ! -S "$folder/podman.sock" ]; then cat "$folder/service.log" >&2; fi
    status=0
    "$@" || status=$?
    kill "$!" || true
    return $status
}
if [ "$(id -u)" = 0 ] && unshare --net ip link set lo up 2> /dev/null; then
    export EXPUNGE_TEST_LOOPBACK=1
    export -f serve
    export folder
    unshare --net bash -c 'ip link set lo up && serve "$@"' serve "${pytest[@]}"
else
    echo "the tests share this machine's network: closing it takes root, and ip from iproute2" >&2
    serve "${pytest[@]}"
fi
