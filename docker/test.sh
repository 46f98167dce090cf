#!/usr/bin/env bash
# Runs the tests of the images and of the pipelines in containers. With Podman, as root, nothing but
# loopback is there: they run in a network namespace of their own.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/engine.sh
find_engine
export EXPUNGE_TEST_ENGINE=$ENGINE
pytest=("${VENV:-.venv}/bin/pytest" -m containers tests/containers "$@")
[ "$ENGINE" = podman ] || exec "${pytest[@]}"

folder=$(mktemp --directory)
trap 'rm -r "$folder"' EXIT
export DOCKER_HOST=unix://$folder/podman.sock
serve() {
    podman system service --time 0 "$DOCKER_HOST" 2> "$folder/service.log" &
    for _ in $(seq 100); do [ -S "$folder/podman.sock" ] && break; sleep 0.1; done
    status=0
    "$@" || status=$?
    kill "$!"
    return $status
}
if [ "$(id -u)" = 0 ] && unshare --net true 2> /dev/null; then
    export EXPUNGE_TEST_LOOPBACK=1
    export -f serve
    export folder
    unshare --net bash -c 'ip link set lo up && serve "$@"' serve "${pytest[@]}"
else
    serve "${pytest[@]}"
fi
