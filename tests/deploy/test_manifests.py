"""The kustomize overlays, and those in the guide: what every kubectl on the PATH makes of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from httpnas import __version__
from tests.deploy.manifests import (
    Object,
    complaints,
    only,
    read,
    select,
    title,
    unrestricted,
)
from tests.harness import ROOT

pytestmark = pytest.mark.deploy

MANIFESTS = ROOT / "k8s" / "manifests"
GUIDE = ROOT / "docs" / "kubernetes.md"
OVERLAYS = ("rook-cephfs", "simple-fs", "single")
#: More than one, where an old and a new one are to be tried.
KUBECTLS = [
    str(path)
    for folder in dict.fromkeys(os.get_exec_path())
    if os.access(path := Path(folder) / "kubectl", os.X_OK)
]


@cache
def rendered(kubectl: str, overlay: str) -> str:
    """Return what is made of an overlay: one of ours by its name, another by its path."""
    run = subprocess.run(
        [kubectl, "kustomize", str(MANIFESTS / "overlays" / overlay)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(params=KUBECTLS or (None,))
def kubectl(request: pytest.FixtureRequest) -> str:
    """The path of a kubectl."""
    if request.param is None:
        pytest.skip("not there: kubectl (apt-get install kubernetes-client)")
    return str(request.param)


@pytest.fixture(params=OVERLAYS)
def objects(request: pytest.FixtureRequest, kubectl: str) -> list[Object]:
    """What one overlay makes; a copy of its own."""
    return read(rendered(kubectl, request.param))


def of(kubectl: str, overlay: str) -> list[Object]:
    return read(rendered(kubectl, overlay))


def pod(objects: Collection[Object]) -> Any:
    return only(objects, "Deployment")["spec"]["template"]["spec"]


def container(objects: Collection[Object]) -> Any:
    (found,) = pod(objects)["containers"]
    return found


def conflicts(objects: Collection[Object]) -> list[str]:
    """Return how *objects* would hang or lose data: pods that want what only one can have."""
    spec = only(objects, "Deployment")["spec"]
    (mode,) = only(objects, "PersistentVolumeClaim")["spec"]["accessModes"]
    if mode == "ReadWriteMany":
        return []
    found = [f"{spec['replicas']} replicas on {mode}"] if spec["replicas"] > 1 else []
    if spec["strategy"]["type"] != "Recreate":
        found.append(f"{spec['strategy']['type']} on {mode}")
    if select(objects, "HorizontalPodAutoscaler"):
        found.append(f"scaling on {mode}")
    return found


def test_there_are_no_other_overlays() -> None:
    assert tuple(sorted(p.name for p in (MANIFESTS / "overlays").iterdir())) == OVERLAYS


def test_every_kubernetes_takes_an_overlay(objects: list[Object]) -> None:
    assert complaints(objects) == []


def test_an_overlay_is_restricted(objects: list[Object]) -> None:
    assert unrestricted(objects) == []
    assert container(objects)["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod(objects)["automountServiceAccountToken"] is False
    assert pod(objects)["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_kubectl_makes_the_same(kubectl: str, overlay: str) -> None:
    def by_title(maker: str) -> list[Object]:
        return sorted(of(maker, overlay), key=title)

    assert by_title(kubectl) == by_title(KUBECTLS[0])


def test_a_volume_that_one_pod_can_have_is_for_one_pod(objects: list[Object]) -> None:
    assert conflicts(objects) == []


@pytest.mark.parametrize(
    "change, says",
    [
        ({"replicas": 2}, "2 replicas"),
        ({"strategy": {"type": "RollingUpdate"}}, "RollingUpdate"),
    ],
)
def test_pods_that_would_fight_for_a_volume_are_seen(
    kubectl: str, change: Object, says: str
) -> None:
    objects = of(kubectl, "single")
    only(objects, "Deployment")["spec"].update(change)
    assert says in "".join(conflicts(objects))


def test_the_probes_ask_what_they_are_for(objects: list[Object]) -> None:
    asked = {
        kind: container(objects)[f"{kind}Probe"]["httpGet"]["path"]
        for kind in ("startup", "liveness", "readiness")
    }
    assert asked == {"startup": "/health", "liveness": "/health", "readiness": "/ready"}
    # /ready gives the storage 5 seconds before it is red.
    assert container(objects)["readinessProbe"]["timeoutSeconds"] > 5


def test_a_pod_has_the_time_to_sleep_and_to_drain(objects: list[Object]) -> None:
    command = container(objects)["lifecycle"]["preStop"]["exec"]["command"]
    assert command == ["python3", "-c", "import time; time.sleep(5)"]
    env = {variable["name"]: variable.get("value", "") for variable in container(objects)["env"]}
    assert pod(objects)["terminationGracePeriodSeconds"] == 5 + int(env["HTTPNAS_DRAIN"]) + 10


def test_the_daemon_listens_and_stores_where_the_pod_says(objects: list[Object]) -> None:
    env = {variable["name"]: variable.get("value", "") for variable in container(objects)["env"]}
    (port,) = container(objects)["ports"]
    (mount,) = container(objects)["volumeMounts"]
    assert env["HTTPNAS_LISTEN"] == f"*:{port['containerPort']}"
    assert env["STORAGE_PATH"] == mount["mountPath"]


def test_resources_are_asked_for_and_memory_is_bounded(objects: list[Object]) -> None:
    resources = container(objects)["resources"]
    assert set(resources["requests"]) == {"cpu", "memory"}
    assert set(resources["limits"]) == {"memory"}


def test_the_image_is_of_this_version(objects: list[Object]) -> None:
    assert container(objects)["image"] == f"httpnas:{__version__}"


@pytest.mark.parametrize("overlay", ["rook-cephfs", "single"])
def test_clients_of_http_nas_find_it(kubectl: str, overlay: str) -> None:
    service = only(of(kubectl, overlay), "Service")
    assert service["metadata"]["name"] == "http-nas"
    assert [port["port"] for port in service["spec"]["ports"]] == [3000]


def test_the_shared_volume_has_three_pods_that_leave_one_by_one(kubectl: str) -> None:
    objects = of(kubectl, "rook-cephfs")
    claim = only(objects, "PersistentVolumeClaim")["spec"]
    assert (claim["accessModes"], claim["storageClassName"]) == (["ReadWriteMany"], "rook-cephfs")
    spec = only(objects, "Deployment")["spec"]
    assert spec["replicas"] == 3
    rolling = {"maxUnavailable": 0, "maxSurge": 1}
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": rolling}
    budget = only(objects, "PodDisruptionBudget")["spec"]
    labels = spec["selector"]["matchLabels"]
    assert (budget["maxUnavailable"], budget["selector"]) == (1, {"matchLabels": labels})
    (spread,) = pod(objects)["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    assert spread["labelSelector"] == {"matchLabels": labels}


def test_the_names_of_simple_fs_are_kept(kubectl: str) -> None:
    objects = of(kubectl, "simple-fs")
    assert {title(item) for item in objects} == {
        "ServiceAccount/simple-fs",
        "PersistentVolumeClaim/cephfs-pvc",
        "Deployment/simple-fs",
        "Service/simple-fs",
    }
    assert all(item["metadata"]["labels"] == {"app": "simple-fs"} for item in objects)
    assert container(objects)["name"] == "simple-fs"


def test_the_ports_of_simple_fs_are_kept(kubectl: str) -> None:
    objects = of(kubectl, "simple-fs")
    service = only(objects, "Service")["spec"]
    assert service["type"] == "NodePort"
    (port,) = service["ports"]
    # The target by number, so that pods of simple-fs serve until the first of ours does.
    assert (port["port"], port["targetPort"], port["nodePort"]) == (8080, 8080, 30010)
    assert service["selector"] == {"app": "simple-fs"}


def test_what_can_not_be_changed_of_simple_fs_is_as_it_was(kubectl: str) -> None:
    objects = of(kubectl, "simple-fs")
    deployment = only(objects, "Deployment")["spec"]
    assert deployment["selector"] == {"matchLabels": {"app": "simple-fs"}}
    assert only(objects, "PersistentVolumeClaim")["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "1Gi"}},
        "storageClassName": "rook-cephfs",
    }
    (volume,) = pod(objects)["volumes"]
    assert volume["name"] == "simplefs-data"
    assert volume["persistentVolumeClaim"] == {"claimName": "cephfs-pvc"}
    assert container(objects)["volumeMounts"] == [{"name": "simplefs-data", "mountPath": "/data"}]


def examples() -> list[str]:
    """Return the kustomizations that the guide shows."""
    blocks: list[str] = re.findall(r"^```yaml\n(.*?)^```$", GUIDE.read_text(), re.M | re.S)
    return [block for block in blocks if "kind: Kustomization" in block]


@pytest.mark.parametrize("index", range(3))
def test_a_kustomization_of_the_guide_works(kubectl: str, index: int, tmp_path: Path) -> None:
    version = json.loads(
        subprocess.run(
            [kubectl, "version", "--client", "-o", "json"],
            capture_output=True,
            timeout=60,
            check=True,
        ).stdout
    )
    if int(version["clientVersion"]["minor"].rstrip("+")) < 21:
        pytest.skip("this kubectl is too old for what the guide shows")
    shutil.copytree(MANIFESTS, tmp_path / "http-nas" / "k8s" / "manifests")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kustomization.yaml").write_text(examples()[index])
    objects = of(kubectl, str(tmp_path / "mine"))
    assert complaints(objects) == []
    assert unrestricted(objects) == []
    assert conflicts(objects) == []
    assert {item["metadata"]["namespace"] for item in objects} == {"nas"}


def test_the_guide_shows_no_other_kustomizations() -> None:
    assert len(examples()) == 3


def test_what_the_guide_links_to_is_there() -> None:
    text = re.sub(r"```.*?```", "", GUIDE.read_text(), flags=re.S)
    links = re.findall(r"\]\(([^)]+)\)", text)
    ours = [link.partition("#")[0] for link in links if not link.startswith("https://")]
    assert ours
    assert [link for link in ours if not (GUIDE.parent / link).exists()] == []
