#!/bin/sh
# Prepares what `make test` needs: the virtual environment .venv-test and, when root, Debian packages and what analysts
# import, for the booted machine. Without root it says which packages are missing, all at once.
set -eu
cd "$(dirname -- "$0")/.."
: "${PYTHON:=python3}"

# python3-venv: ensurepip; mmdebstrap, systemd-container: the booted machine; chromium: the browser, with letters to
# show; libc6-dev: a library for the disk campaign. What commands.txt names comes besides, where its command is missing:
# node and npm may be of another packager, whose packages and Debian's exclude one another.
packages="python3-venv mmdebstrap systemd-container util-linux sudo acl chromium chromium-driver fonts-dejavu-core \
libc6-dev"

# Exit status 69 (EX_UNAVAILABLE): nothing can be tested without what is missing.
fail() {
    echo "make test: $*" >&2
    exit 69
}

can_make_venv() {
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null
}

# The Debian packages without which tests are left out, or none can be run; each after a blank.
missing_packages() {
    can_make_venv || printf ' python3-venv'
    sed '/^#/d' tests/commands.txt | while read -r command of_it; do
        command -v "$command" >/dev/null || printf ' %s' "$of_it"
    done
}

install_packages() {
    missing=$(missing_packages)
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
    wanted=$("$PYTHON" -VV 2>/dev/null || true; cat tests/requirements.txt)
    [ -x .venv-test/bin/python ] && [ "$(cat "$stamp" 2>/dev/null || true)" = "$wanted" ] && return
    can_make_venv || fail "$PYTHON cannot make a virtual environment without the package python3-venv"
    rm -rf .venv-test
    "$PYTHON" -m venv .venv-test
    install_from tests/requirements.txt --no-deps
    printf '%s\n' "$wanted" >"$stamp"
}

# For the machine's Python, whichever this one is.
prepare_analyst() {
    cmp -s tests/requirements-analyst.txt .venv-test/analyst/requirements.txt && return
    rm -rf .venv-test/analyst
    install_from tests/requirements-analyst.txt --python-version 3.11 --only-binary=:all: --target .venv-test/analyst
    cp tests/requirements-analyst.txt .venv-test/analyst/requirements.txt
}

# Clients of the send API that others write with; commands.txt says that their tests need npm.
prepare_node() {
    command -v npm >/dev/null || return 0
    cmp -s tests/support/node/package-lock.json tests/support/node/node_modules/stamp && return
    (cd tests/support/node && npm ci --no-audit --no-fund --ignore-scripts --loglevel=error)
    cp tests/support/node/package-lock.json tests/support/node/node_modules/stamp
}

# Every package is pinned, so nothing is resolved. Warnings would hide the lines that matter; errors are shown.
install_from() {
    .venv-test/bin/python -m pip install --quiet --quiet --disable-pip-version-check --requirement "$@" ||
        fail "pip could not install what the tests need, see above; it takes packages from PyPI or your pip.conf's index"
}

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    install_packages
fi
missing=$(missing_packages)
[ -z "$missing" ] || echo "make test: not everything is here; on Debian, as root: apt-get install$missing" >&2
prepare_venv
prepare_node
if [ "$(id -u)" -eq 0 ]; then
    prepare_analyst
fi
