"""``python -m httpnas.access``: makes what the file of ``--auth`` needs, and explains its rules."""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

import argon2

from httpnas.access.admission import NEEDED
from httpnas.access.config import ConfigError, load
from httpnas.access.links import new_secret
from httpnas.access.rules import ANONYMOUS, Right, Rules
from httpnas.access.tokens import digest_of, new_token
from httpnas.fields.names import BadName, NameTooLong, check_name
from httpnas.files.job import Principal
from httpnas.files.points import Verb

#: Rights that a folder needs for all that is in it, by the verbs that take it along.
_THROUGHOUT = (Verb.MOVE, Verb.DELETE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what *arguments* say; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m httpnas.access", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    token = commands.add_parser("token", help="make a bearer token, and its table for the file")
    token.add_argument("name", help="the principal, as rules call it")
    token.add_argument("--days", type=int, default=365, help="until it expires; default: 365")
    token.set_defaults(run=_token)
    password = commands.add_parser("password", help="make a line for the file of passwords")
    password.add_argument("user")
    password.set_defaults(run=_password)
    key = commands.add_parser("link-key", help="make a key for links, as a table for the file")
    key.add_argument("id", help="letters, digits and -; each link has it")
    key.set_defaults(run=_link_key)
    check = commands.add_parser("check", help="say which rule decides, with its line")
    check.add_argument("file", help="the file of --auth")
    check.add_argument("principal", help=f"who would ask, such as {ANONYMOUS}")
    what = [*(verb.value for verb in Verb), *(right.value for right in Right)]
    check.add_argument("what", choices=sorted(set(what)), metavar="WHAT", help=", ".join(what))
    check.add_argument("name", help="of the file or folder, such as /team/a")
    check.add_argument("--group", action="append", default=[], help="that a token of it has")
    check.set_defaults(run=_check)
    given = parser.parse_args(arguments)
    status: int = given.run(given)
    return status


def _token(given: argparse.Namespace) -> int:
    token = new_token()
    expires = datetime.now(timezone.utc) + timedelta(days=given.days)
    print("The token, which is shown this once:", file=sys.stderr)
    print(token, flush=True)
    print("Its table for the file of --auth:", file=sys.stderr)
    print(
        f'\n[[token]]\nname = "{given.name}"\nsha256 = "{digest_of(token.encode()).hex()}"\n'
        f"expires = {expires:%Y-%m-%dT%H:%M:%SZ}"
    )
    return 0


def _password(given: argparse.Namespace) -> int:
    asked = sys.stdin.isatty()
    password = getpass.getpass() if asked else sys.stdin.readline().rstrip("\n")
    if not password:
        print("there is no password", file=sys.stderr)
        return 1
    print(f"{given.user}:{argon2.PasswordHasher(memory_cost=19 << 10, time_cost=2).hash(password)}")
    return 0


def _link_key(given: argparse.Namespace) -> int:
    print(f'[[link-key]]\nid = "{given.id}"\nsecret = "{new_secret()}"')
    return 0


def _check(given: argparse.Namespace) -> int:
    try:
        policy = load(given.file)
        name = check_name(given.name.encode())
    except (ConfigError, BadName, NameTooLong) as error:
        print(error, file=sys.stderr)
        return 2
    kind = ANONYMOUS if given.principal == ANONYMOUS else "any"
    principal = Principal(given.principal, kind, frozenset(given.group))
    subject = policy.subject(principal)
    verb = next((verb for verb in Verb if verb.value == given.what), None)
    rights = {Right(given.what): None} if given.what in list(Right) else {}
    for (needing, _), needed in NEEDED.items():
        rights |= dict.fromkeys(needed) if needing is verb else {}
    allowed = False
    for right in rights:
        print(f"{right.value} /{name.decode()}: {_told(subject.rules, given.file, right, name)}")
        allowed |= subject.rules.allow(right, name)
        if verb in _THROUGHOUT:
            for path in subject.rules.below(name):
                if not subject.rules.allow(right, path):
                    told = _told(subject.rules, given.file, right, path)
                    print(f"{right.value} /{path.decode()}: {told}, and a folder takes it along")
    return 0 if allowed else 1


def _told(rules: Rules, file: str, right: Right, name: bytes) -> str:
    rule = rules.decides(right, name)
    if rule is None:
        return "denied, as no rule is about it"
    return f"{'allowed' if right in rule.allow else 'denied'} by the rule at {file}:{rule.line}"


if __name__ == "__main__":
    sys.exit(main())
