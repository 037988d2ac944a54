#!/bin/sh
# Installs or uninstalls, for the Makefile: install.sh install|uninstall, with PREFIX and DESTDIR in the environment.
# Identical files are left alone; only units that changed are restarted.
set -eu
umask 022
PATH=$PATH:/usr/sbin:/sbin
cd "$(dirname -- "$0")"

: "${PREFIX:=/usr/local}" "${DESTDIR:=}"
lib=$DESTDIR$PREFIX/lib
modules=$lib/notify-bot
bin=$DESTDIR$PREFIX/bin
sbin=$DESTDIR$PREFIX/sbin
doc=$DESTDIR$PREFIX/share/doc/notify-bot
config=$DESTDIR/etc/notify-bot
guide=$DESTDIR/data/docs/notifications.md
commands="notify-runner notify-scripts"
for_everybody="notify-runner.timer notify-runner-folders.service"
# From notify-add-analyst: one file for each analyst, with the uid and the owner of linger, ours or theirs.
analysts=/var/lib/notify-bot/analysts

work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
: >"$work/changed"

on_this_machine() {
    [ -z "$DESTDIR" ] && [ -d /run/systemd/system ] && [ "$(id -u)" -eq 0 ]
}

rewritten() { # rewritten SOURCE: its text, with PREFIX in place of the default
    sed "s,/usr/local/,$PREFIX/,g" "$1"
}

put() { # put MODE SOURCE TARGET
    rewritten "$2" >"$work/file"
    put_bytes "$1" "$work/file" "$3"
}

put_bytes() { # put_bytes MODE SOURCE TARGET
    install -d -- "$(dirname -- "$3")"
    # -C leaves an identical file alone and -v speaks only of the others.
    if [ -n "$(install -C -v -m "$1" -- "$2" "$3")" ]; then
        echo "$3" >>"$work/changed"
        echo "installed $3"
    fi
}

put_link() { # put_link DESTINATION TARGET
    install -d -- "$(dirname -- "$2")"
    [ "$(readlink -- "$2" || true)" = "$1" ] || { ln -sfn -- "$1" "$2"; echo "installed $2"; }
}

put_once() { # put_once MODE SOURCE TARGET: a file that belongs to the administrator once it exists
    if [ ! -e "$3" ]; then
        put "$@"
        return
    fi
    rewritten "$2" | cmp -s - "$3" || echo "kept $3, which differs from the one of this version"
}

changed() { # changed PATTERN
    grep -q -- "$1" "$work/changed"
}

modules_of_this_version() {
    printf '%s\n' VERSION notify_bot.py notify_runner.py notify_scripts.py webapp_telegram.py
    find bot common runner webapp -type f ! -name '*.pyc'
}

remove_old_files() { # remove_old_files FOLDER: files below it whose names are not on standard input
    [ -d "$1" ] || return 0
    cat >"$work/wanted"
    find "$1" -type f -printf '%P\n' | while read -r name; do
        # Bytecode goes with its module.
        if ! printf '%s\n' "$name" | sed 's,__pycache__/\([^/.]*\)[^/]*\.pyc$,\1.py,' | grep -qxFf "$work/wanted"; then
            rm -f -- "$1/$name"
            echo "$1/$name" >>"$work/changed"
            [ "${name%.pyc}" != "$name" ] || echo "removed $1/$name"
        fi
    done
    find "$1" -mindepth 1 -depth -type d -empty -delete
}

install_files() {
    modules_of_this_version | remove_old_files "$modules"
    printf '%s\n' examples/*.* examples/web/* | remove_old_files "$doc"
    for file in $(modules_of_this_version); do
        mode=644
        [ "$(head -c 2 "$file" | tr -d '\0')" = '#!' ] && mode=755
        put_bytes "$mode" "$file" "$modules/$file"
    done
    # With the python that will run them; an account without write access could never cache this itself.
    /usr/bin/python3 -m compileall -q ${DESTDIR:+-s "$DESTDIR"} "$modules"
    for name in $commands; do
        put_link "../lib/notify-bot/$(echo "$name" | tr - _).py" "$bin/$name"
    done
    put_bytes 755 bin/notify-add-analyst "$sbin/notify-add-analyst"
    put_link ../lib/notify-bot/notify_bot.py "$sbin/notify-bot"
    for unit in units/system/* units/user/*; do
        put 644 "$unit" "$lib/systemd/${unit#units/}"
    done
    put 644 units/sysusers.d/notify-bot.conf "$lib/sysusers.d/notify-bot.conf"
    put 644 units/tmpfiles.d/notify-bot.conf "$lib/tmpfiles.d/notify-bot.conf"
    for page in man/*.[18]; do
        put 644 "$page" "$DESTDIR$PREFIX/share/man/man${page##*.}/${page#man/}"
    done
    for file in examples/*.* examples/web/*; do
        put 644 "$file" "$doc/$file"
    done
    put 644 docs/notifications.md "$guide"
    # Without this check a mistake of ours would lock everybody out of sudo.
    command -v visudo >/dev/null && visudo -q -c -f units/sudoers.d/notify-bot
    put_once 440 units/sudoers.d/notify-bot "$DESTDIR/etc/sudoers.d/notify-bot"
    # 600: an administrator may write the token into it.
    put_once 600 units/notify-bot.env "$config/notify-bot.env"
}

activate() {
    # It writes in /etc even when all of them exist.
    if changed /sysusers.d/ || ! getent passwd deploy >/dev/null ||
        ! getent group deploy dataread data-ops >/dev/null; then
        systemd-sysusers notify-bot.conf
    fi
    systemd-tmpfiles --create notify-bot.conf
    if changed /systemd/; then
        systemctl daemon-reload
        # HUP is daemon-reload for the managers of users, systemd(1); there may be none.
        systemctl kill --kill-whom=main --signal=HUP 'user@*.service' 2>/dev/null || true
    fi
    if [ -n "$first" ] || changed /systemd/user/; then
        # For everybody, and each unit is for members of dataread alone: nothing is enabled in anybody's home.
        # shellcheck disable=SC2086 # words
        systemctl --global --quiet enable $for_everybody
    fi
    if [ -n "$first" ]; then
        systemctl --quiet enable notify-bot.socket notify-bot-web.socket notify-bot.service
        systemctl start notify-bot.socket notify-bot-web.socket
        each_analyst switch_on
    else
        update
    fi
    if changed notify-scripts@.socket; then
        systemctl try-restart 'notify-scripts@*.socket'
    fi
    if changed notify-bot-web-cgi; then
        systemctl try-restart notify-bot-web-cgi.socket notify-bot-web-cgi.service
    fi
}

update() {
    [ -z "$first_web" ] || systemctl --quiet enable notify-bot-web.socket
    if changed notify-bot-web.socket; then
        # It cannot start beside the running service, whose restart brings it back.
        systemctl stop notify-bot-web.socket
    fi
    if changed notify-bot.socket; then
        systemctl try-restart notify-bot.socket
    elif changed /lib/notify-bot/ || changed notify-bot.service || changed notify-bot-web.socket; then
        systemctl try-restart notify-bot.service
    fi
}

next_steps() {
    cat <<END

Installed. What is left to do:
  1. put the token that @BotFather gave you into /etc/notify-bot/telegram-bot-token:
       install -m 600 /dev/stdin /etc/notify-bot/telegram-bot-token     (paste it, then Ctrl-D)
  2. systemctl restart notify-bot.service && systemctl status notify-bot.service
  3. for each analyst: notify-add-analyst USER
END
    on_this_machine || return 0
    for user in $(getent group dataread | cut -d: -f4 | tr , ' '); do
        [ -e "$analysts/$user" ] ||
            echo "       notify-add-analyst $user     (a member of dataread whose scripts do not run)"
    done
}

do_install() {
    first=
    [ -e "$lib/systemd/system/notify-bot.service" ] || first=yes
    first_web=
    [ -e "$lib/systemd/system/notify-bot-web.socket" ] || first_web=yes
    install_files
    if on_this_machine; then
        activate
    fi
    if [ -n "$first" ]; then
        next_steps
    elif [ ! -s "$work/changed" ]; then
        echo "nothing to do: this version is installed already"
    fi
}

instances() { # the analysts whose socket is enabled
    for link in /etc/systemd/system/sockets.target.wants/notify-scripts@*.socket; do
        [ -L "$link" ] || continue
        name=${link##*/notify-scripts@}
        echo "${name%.socket}"
    done
}

each_analyst() { # each_analyst FUNCTION: called with user, uid and linger of each added analyst
    for file in "$analysts"/*; do
        [ -f "$file" ] || continue
        user=${file##*/}
        read -r uid linger <"$file"
        if [ "$(timeout 10 id -u -- "$user" 2>/dev/null)" = "$uid" ]; then
            "$1"
        else
            echo "left out $user: there is no such account with the uid $uid"
        fi
    done
}

ask_manager() { # ask_manager ARGUMENT...: of systemctl --user
    # Bounded, since its owner may have stopped it; and without root's terminal, since a process of theirs answers.
    timeout --kill-after=1 10 systemctl --user --machine="$user@" "$@" </dev/null >/dev/null 2>&1
}

switch_on() {
    id -nG -- "$user" | tr ' ' '\n' | grep -qx dataread || return 0
    [ "$linger" = theirs ] || timeout 10 loginctl enable-linger "$user" ||
        echo "$user has no linger: loginctl enable-linger $user"
    if systemctl --quiet is-active "user@$uid.service"; then
        # It has read neither the units nor that they are enabled; timers of single scripts come with the target.
        ask_manager daemon-reload && ask_manager start notify-runner-folders.service timers.target ||
            echo "the manager of $user does not answer; after its next start the scripts run again"
    fi
    systemctl --quiet enable --now "notify-scripts@$user.socket"
    echo "switched on again for $user"
}

switch_off() {
    if systemctl --quiet is-active "user@$uid.service" &&
        ! ask_manager stop 'notify-runner*.timer' 'notify-runner*.service'; then
        # It ends its services by force after two minutes.
        [ "$linger" = ours ] || systemctl --no-block try-restart "user@$uid.service"
        echo "the manager of $user does not answer; it is restarted"
    fi
    [ "$linger" = theirs ] || timeout 10 loginctl disable-linger "$user" ||
        echo "$user has linger still: loginctl disable-linger $user"
    echo "switched off for $user; another installation switches it on again"
}

deactivate() {
    for user in $(instances); do
        systemctl --quiet disable --now "notify-scripts@$user.socket"
        systemctl stop "notify-scripts@$user.service"
    done
    # shellcheck disable=SC2086 # words
    systemctl --global --quiet disable $for_everybody || true
    each_analyst switch_off
    if [ -e "$lib/systemd/system/notify-bot.service" ]; then
        systemctl --quiet disable --now notify-bot.service notify-bot.socket notify-bot-web.socket
        systemctl --quiet disable --now notify-bot-web-cgi.socket notify-bot-web-cgi.service
    fi
}

do_uninstall() {
    if on_this_machine; then
        deactivate
    fi
    for name in $commands; do
        rm -f -- "$bin/$name"
    done
    rm -f -- "$sbin/notify-add-analyst" "$sbin/notify-bot" "$guide" "$lib/sysusers.d/notify-bot.conf" "$lib/tmpfiles.d/notify-bot.conf"
    for unit in units/system/* units/user/*; do
        rm -f -- "$lib/systemd/${unit#units/}"
    done
    for page in man/*.[18]; do
        rm -f -- "$DESTDIR$PREFIX/share/man/man${page##*.}/${page#man/}"
    done
    rm -rf -- "$modules" "$doc"
    # A privilege, unlike the settings, goes with the program, unless an administrator edited it.
    sudoers=$DESTDIR/etc/sudoers.d/notify-bot
    if rewritten units/sudoers.d/notify-bot | cmp -s - "$sudoers"; then
        rm -f -- "$sudoers"
    fi
    if on_this_machine; then
        systemctl daemon-reload
        systemctl kill --kill-whom=main --signal=HUP 'user@*.service' 2>/dev/null || true
    fi
    echo "Uninstalled. Kept: /etc/notify-bot (settings, token), /data/notifications and /data/notify-bot (links,"
    echo "messages), /var/lib/notify-bot (the list of the analysts), the accounts and groups, a sudo rule that was edited,"
    echo "and everybody's scripts."
}

case ${1-} in
    install) do_install ;;
    uninstall) do_uninstall ;;
    *) echo "usage: install.sh install|uninstall" >&2; exit 64 ;;
esac
