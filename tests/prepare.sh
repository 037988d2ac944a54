#!/bin/sh
# Prepares what `make test` needs: the virtual environment .venv-test and, when root, Debian packages and what analysts
# import, for the booted machine.
set -eu
cd "$(dirname -- "$0")/.."
: "${PYTHON:=python3}"

# python3-venv: ensurepip; mmdebstrap, systemd-container: the booted machine; chromium: the browser, with letters to
# show; the others: what the tests check with.
packages="python3-venv mmdebstrap systemd-container util-linux sudo acl shellcheck man-db curl gcc libc6-dev \
chromium chromium-driver fonts-dejavu-core"

install_packages() {
    missing=
    for package in $packages; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" = installed ] ||
            missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    echo "make test: installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q update
    # shellcheck disable=SC2086  # a list of words
    apt-get -q install -y --no-install-recommends $missing
}

# Made anew when the interpreter or the pinned versions have changed.
prepare_venv() {
    stamp=.venv-test/stamp
    wanted=$("$PYTHON" -VV; cat tests/requirements.txt tests/requirements-axe.txt)
    [ -x .venv-test/bin/python ] && [ "$(cat "$stamp" 2>/dev/null || true)" = "$wanted" ] && return
    "$PYTHON" -c 'import ensurepip' 2>/dev/null || {
        echo "make test: this Python cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2
        exit 69
    }
    rm -rf .venv-test
    "$PYTHON" -m venv .venv-test
    install_from tests/requirements.txt
    install_from tests/requirements-axe.txt --no-deps
    printf '%s\n' "$wanted" >"$stamp"
}

# For the machine's Python, whichever this one is.
prepare_analyst() {
    cmp -s tests/requirements-analyst.txt .venv-test/analyst/requirements.txt && return
    rm -rf .venv-test/analyst
    install_from tests/requirements-analyst.txt --python-version 3.11 --only-binary=:all: --target .venv-test/analyst
    cp tests/requirements-analyst.txt .venv-test/analyst/requirements.txt
}

# Clients of the send API that others write with; left out where there is no npm.
prepare_node() {
    command -v npm >/dev/null || return 0
    cmp -s tests/node/package-lock.json tests/node/node_modules/stamp && return
    (cd tests/node && npm ci --no-audit --no-fund --ignore-scripts --loglevel=error)
    cp tests/node/package-lock.json tests/node/node_modules/stamp
}

install_from() {
    .venv-test/bin/python -m pip install --quiet --disable-pip-version-check --requirement "$@"
}

# Without root nothing boots and nobody else acts, so this is all of them that is needed.
require_commands() {
    for command in shellcheck man curl gcc; do
        command -v "$command" >/dev/null || {
            echo "make test: $command is missing; on Debian, as root: apt-get install shellcheck man-db curl gcc libc6-dev" >&2
            exit 69
        }
    done
}

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    install_packages
fi
require_commands
prepare_venv
prepare_node
if [ "$(id -u)" -eq 0 ]; then
    prepare_analyst
fi
