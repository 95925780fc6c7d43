"""httpnas beside nginx (its DAV module), in one run on one machine, as ratios.

``python bench/transfers.py [MIB] [ROUNDS]`` needs Debian's ``nginx-light``, ``wrk`` and ``curl``.
Both servers write below one folder, neither syncs, and rounds alternate. What counts are the
ratios of the medians: absolute figures are those of a shared machine.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.harness import connect, twistd, wait_until  # noqa: E402

PORT = 3198
NGINX = """
daemon off; user root; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  access_log off; client_max_body_size 0; sendfile on; keepalive_requests 1000000;
  client_body_temp_path {folder}/tmp;
  server {{
    listen 127.0.0.1:{port}; root {folder}/root;
    dav_methods PUT; create_full_put_path on;
  }}
}}
"""


def listening() -> bool:
    try:
        connect(PORT).close()
    except ConnectionRefusedError:
        return False
    return True


def seconds(command: str) -> float:
    began = time.monotonic()
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], check=True, stdout=subprocess.DEVNULL
    )
    return time.monotonic() - began


def per_second(url: str) -> float:
    shown = subprocess.run(
        ["wrk", "-t1", "-c8", "-d2s", url], check=True, capture_output=True, text=True
    ).stdout
    line = next(line for line in shown.splitlines() if line.startswith("Requests/sec"))
    return float(line.split()[1])


def main(mib: int, rounds: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="httpnas-bench-", dir=ROOT))
    source = folder / "source"
    with source.open("wb") as out:
        subprocess.run(["head", "-c", str(mib << 20), "/dev/urandom"], stdout=out, check=True)
    (folder / "root").mkdir(mode=0o777)
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=PORT))
    nginx = subprocess.Popen(["nginx", "-c", str(config)])
    try:
        wait_until(listening)
        with twistd(folder / "nas", "--durability=none") as nas:
            ours, theirs = f"{nas.url}/file", f"http://127.0.0.1:{PORT}"
            compare(ours, theirs, source, rounds)
    finally:
        nginx.terminate()
        nginx.wait()
        shutil.rmtree(folder)


def compare(ours: str, theirs: str, source: Path, rounds: int) -> None:
    size = source.stat().st_size / (1 << 20)
    post, put = "curl -sSf -X POST", "curl -sSf"

    def upload(curl: str, url: str, body: str) -> Callable[[], float]:
        return lambda: size / seconds(f"{curl} -T {body} {url}/big")

    def download(url: str) -> Callable[[], float]:
        return lambda: size / seconds(f"curl -sSf -o /dev/null {url}/big")

    small = source.with_name("small")
    small.write_bytes(bytes(4096))
    seconds(f"{post} -T {small} {ours}/small; {put} -T {small} {theirs}/small")
    pairs: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        "upload, MiB/s": (upload(post, ours, str(source)), upload(put, theirs, str(source))),
        "upload, chunked": (
            upload(f"cat {source} | {post}", ours, "-"),
            upload(f"cat {source} | {put}", theirs, "-"),
        ),
        "download, MiB/s": (download(ours), download(theirs)),
        "4 KiB GET, 1/s": (
            lambda: per_second(f"{ours}/small"),
            lambda: per_second(f"{theirs}/small"),
        ),
    }
    print(f"{'':18}{'httpnas':>10}{'nginx':>10}{'ratio':>8}   (medians of {rounds})")
    for what, (one, other) in pairs.items():
        results = [(one(), other()) for _ in range(rounds)]
        mine, peer = (statistics.median(column) for column in zip(*results, strict=True))
        print(f"{what:18}{mine:10.0f}{peer:10.0f}{mine / peer:8.2f}", flush=True)


if __name__ == "__main__":
    main(*(int(argument) for argument in [*sys.argv[1:], "512", "5"][:2]))
