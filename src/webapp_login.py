"""Who is logged in, and whether they are an analyst here.

Only REMOTE_USER together with AUTH_TYPE says who: the web server sets both and no client can (RFC 3875, 4.1.1 and
4.1.11). What clients send arrives in names that begin with HTTP_, which nobody here reads.
"""

from __future__ import annotations

import grp
import os
import pwd
import re

from jsonstore import JsonStore
from webapp_request import Problem, Settings

# The AuthTypes of mod_auth_openidc, with which an address counts only when the provider says that it was verified.
OPENID = {"openid-connect", "oauth20", "auth-openidc"}
FIRST_PERSON, NOBODY = 1000, 65534


def logged_in(environ: dict, settings: Settings) -> str:
    """The account of whoever is logged in. Raises Problem (401, 403), StoreError where usernames.json is unusable."""
    kind, login = environ.get("AUTH_TYPE", ""), environ.get("REMOTE_USER", "")
    if not kind or not login:
        raise Problem(401, "You are not logged in. If you just were, reload the page; if this stays, ask the "
                           "administrator whether the web server asks for a login on this address.")
    login = login.encode("latin-1", "replace").decode("utf-8", "replace")  # PEP 3333: bytes, spelt as latin-1
    if "@" in login:
        _require_verified(environ, kind)
    return _analyst(_account_name(login, settings), settings.group)


def _require_verified(environ: dict, kind: str) -> None:
    """`email_verified` of OpenID Connect Core, 5.1; a provider may leave it out for who merely says so."""
    verified = environ.get("OIDC_CLAIM_email_verified")
    if verified is None and kind.lower() not in OPENID:
        return
    if (verified or "").lower() not in ("1", "true"):
        raise Problem(403, "Your login provider does not say that your e-mail address was verified. Verify it there "
                           "and log in again.")


def _account_name(login: str, settings: Settings) -> str:
    name = JsonStore(settings.usernames).read().get(_spelt(login), login)
    if name != login or "@" not in login:
        return name
    local, _, domain = login.rpartition("@")
    # str.lower makes a plain k of the Kelvin sign, so what is not ASCII is no domain of ours.
    if domain.isascii() and domain.lower() in settings.domains:
        return local
    raise Problem(403, "Your login is of a domain that has no accounts here. Ask the administrator to add the domain "
                       "to NOTIFY_SSO_DOMAINS, or your login to /etc/notify-bot/usernames.json.")


def _spelt(login: str) -> str:
    """As usernames.json writes it: the domain, which does not know upper case, in lower case."""
    local, at, domain = login.rpartition("@")
    return local + at + (domain.lower() if domain.isascii() else domain) if at else login


def _analyst(name, group: str) -> str:
    """The account of that name as the system spells it. Raises Problem where it is none, or not an analyst's."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", name):
        raise Problem(403, "Your login is not the name of an account here. Ask the administrator to map it in "
                           "/etc/notify-bot/usernames.json.")
    advice = f"Ask the administrator to run: notify-add-analyst {name}"
    try:
        account = pwd.getpwnam(name)
        members = grp.getgrnam(group).gr_gid
    except KeyError:
        raise Problem(403, f"There is no account {name} for notifications on this server. {advice}") from None
    if account.pw_uid < FIRST_PERSON or account.pw_uid == NOBODY:
        raise Problem(403, f"{name} is an account of the system and not a person's.")
    if members not in os.getgrouplist(account.pw_name, account.pw_gid):
        raise Problem(403, f"{name} is not set up for notifications on this server. {advice}")
    return account.pw_name
