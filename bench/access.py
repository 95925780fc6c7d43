"""What it costs to find out who asks: a GET of 4 KiB without --auth, and with each scheme.

Rounds of all of them alternate, so that what else the machine does meets all alike. Times are those
of the daemon's processor, and of the client's clock.
"""

from __future__ import annotations

import base64
import http.client
import json
import statistics
import tempfile
import time
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.access import files
from tests.harness import Twistd, twistd

ROUNDS, REQUESTS = 30, 200


def processor_seconds(daemon: Twistd) -> float:
    """Return the processor time that *daemon* has taken."""
    fields = Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def configure(folder: Path) -> dict[str, str]:
    """Write a file of --auth; return the value of Authorization for each scheme."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = json.loads(jwt.get_algorithm_by_name("RS256").to_jwk(key.public_key()))
    (folder / "jwks").write_text(json.dumps({"keys": [{**public, "kid": "k"}]}))
    issuer = '[[issuer]]\nname = "c"\nkind = "kubernetes"\nissuer = "c"\nkeys = "jwks"\n'
    principals = ("anonymous", "alice", "ci", "team:loader")
    more = [files.rule(f"other{n}", "/", ["read"]) for n in range(50)]
    rules = [files.rule(who, "/d", ["read", "sign"]) for who in principals]
    files.write(folder, files.link_key("k"), files.token("ci"), issuer, *more, *rules)
    now = int(time.time())
    claims = {"iss": "c", "aud": "httpnas", "sub": "system:serviceaccount:team:loader"}
    times = {"iat": now, "nbf": now, "exp": now + 3600}
    token = jwt.encode({**claims, **times}, key, "RS256", headers={"kid": "k"})
    basic = base64.b64encode(b"alice:secret").decode()
    return {
        "Basic": f"Basic {basic}",
        "token": f"Bearer {files.token_of('ci')}",
        "JWT": f"Bearer {token}",
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        credentials = configure(folder)
        (folder / "root" / "d").mkdir(parents=True)
        (folder / "root" / "d" / "f").write_bytes(b"x" * 4096)
        auth = f"--auth={folder}/auth.toml"
        with twistd(folder / "root") as without, twistd(folder / "root", auth) as asking:
            plain, asked = (
                http.client.HTTPConnection("127.0.0.1", d.port) for d in (without, asking)
            )
            wish = json.dumps({"method": "GET", "path": "d/f", "seconds": 3600})
            asked.request("POST", "/links", wish, {"Authorization": credentials["token"]})
            link = json.loads(asked.getresponse().read())["url"]
            ways = {
                "no --auth": (without, plain, "/file/d/f", ""),
                "anonymous": (asking, asked, "/file/d/f", ""),
                **{way: (asking, asked, "/file/d/f", value) for way, value in credentials.items()},
                "link": (asking, asked, link, ""),
            }
            clock: dict[str, list[float]] = {way: [] for way in ways}
            processor = dict.fromkeys(ways, 0.0)
            for number in range(ROUNDS + 1):
                for way, (daemon, connection, path, value) in ways.items():
                    headers = {"Authorization": value} if value else {}
                    used, began = processor_seconds(daemon), time.perf_counter()
                    for _ in range(REQUESTS):
                        connection.request("GET", path, headers=headers)
                        answer = connection.getresponse()
                        assert (answer.status, len(answer.read())) == (200, 4096), way
                    if number:  # the first one warms up
                        clock[way].append((time.perf_counter() - began) / REQUESTS)
                        processor[way] += processor_seconds(daemon) - used
        base = statistics.median(clock["no --auth"]), processor["no --auth"]
        for way in ways:
            median, used = statistics.median(clock[way]), processor[way]
            print(
                f"{way:10} {median * 1e6:6.0f} us ({median / base[0] - 1:+.1%})   processor "
                f"{used / ROUNDS / REQUESTS * 1e6:6.0f} us ({used / base[1] - 1:+.1%})"
            )


if __name__ == "__main__":
    main()
