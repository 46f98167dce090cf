#!/usr/bin/env bash
# Builds the images `expunge` and `expunge-mlflow`, with Docker or Podman.
#
# BASE_IMAGE names another base. PIP_INDEX_URL and a certificate file (PIP_CERT, SSL_CERT_FILE, or
# the machine's own) are handed to the build as secrets: no layer keeps them.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/engine.sh
secrets=$(mktemp --directory)
trap 'rm -r "$secrets"' EXIT
find_engine "$secrets"
find_base

version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' components/expunge/__init__.py)
commit=$(git rev-parse HEAD 2> /dev/null || echo unknown)
[ -z "$(git status --porcelain 2> /dev/null)" ] || commit="$commit, changed"

certificates=${PIP_CERT:-${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}}
echo "[global]" > "$secrets/pip.conf"
options=(--secret "id=pip.conf,src=$secrets/pip.conf")
if [ -f "$certificates" ]; then
    echo "cert = /run/secrets/ca.pem" >> "$secrets/pip.conf"
    options+=(--secret "id=ca.pem,src=$certificates")
fi
[ -z "${PIP_INDEX_URL:-}" ] || echo "index-url = $PIP_INDEX_URL" >> "$secrets/pip.conf"

if [ "$ENGINE" = podman ]; then
    # Docker's format, since the other has no health checks.
    options+=(--isolation=chroot --network=host --format=docker)
fi
build() {
    echo "building $2 on $BASE_IMAGE with $ENGINE" >&2
    DOCKER_BUILDKIT=1 "$ENGINE" build "${options[@]}" --file docker/Dockerfile --target "$1" \
        --build-arg "BASE_IMAGE=$BASE_IMAGE" --tag "$2" \
        --label "org.opencontainers.image.version=$version" \
        --label "org.opencontainers.image.revision=$commit" .
}
build expunge "expunge:$version-python3.11"
build mlflow "expunge-mlflow:$version"
