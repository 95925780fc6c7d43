"""A real CephFS on this machine: a monitor, a manager, an OSD and an MDS, mounted several times.

Each mount is a client of its own, as that of another host would be. Everything lies in one folder,
listens on loopback only, asks for no keys, and is gone at the end: it is for tests. All processes
are children in the foreground, and the kernel kills them should this process die.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

#: Seconds after which waiting for Ceph is given up; a restarted MDS needs most of it.
PATIENCE = 60.0
#: The Debian package of each program.
PACKAGES = {
    "ceph": "ceph-common",
    "ceph-fuse": "ceph-fuse",
    "ceph-mds": "ceph-mds",
    "ceph-mgr": "ceph-mgr",
    "ceph-mon": "ceph-mon",
    "ceph-osd": "ceph-osd",
    "fusermount3": "fuse3",
    "setpriv": "util-linux",
}
#: What a client keeps in its memory. ``none``: no content, so that mounts never disagree.
#: ``client``: ceph-fuse buffers, the kernel does not. ``full``: ceph-fuse's default, with the
#: kernel's page cache, which is not told when another mount writes into the same file.
CACHES = {
    "none": {"fuse_disable_pagecache": "true", "client_oc": "false"},
    "client": {"fuse_disable_pagecache": "true"},
    "full": {},
}
# Longer than 107 bytes the path of a UNIX socket can not be.
_LONGEST_FOLDER = 80

_CONFIGURATION = """\
[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{port}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
admin_socket = {folder}/run/$name.asok
log_file = {folder}/log/$name.log
crash_dir = {folder}/crash
run_dir = {folder}/run
mon_cluster_log_file = {folder}/log/cluster.log
mon_data = {folder}/mon.a
mgr_data = {folder}/mgr.x
osd_data = {folder}/osd.0
mds_data = {folder}/mds.a
# One copy of everything is enough, and the monitor need not worry about it.
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true

[mon]
public_addr = v2:127.0.0.1:{port}
paxos_propose_interval = 0.05
mon_data_avail_crit = 1
# An OSD without any space at all crashes, so that it is called full when it is half full.
mon_osd_full_ratio = 0.5
mon_osd_backfillfull_ratio = 0.48
mon_osd_nearfull_ratio = 0.45

[mgr]
# It is there for the figures of statvfs only.
mgr_initial_modules =
mgr_stats_period = 1

[osd]
osd_objectstore = bluestore
bluestore_block_size = {store}
bluestore_cache_autotune = false
bluestore_cache_size = 67108864
osd_class_update_on_start = false
# How soon it is noticed that there is no space left, or some again.
osd_heartbeat_interval = 1

[mds]
mds_tick_interval = {mds_tick}
mds_beacon_interval = 1
mds_cache_memory_limit = 134217728
# Seconds that a restarted MDS waits for clients that are gone.
mds_reconnect_timeout = 5

[client]
log_file =
# The check writes, for which a full pool would let a new client wait for ever.
client_check_pool_perm = false
"""


def missing() -> str | None:
    """Return why there can be no CephFS here, or None if there can."""
    if os.geteuid() != 0:
        return "only root can mount CephFS"
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse"
    packages = sorted({p for program, p in PACKAGES.items() if not shutil.which(program)})
    return f"Debian packages not installed: {' '.join(packages)}" if packages else None


class Cluster:
    """A file system of its own, for as long as the block.

    :param folder: where everything of it lies; it is made here, and its path must be short.
    :param session_timeout: seconds after which a client that says nothing is evicted; Ceph
        takes no less than 30.
    :param mds_tick: seconds between two flushes of the MDS's journal. With Ceph's own 5, clients
        that contend may wait for each other as long.
    :param size: bytes that can be stored.
    """

    def __init__(
        self,
        folder: Path,
        *,
        session_timeout: int = 30,
        mds_tick: float = 0.1,
        size: int = 8 << 30,
    ) -> None:
        assert len(str(folder)) <= _LONGEST_FOLDER, f"too long for UNIX sockets: {folder}"
        self.folder = folder
        self.mounts: dict[str, Mount] = {}
        self._configuration = folder / "ceph.conf"
        self._session_timeout = session_timeout
        self._settings = {"mds_tick": mds_tick, "store": 2 * size}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        # The kernel kills children with the thread that has started them: it has to be one that
        # lives as long as they may.
        self._starter = ThreadPoolExecutor(1)

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmount and kill all."""
        for name in [*self.mounts, *reversed(self._processes)]:
            self.kill(name)
        for mount in self.mounts.values():
            mount.clear()
        self._starter.shutdown()

    # Starting

    def _start(self) -> None:
        for name in ("run", "log", "crash", "mnt", "mon.a", "mgr.x", "osd.0", "mds.a"):
            (self.folder / name).mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = {"folder": self.folder, "port": port, "fsid": uuid.uuid4(), **self._settings}
        self._configuration.write_text(_CONFIGURATION.format(**settings))
        self._make("mon", "a")
        self.restart("mon")
        self.restart("mgr")
        osd = str(uuid.uuid4())
        self._order(
            f"osd new {osd} 0",
            "osd pool create meta",
            "osd pool create data",
            "fs new cephfs meta data",
            f"fs set cephfs session_timeout {self._session_timeout}",
            f"fs set cephfs session_autoclose {self._session_timeout}",
        )
        self.restart("mds")
        self._make("osd", "0", f"--osd-uuid={osd}")
        self.restart("osd")
        self.await_daemon("osd")
        self.await_daemon("mds")

    def _make(self, kind: str, identity: str, *arguments: str) -> None:
        """Let a daemon make its data folder."""
        command: list[str | Path] = [f"ceph-{kind}", "-c", self._configuration, "--mkfs"]
        command += ["-i", identity, *arguments]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        assert made.returncode == 0, f"ceph-{kind} --mkfs: {made.stderr[-2000:]}"

    def _order(self, *commands: str) -> None:
        """Give the monitor several commands at once; starting ``ceph`` takes most of a second."""
        done = subprocess.run(
            ["ceph", "-c", self._configuration],
            input="\n".join(commands),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert "Error" not in done.stderr, done.stderr

    def start(self, name: str, program: str, *arguments: str | Path) -> None:
        """Start *program* as *name*; it ends with us."""
        self.socket_of(name).unlink(missing_ok=True)
        with self.output_of(name).open("ab") as output:
            command: list[str | Path] = ["setpriv", "--pdeathsig", "KILL", program, "-f"]
            command += ["-c", self._configuration, f"--admin-socket={self.socket_of(name)}"]
            command += arguments
            call = self._starter.submit(
                lambda: subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
                )
            )
            self._processes[name] = call.result()

    def restart(self, name: str) -> None:
        """Start the daemon *name*: ``mon``, ``mgr``, ``osd`` or ``mds``; it may take some time."""
        identity = {"mon": "a", "mgr": "x", "osd": "0", "mds": "a"}[name]
        self.start(name, f"ceph-{name}", "-i", identity)

    def await_daemon(self, name: str) -> None:
        """Wait until the OSD or MDS serves."""
        wanted = {"osd": "active", "mds": "up:active"}[name]
        self.wait(lambda: self.tell(name, "status")["state"] == wanted, name, f"be {wanted}")

    def wait(self, condition: Callable[[], bool], name: str, what: str) -> None:
        """Poll until *condition* holds, which may need what *name* can not tell yet."""
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError, KeyError, ValueError):
                if condition():
                    return
            process = self._processes[name]
            if process.poll() is not None:
                raise AssertionError(
                    f"{name} ended, status {process.returncode}: {self.said(name)}"
                )
            if time.monotonic() > deadline:
                raise AssertionError(f"{name} did not {what}: {self.said(name)}")
            time.sleep(0.02)

    def said(self, name: str) -> str:
        """Return the end of what *name* has written."""
        logs = [self.output_of(name), *(self.folder / "log").glob(f"{name}.*.log")]
        return "\n".join(log.read_text(errors="replace")[-2000:] for log in logs if log.exists())

    # Daemons

    def process(self, name: str) -> subprocess.Popen[bytes]:
        return self._processes[name]

    def kill(self, name: str) -> None:
        """Send SIGKILL to the daemon or mount *name*; returns when nothing is left of it."""
        process = self._processes.get(name)
        if process is not None:
            process.kill()
            process.wait(PATIENCE)

    def output_of(self, name: str) -> Path:
        return self.folder / "log" / f"{name}.out"

    def socket_of(self, name: str) -> Path:
        return self.folder / "run" / f"{name}.asok"

    # Questions

    def ask(self, *command: str) -> Any:
        """Return the monitor's answer to a command of ``ceph``."""
        done = subprocess.run(
            ["ceph", "-c", self._configuration, "-f", "json", *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"ceph {' '.join(command)}: {done.stderr}"
        return json.loads(done.stdout) if done.stdout.strip() else {}

    def tell(self, name: str, command: str, **arguments: Any) -> Any:
        """Return the answer of a daemon or mount itself, from its admin socket."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(self.socket_of(name)))
            request = {"prefix": command, "format": "json", **arguments}
            connection.sendall(json.dumps(request).encode() + b"\0")
            with connection.makefile("rb") as stream:
                length = int.from_bytes(stream.read(4), "big")
                answer = stream.read(length)
        return json.loads(answer) if answer.strip() else {}

    def performance(self, name: str) -> dict[str, dict[str, Any]]:
        """Return the counters of a daemon or mount, by what they are about."""
        counters: dict[str, dict[str, Any]] = self.tell(name, "perf dump")
        return counters

    # The file system

    def mount(self, name: str, cache: str = "none", **options: str) -> Mount:
        """Mount the file system once more.

        :param cache: one of :data:`CACHES`.
        :param options: of the client, as in a Ceph configuration.
        """
        mount = Mount(self, name, {**CACHES[cache], **options})
        self.mounts[name] = mount
        mount.start()
        return mount

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Let there be no space for content as long as the block, as every mount has noticed.

        Names and their attributes are kept elsewhere, and can still be changed.
        """
        self._allow(1)
        try:
            yield
        finally:
            self._allow(0)

    def _allow(self, most: int) -> None:
        """Set a quota, which takes Ceph some seconds to notice; 0: there is none."""
        self.ask("osd", "pool", "set-quota", "data", "max_bytes", str(most))

        def noticed(mount: Mount) -> bool:
            return mount.is_full() == bool(most)

        for mount in self.mounts.values():
            what = "find no space" if most else "find space"
            self.wait(partial(noticed, mount), mount.name, what)


class Mount:
    """One client of the file system; made by :meth:`Cluster.mount`.

    :ivar path: where it is mounted.
    """

    def __init__(self, cluster: Cluster, name: str, options: dict[str, str]) -> None:
        self.name = name
        self.path = cluster.folder / "mnt" / name
        self.path.mkdir()
        self._cluster = cluster
        self._options = [f"--{option}={value}" for option, value in options.items()]

    def start(self) -> None:
        self._cluster.start(self.name, "ceph-fuse", *self._options, self.path)
        # Until the manager has heard of the OSD's size it is 0, and then nothing fits.
        self._cluster.wait(
            lambda: self.is_mounted() and os.statvfs(self.path).f_blocks > 0, self.name, "mount"
        )

    def is_mounted(self) -> bool:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        return any(line.split()[4] == str(self.path) for line in mounts)

    def client(self) -> int:
        """Return the number under which the MDS knows it."""
        number: int = self._cluster.tell(self.name, "mds_sessions")["id"]
        return number

    def is_full(self) -> bool:
        """Tell whether nothing can be written."""
        try:
            (self.path / f"full-{self.name}").write_bytes(b"?")  # closing it writes it
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return True
        return False

    def evict(self) -> None:
        """Let the MDS take everything from it at once; from then on it is of no use."""
        self._cluster.tell("mds", "client evict", filters=[f"id={self.client()}"])

    def kill(self) -> None:
        """Send SIGKILL: what it held is held until the MDS evicts it."""
        self._cluster.kill(self.name)

    def freeze(self) -> None:
        """Let it stand still, so that everybody who asks it waits."""
        self._cluster.process(self.name).send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._cluster.process(self.name).send_signal(signal.SIGCONT)

    def remount(self) -> None:
        """Mount anew at the same place, whatever has become of the client there."""
        self.unmount()
        self.start()

    def unmount(self) -> None:
        """End the client, properly if it still serves."""
        process = self._cluster.process(self.name)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        self.kill()
        self.clear()

    def clear(self) -> None:
        """Take the mount of a client that is gone away."""
        while self.is_mounted():
            subprocess.run(["umount", "--lazy", self.path], check=True)
