"""Login of a request: the analyst's account behind it.

Only REMOTE_USER together with AUTH_TYPE is identity: the web server sets both and no client can (RFC 3875, 4.1.1 and
4.1.11). Values from clients have names that begin with HTTP_ and are never read here.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import re

from common.jsonstore import JsonStore, StoreError
from common.links import uid_of
from common.problem import Problem
from common.settings import PageSettings, without_case

# The AuthTypes of mod_auth_openidc, with which an address counts only when the provider says that it was verified.
OPENID = {"openid-connect", "oauth20", "auth-openidc"}
# Google verifies any address of any domain once, even if its owner leaves the domain later; `hd` names the organisation
# that the account belongs to ("OpenID Connect", "An ID token's payload").
GOOGLE = {"https://accounts.google.com", "accounts.google.com"}
FIRST_PERSON, NOBODY = 1000, 65534


def logged_in(environ: dict, settings: PageSettings) -> str:
    """The account of the login. Raises Problem (401, 403), StoreError where usernames.json is unusable."""
    kind, login = environ.get("AUTH_TYPE", ""), environ.get("REMOTE_USER", "")
    if not kind or not login:
        raise Problem(401, "You are not logged in. If you just were, reload the page; if this stays, ask the "
                           "administrator whether the web server asks for a login on this address.")
    login = login.encode("latin-1", "replace").decode("utf-8", "replace")  # PEP 3333: bytes, spelt as latin-1
    if "@" in login:
        login = without_case(login)
        _require_verified(environ, kind)
        if _domain(login) in settings.domains:
            _require_organisation(environ, kind, settings.domains)
    return _analyst(_account_name(login, settings), settings.group)


def uid_of_login(user: str) -> int:
    """The uid of an account that `logged_in` has found. Raises Problem (503) where its directory is away now."""
    uid = uid_of(user)
    if uid is None:
        raise Problem(503, "Your account cannot be looked up just now. Try again in a minute.", {"Retry-After": "10"})
    return uid


def _domain(address: str) -> str:
    return address.rpartition("@")[2]


def _require_verified(environ: dict, kind: str) -> None:
    """Require `email_verified` (OpenID Connect Core, 5.1). A provider may leave it out for an unverified address."""
    verified = environ.get("OIDC_CLAIM_email_verified")
    if verified is None and kind.lower() not in OPENID:
        return
    if (verified or "").lower() not in ("1", "true"):
        raise Problem(403, "Your login provider does not say that your e-mail address was verified. Verify it there "
                           "and log in again.")


def _require_organisation(environ: dict, kind: str, domains: set[str]) -> None:
    """Raise Problem unless the account belongs to one of `domains`, if its provider tells organisations apart."""
    issuer, organisation = environ.get("OIDC_CLAIM_iss"), environ.get("OIDC_CLAIM_hd")
    if not issuer and kind.lower() in OPENID:
        raise Problem(403, "The web server does not say which provider has logged you in. Ask the administrator to "
                           "pass the claims iss and hd on, as docs/link_page.md says.")
    if (organisation is not None or issuer in GOOGLE) and without_case(organisation or "") not in domains:
        raise Problem(403, "Your login provider does not say that this account is your organisation's own. Log in with "
                           "the account that the organisation gave you; if you did, ask the administrator to add the "
                           "organisation's first domain to NOTIFY_SSO_DOMAINS.")


def _account_name(login: str, settings: PageSettings) -> str:
    exceptions = _exceptions(settings)
    if without_case(login) in exceptions:
        return exceptions[without_case(login)]
    if "@" not in login:
        return login
    if _domain(login) in settings.domains:
        return login.rpartition("@")[0]
    raise Problem(403, "Your login is of a domain that has no accounts here. Ask the administrator to add the domain "
                       "to NOTIFY_SSO_DOMAINS, or your login to /etc/notify-bot/usernames.json.")


def _exceptions(settings: PageSettings) -> dict:
    """The accounts of usernames.json by their logins without case. Raises StoreError."""
    spelt: dict[str, str] = {}
    document = JsonStore(settings.usernames).read()
    for login in document:
        other = spelt.setdefault(without_case(login), login)
        if other != login:
            raise StoreError(f"{settings.usernames} has one login in two spellings, {json.dumps(other)} and "
                             f"{json.dumps(login)}: nobody is let in until one of the two is taken out")
    return {key: document[login] for key, login in spelt.items()}


def _analyst(name, group: str) -> str:
    """The analyst's account of that name, as the system spells it. Raises Problem where there is none."""
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
