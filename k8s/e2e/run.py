"""The chart in a real cluster, from its installation to what is left when it is gone.

Takes whatever cluster ``KUBECONFIG`` leads to, and an image that its nodes have or can pull. It
needs kubectl and helm, and a volume for several pods: a storage class that offers ReadWriteMany,
or, where all is on one node, a folder of that node. All it makes is in one namespace, which it
removes in the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CHART = HERE.parent / "helm" / "http-nas"
RELEASE = "http-nas"
CLIENT = "client"


class Cluster:
    """A cluster, and one namespace in it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.namespace: str = options.namespace

    def run(self, *command: str, stdin: str | None = None, check: bool = True) -> str:
        """Run a command and return what it prints."""
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=900, check=False
        )
        if check and done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return done.stdout

    def kubectl(self, *arguments: str, **kwargs: Any) -> str:
        """Run kubectl in the namespace."""
        return self.run("kubectl", "-n", self.namespace, *arguments, **kwargs)

    def helm(self, *arguments: str) -> str:
        """Run helm in the namespace."""
        return self.run("helm", "-n", self.namespace, *arguments)

    def apply(self, *documents: dict[str, Any]) -> None:
        """Make or change objects."""
        for document in documents:
            self.kubectl("apply", "-f", "-", stdin=json.dumps(document))

    def deploy(self, verb: str, *values: str) -> float:
        """Install or upgrade the chart; return how many seconds it took until all was ready."""
        options = self.options
        repository, _, tag = options.image.rpartition(":")
        settings = [
            f"image.repository={repository}",
            f"image.tag={tag}",
            "pvc.accessMode=ReadWriteMany",
            f"pvc.storageClass={options.storage_class}",
            "resources.requests.cpu=50m",
            *values,
        ]
        began = time.monotonic()
        self.helm(
            *(verb, RELEASE, str(CHART), "--wait", "--timeout=5m"),
            *(f"--set={setting}" for setting in settings),
            *options.helm_option,
        )
        return time.monotonic() - began

    def pods(self) -> list[dict[str, Any]]:
        """Return the daemon's pods that are not on their way out."""
        selector = f"app.kubernetes.io/instance={RELEASE}"
        found = json.loads(self.kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]
        return [
            pod
            for pod in found
            if "deletionTimestamp" not in pod["metadata"]
            and pod["status"].get("phase") == "Running"
            and all(c["ready"] for c in pod["status"].get("containerStatuses", []))
        ]

    def url(self) -> str:
        """Return where the Service is, by address: not every cluster has names."""
        where = "jsonpath={.spec.clusterIP}:{.spec.ports[0].port}"
        return "http://" + self.kubectl("get", "service", RELEASE, "-o", where)

    def client(self, *arguments: str) -> dict[str, Any]:
        """Run a command of ``client.py`` in the client's pod."""
        script = (HERE / "client.py").read_text()
        told: dict[str, Any] = json.loads(
            self.kubectl("exec", "-i", CLIENT, "--", "python3", "-I", "-", *arguments, stdin=script)
        )
        return told


class Background(threading.Thread):
    """A command of the client that runs beside what else is done."""

    def __init__(self, cluster: Cluster, *arguments: str) -> None:
        super().__init__()
        self._cluster = cluster
        self._arguments = arguments
        self._told: dict[str, Any] | None = None
        self.start()

    def run(self) -> None:
        self._told = self._cluster.client(*self._arguments)

    def result(self) -> dict[str, Any]:
        """Wait for what it told."""
        self.join()
        if self._told is None:
            raise SystemExit("the client's pod did not answer")
        return self._told


def report(what: str, **figures: object) -> None:
    """Print one line."""
    shown = ", ".join(
        f"{name.replace('_', ' ')}: {value:.1f}" if isinstance(value, float) else f"{name}: {value}"
        for name, value in figures.items()
    )
    print(f"{what:42} {shown}", flush=True)


def demand(condition: object, message: str) -> None:
    """End with *message* unless *condition* holds."""
    if not condition:
        raise SystemExit(f"FAILED: {message}")


def volume(cluster: Cluster) -> dict[str, Any]:
    """Return a volume that is a folder of a node, and that several pods may have."""
    options = cluster.options
    node = json.loads(cluster.run("kubectl", "get", "nodes", "-o", "json"))["items"][0]
    host = node["metadata"]["labels"]["kubernetes.io/hostname"]
    term = {"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": cluster.namespace},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteMany"],
            "storageClassName": options.storage_class,
            "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": options.folder},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [term]}]}},
        },
    }


def client_pod(image: str) -> dict[str, Any]:
    """Return the pod in which the client runs: the daemon's own image has Python."""
    sleep = "import time; time.sleep(3600)"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": CLIENT},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 2000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": CLIENT,
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python3", "-I", "-c", sleep],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }


@contextlib.contextmanager
def namespace(cluster: Cluster) -> Iterator[None]:
    """Make the namespace and the volume, and remove both in the end."""
    cluster.run("kubectl", "create", "namespace", cluster.namespace)
    try:
        if cluster.options.folder:
            cluster.apply(volume(cluster))
        cluster.apply(client_pod(cluster.options.image))
        yield
    finally:
        cluster.run("kubectl", "delete", "namespace", cluster.namespace, check=False)
        if cluster.options.folder:
            cluster.run("kubectl", "delete", "persistentvolume", cluster.namespace, check=False)


def upgrade_under_load(cluster: Cluster) -> None:
    """Replace all pods twice while clients work and transfers run."""
    seconds = cluster.options.seconds
    load = Background(cluster, "load", cluster.url(), f"--seconds={seconds}")
    took = []
    for number in range(2):
        time.sleep(5)
        before = {pod["metadata"]["name"] for pod in cluster.pods()}
        annotation = f"podAnnotations.upgrade=number-{number}"
        took.append(cluster.deploy("upgrade", "replicaCount=2", annotation))
        demand(not before & {pod["metadata"]["name"] for pod in cluster.pods()}, "a pod is old")
    told = load.result()
    failures = told.pop("failures")
    report("two upgrades under load", seconds_each=sum(took) / 2, **told)
    demand(not failures, "\n".join(failures))
    demand(told["requests"] >= 1000, "fewer than 1,000 requests")
    demand(told["transfers"] >= 4, "fewer than 4 transfers")


def delete_during_upload(cluster: Cluster) -> None:
    """Delete a pod while it receives uploads: they come to their end."""
    (victim, *_) = cluster.pods()
    direct, service = f"http://{victim['status']['podIP']}:3000", cluster.url()
    uploads = [
        Background(cluster, "upload", base, name, "--seconds=15", f"--check={service}")
        for base, name in ((direct, "direct"), (service, "service"))
    ]
    time.sleep(3)
    began = time.monotonic()
    cluster.kubectl("delete", "pod", victim["metadata"]["name"])
    took = time.monotonic() - began
    errors = [upload.result()["error"] for upload in uploads]
    report("a pod deleted during an upload", seconds=took, errors=errors)
    demand(errors == ["", ""], f"an upload failed: {errors}")


def kill_during_upload(cluster: Cluster) -> None:
    """Kill a pod while it receives an upload: nothing of that is to be seen."""
    cluster.kubectl("rollout", "status", f"deployment/{RELEASE}")
    (victim, *_) = cluster.pods()
    direct = f"http://{victim['status']['podIP']}:3000"
    upload = Background(cluster, "upload", direct, "killed", "--seconds=20")
    time.sleep(3)
    name = victim["metadata"]["name"]
    cluster.kubectl("delete", "pod", name, "--grace-period=0", "--force")
    error = upload.result()["error"]
    seen = cluster.client("get", cluster.url(), "/file/slow/killed")
    report("a pod killed during an upload", client=error.partition("(")[0], then=seen["status"])
    demand(error and seen["status"] == 404, f"half an upload is there: {error}, {seen}")
    again = cluster.client("upload", cluster.url(), "killed", "--seconds=1")
    demand(not again["error"], f"the second try failed: {again}")


def uninstall(cluster: Cluster) -> None:
    """Uninstall, find the claim kept, and what is on it after another installation."""
    cluster.helm("uninstall", RELEASE, "--wait")
    claims = json.loads(cluster.kubectl("get", "persistentvolumeclaims", "-o", "json"))["items"]
    demand([claim["status"]["phase"] for claim in claims] == ["Bound"], "the claim is gone")
    cluster.deploy("install", "replicaCount=1")
    found = cluster.client("get", cluster.url(), "/file/slow/killed")
    report("uninstalled; installed again", claim="kept", file=found["status"])
    demand(found["status"] == 200, "what was stored is gone")
    cluster.helm("uninstall", RELEASE, "--wait")


def main() -> None:
    """Do all that, and end with status 0 if it went well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", required=True, help="REPOSITORY:TAG")
    parser.add_argument("--namespace", default="httpnas-e2e", help="made, and removed in the end")
    parser.add_argument("--storage-class", default="", help="one that offers ReadWriteMany")
    parser.add_argument("--folder", help="instead, an empty folder of the only node")
    parser.add_argument("--seconds", type=float, default=90, help="of load")
    parser.add_argument("--helm-option", action="append", default=[], help="another, repeatable")
    options = parser.parse_args()
    if options.folder and not options.storage_class:
        options.storage_class = "httpnas-e2e"
    cluster = Cluster(options)
    with namespace(cluster):
        report("installed with 2 replicas", seconds=cluster.deploy("install", "replicaCount=2"))
        cluster.kubectl("wait", "--for=condition=Ready", f"pod/{CLIENT}", "--timeout=120s")
        cluster.helm("test", RELEASE)
        report("helm test", passed=True)
        report("scaled to 3", seconds=cluster.deploy("upgrade", "replicaCount=3"))
        report("scaled to 2", seconds=cluster.deploy("upgrade", "replicaCount=2"))
        upgrade_under_load(cluster)
        delete_during_upload(cluster)
        kill_during_upload(cluster)
        uninstall(cluster)
    print("all of it went well")


if __name__ == "__main__":
    sys.exit(main())
