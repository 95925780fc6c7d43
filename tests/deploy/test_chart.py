"""The Helm chart: what it makes, what it refuses, and that both hold for every Kubernetes."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from httpnas import __version__
from tests.access import files
from tests.certificates import Authority, Secret
from tests.deploy.manifests import (
    Object,
    complaints,
    only,
    pods,
    read,
    select,
    selected,
    title,
    unrestricted,
    yaml,
)
from tests.harness import ROOT, Twistd, twistd

pytestmark = pytest.mark.deploy

CHART = ROOT / "k8s" / "helm" / "http-nas"
SHARED = {"accessMode": "ReadWriteMany", "storageClass": "rook-cephfs"}
#: What is made of the defaults.
USUAL = {"ServiceAccount", "PersistentVolumeClaim", "Service", "Deployment", "Pod"}
PROXY_ANNOTATIONS = {"nginx.ingress.kubernetes.io/proxy-body-size": "0"}

#: For each case the values, and the kinds that it adds to the usual ones or (-) takes away.
MATRIX: dict[str, tuple[Object, set[str]]] = {
    "defaults": ({}, set()),
    "nothing running": ({"replicaCount": 0}, set()),
    "size and path": ({"pvc": {"size": "10Gi"}, "storagePath": "/srv/nas files"}, set()),
    "only one pod": ({"pvc": {"accessMode": "ReadWriteOncePod"}}, set()),
    "no storage class": ({"pvc": {"storageClass": "-"}}, set()),
    "a claim by name": ({"pvc": {"claimName": "files.old"}}, set()),
    "a claim that is there": ({"pvc": {"existingClaim": "mine"}}, {"-PersistentVolumeClaim"}),
    "one shared pod": ({"pvc": SHARED}, set()),
    "three pods": ({"pvc": SHARED, "replicaCount": 3}, {"PodDisruptionBudget"}),
    "three pods of one version": (
        {"pvc": SHARED, "replicaCount": 3, "strategy": "Recreate"},
        {"PodDisruptionBudget"},
    ),
    "three pods without a budget": (
        {"pvc": SHARED, "replicaCount": 3, "podDisruptionBudget": {"enabled": False}},
        set(),
    ),
    "half of the pods": (
        {"pvc": SHARED, "replicaCount": 4, "podDisruptionBudget": {"maxUnavailable": "50%"}},
        {"PodDisruptionBudget"},
    ),
    "shared claim that is there": (
        {"pvc": {"existingClaim": "mine", "accessMode": "ReadWriteMany"}, "replicaCount": 2},
        {"-PersistentVolumeClaim", "PodDisruptionBudget"},
    ),
    "scaling": (
        {"pvc": SHARED, "autoscaling": {"enabled": True}},
        {"HorizontalPodAutoscaler", "PodDisruptionBudget"},
    ),
    "scaling by memory": (
        {
            "pvc": SHARED,
            "autoscaling": {
                "enabled": True,
                "minReplicas": 2,
                "maxReplicas": 8,
                "targetCPUUtilizationPercentage": None,
                "targetMemoryUtilizationPercentage": 70,
            },
        },
        {"HorizontalPodAutoscaler", "PodDisruptionBudget"},
    ),
    "scaling to one": (
        {"autoscaling": {"enabled": True, "maxReplicas": 1}},
        {"HorizontalPodAutoscaler"},
    ),
    "image": (
        {
            "image": {"registry": "r.example:5000/", "repository": "a/nas", "tag": "2"},
            "imagePullSecrets": [{"name": "registry"}],
        },
        set(),
    ),
    "names": ({"nameOverride": "nas", "podLabels": {"team": "data"}}, set()),
    "whole name": ({"fullnameOverride": "files"}, set()),
    "long name": ({"fullnameOverride": "n" * 80}, set()),
    "service account": ({"serviceAccount": {"annotations": {"a.example/b": "c"}}}, set()),
    "no service account": ({"serviceAccount": {"create": False}}, {"-ServiceAccount"}),
    "node port": ({"service": {"type": "NodePort", "port": 80, "nodePort": 30010}}, set()),
    "load balancer": (
        {"service": {"type": "LoadBalancer", "annotations": {"a.example/internal": "true"}}},
        set(),
    ),
    "ingress": (
        {"ingress": {"enabled": True, "className": "nginx", "annotations": PROXY_ANNOTATIONS}},
        {"Ingress"},
    ),
    "ingress with paths": (
        {
            "ingress": {
                "enabled": True,
                "hosts": [
                    {"host": "nas.example", "paths": ["/file", {"path": "/", "pathType": "Exact"}]},
                    {"host": "*.nas.example"},
                    {},
                ],
                "tls": [{"secretName": "nas-tls", "hosts": ["nas.example"]}],
            }
        },
        {"Ingress"},
    ),
    "options": (
        {
            "durability": "none",
            "maxUpload": 107374182400,
            "stall": 1000000,
            "idle": 620,
            "drain": 600,
            "preStop": 0,
            "headroom": "10G",
            "corsOrigins": ["https://a.example", "http://b.example:8080"],
            "hosts": ["nas.example"],
            "auth": {"existingSecret": "nas-auth", "key": "rules.toml", "clusterKeys": True},
            "connectionsPerClient": 1000000,
            "proxies": ["10.1.0.0/16", "fd00::1"],
        },
        set(),
    ),
    "tls": ({"tls": {"enabled": True, "secretName": "nas-tls"}}, set()),
    "tls by cert-manager": (
        {
            "tls": {
                "enabled": True,
                "clientCASecretName": "clients",
                "certificate": {
                    "enabled": True,
                    "issuerRef": {"name": "ours", "kind": "ClusterIssuer"},
                    "dnsNames": ["nas.example"],
                },
            },
            "auth": {"existingSecret": "nas-auth"},
            "ingress": {"enabled": True},
            "networkPolicy": {"enabled": True},
            "serviceMonitor": {"enabled": True},
        },
        {"Certificate", "Ingress", "NetworkPolicy", "ServiceMonitor"},
    ),
    "rights": ({"auth": {"existingSecret": "nas-auth"}}, set()),
    "any user": (
        {"podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}},
        set(),
    ),
    "a big user": ({"podSecurityContext": {"runAsUser": 1000620000}}, set()),
    "no resources": ({"resources": {"requests": None, "limits": None}}, set()),
    "where": (
        {
            "nodeSelector": {"disk": "fast"},
            "tolerations": [{"key": "nas", "operator": "Exists"}],
            "affinity": {"podAntiAffinity": {}},
            "priorityClassName": "high",
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
            ],
        },
        set(),
    ),
    "extras": (
        {
            "podAnnotations": {"a.example/b": "c"},
            "extraEnv": [{"name": "TZ", "value": "UTC"}],
            "extraVolumes": [{"name": "more", "emptyDir": {}}],
            "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
        },
        set(),
    ),
    "network policy": ({"networkPolicy": {"enabled": True}}, {"NetworkPolicy"}),
    "network policy for others": (
        {
            "networkPolicy": {
                "enabled": True,
                "from": [{"namespaceSelector": {}}, {"ipBlock": {"cidr": "10.0.0.0/8"}}],
            }
        },
        {"NetworkPolicy"},
    ),
    "monitoring": (
        {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
        {"ServiceMonitor"},
    ),
    "monitoring with a token": (
        {"serviceMonitor": {"enabled": True, "tokenSecret": {"name": "metrics"}}},
        {"ServiceMonitor"},
    ),
    "dashboard": (
        {"dashboard": {"enabled": True, "annotations": {"grafana_folder": "Storage"}}},
        {"ConfigMap"},
    ),
}
#: The features that go together, in one release.
EVERYTHING = [
    "scaling",
    "image",
    "node port",
    "ingress with paths",
    "options",
    "where",
    "extras",
    "network policy",
    "monitoring",
    "dashboard",
]


class Chart:
    """The chart in the hands of helm.

    :param helm: its path.
    :param home: where helm may keep things.
    """

    def __init__(self, helm: str, home: Path, path: Path = CHART) -> None:
        self._helm = helm
        self._home = home
        self.path = path

    def at(self, path: Path) -> Chart:
        return Chart(self._helm, self._home, path)

    def run(
        self, *arguments: str, values: Object | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._helm, *arguments],
            input=json.dumps(values or {}),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env={"HOME": str(self._home), "PATH": os.environ["PATH"]},
        )

    def template(
        self, values: Object | None, *options: str, release: str = "http-nas"
    ) -> subprocess.CompletedProcess[str]:
        return self.run("template", release, str(self.path), "--values=-", *options, values=values)

    def text(self, values: Object | None = None, *options: str, release: str = "http-nas") -> str:
        rendered = self.template(values, *options, release=release)
        assert rendered.returncode == 0, rendered.stderr
        return rendered.stdout

    def objects(
        self, values: Object | None = None, *options: str, release: str = "http-nas"
    ) -> list[Object]:
        """Return what a release is made of."""
        return read(self.text(values, *options, release=release))

    def refusal(self, values: Object, *options: str) -> str:
        """Return what helm says when it refuses *values*."""
        rendered = self.template(values, *options)
        assert rendered.returncode != 0, "was not refused"
        assert not rendered.stdout
        return rendered.stderr


@pytest.fixture(scope="session")
def chart(helm: str, tmp_path_factory: pytest.TempPathFactory) -> Chart:
    return Chart(helm, tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="session")
def defaults(chart: Chart) -> str:
    return chart.text()


def everything() -> Object:
    """Return the values of all features at once."""
    values: Object = {}
    for case in EVERYTHING:
        for key, value in MATRIX[case][0].items():
            assert key not in values, f"{case} sets {key} again"
            values[key] = value
    return values


def container(objects: list[Object]) -> Object:
    (found,) = only(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(found)


def environment(objects: list[Object]) -> dict[str, str]:
    return {v["name"]: v["value"] for v in container(objects)["env"] if "value" in v}


# What it makes.


def test_lint_has_nothing_to_say(chart: Chart) -> None:
    linted = chart.run("lint", "--strict", str(CHART))
    assert linted.returncode == 0, linted.stdout
    assert "WARNING" not in linted.stdout


@pytest.mark.parametrize("case", MATRIX)
def test_values_make_valid_objects_of_the_expected_kinds(chart: Chart, case: str) -> None:
    values, changes = MATRIX[case]
    objects = chart.objects(values)
    assert complaints(objects, elsewhere={"PersistentVolumeClaim/mine"}) == []
    assert unrestricted(objects) == []
    added = {kind for kind in changes if not kind.startswith("-")}
    missing = {kind[1:] for kind in changes if kind.startswith("-")}
    assert {item["kind"] for item in objects} == (USUAL | added) - missing


@pytest.mark.parametrize("release", ["http-nas", "files"])
def test_all_features_go_together(chart: Chart, release: str) -> None:
    objects = chart.objects(everything(), release=release)
    assert complaints(objects) == []
    assert unrestricted(objects) == []
    kinds = {kind for case in EVERYTHING for kind in MATRIX[case][1]}
    assert {item["kind"] for item in objects} == USUAL | kinds


def test_values_of_the_command_line_do_as_those_of_a_file(chart: Chart) -> None:
    given = ["--set", "pvc.size=10Gi", "--set", "storagePath=/srv", "--set", "maxUpload=5000000000"]
    file = {"pvc": {"size": "10Gi"}, "storagePath": "/srv", "maxUpload": 5000000000}
    assert chart.text({}, *given) == chart.text(file)
    assert environment(chart.objects(file))["HTTPNAS_MAX_UPLOAD"] == "5000000000"


def test_it_can_be_a_part_of_another_chart(chart: Chart, tmp_path: Path) -> None:
    (tmp_path / "charts").mkdir()
    shutil.copytree(CHART, tmp_path / "charts" / "http-nas")
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: whole\nversion: 1.0.0\n")
    objects = chart.at(tmp_path).objects({"global": {"team": "data"}})
    assert complaints(objects) == []


@pytest.mark.parametrize(
    "version, is_taken", [("1.19.16", False), ("1.21.0", True), ("1.29.4-gke.1043002", True)]
)
def test_it_says_which_kubernetes_it_needs(chart: Chart, version: str, is_taken: bool) -> None:
    rendered = chart.template({}, "--kube-version", version)
    assert (rendered.returncode == 0) is is_taken, rendered.stderr


def test_the_service_is_called_http_nas_and_listens_at_3000(chart: Chart) -> None:
    service = only(chart.objects(), "Service")
    assert service["metadata"]["name"] == "http-nas"
    assert service["spec"]["ports"][0]["port"] == 3000
    assert service["spec"]["type"] == "ClusterIP"


@pytest.mark.parametrize(
    "release, values, name",
    [
        ("files", {}, "files-http-nas"),
        ("my-http-nas", {}, "my-http-nas"),
        ("files", {"nameOverride": "nas"}, "files-nas"),
        ("files", {"fullnameOverride": "store"}, "store"),
    ],
)
def test_all_objects_are_called_after_the_release(
    chart: Chart, release: str, values: Object, name: str
) -> None:
    objects = chart.objects(values, release=release)
    names = {item["kind"]: item["metadata"]["name"] for item in objects}
    assert names == {
        "ServiceAccount": name,
        "Service": name,
        "Deployment": name,
        "PersistentVolumeClaim": f"{name}-storage",
        "Pod": f"{name}-test",
    }


def test_the_image_is_that_of_the_version_unless_told_otherwise(chart: Chart) -> None:
    assert container(chart.objects())["image"] == f"httpnas:{__version__}"
    assert container(chart.objects(MATRIX["image"][0]))["image"] == "r.example:5000/a/nas:2"


def test_the_daemon_gets_its_options(chart: Chart) -> None:
    assert environment(chart.objects()) == {
        "STORAGE_PATH": "/mnt/storage",
        "HTTPNAS_LISTEN": "*:3000",
        "HTTPNAS_DURABILITY": "full",
        "HTTPNAS_STALL": "300",
        "HTTPNAS_IDLE": "75",
        "HTTPNAS_DRAIN": "30",
        "HTTPNAS_HEADROOM": "0",
    }
    hosts = "nas.example http-nas http-nas.ns http-nas.ns.svc http-nas.ns.svc.cluster.local"
    assert environment(chart.objects(MATRIX["options"][0], "--namespace=ns")) == {
        "STORAGE_PATH": "/mnt/storage",
        "HTTPNAS_LISTEN": "*:3000",
        "HTTPNAS_DURABILITY": "none",
        "HTTPNAS_MAX_UPLOAD": "107374182400",
        "HTTPNAS_STALL": "1000000",
        "HTTPNAS_IDLE": "620",
        "HTTPNAS_DRAIN": "600",
        "HTTPNAS_HEADROOM": "10G",
        "HTTPNAS_CORS_ORIGINS": "https://a.example http://b.example:8080",
        "HTTPNAS_HOSTS": f"{hosts} $(POD_IP)",
        "HTTPNAS_AUTH": "/etc/httpnas/auth/rules.toml",
        "HTTPNAS_CONNECTIONS_PER_CLIENT": "1000000",
        "HTTPNAS_PROXIES": "10.1.0.0/16 fd00::1",
    }


def test_the_daemon_answers_to_the_names_that_the_ingress_gives_it(chart: Chart) -> None:
    values = {**MATRIX["ingress with paths"][0], "hosts": ["a.example"]}
    hosts = environment(chart.objects(values))["HTTPNAS_HOSTS"].split()
    assert {"a.example", "nas.example", "http-nas", "$(POD_IP)"} < set(hosts)
    assert "*.nas.example" not in hosts


def test_a_variable_stands_behind_those_that_its_value_names(chart: Chart) -> None:
    names = [v["name"] for v in container(chart.objects(MATRIX["options"][0]))["env"]]
    assert names.index("POD_IP") < names.index("HTTPNAS_HOSTS")


def test_the_volume_is_where_the_daemon_stores(chart: Chart) -> None:
    objects = chart.objects({"storagePath": "/srv/nas"})
    (mount,) = container(objects)["volumeMounts"]
    (volume,) = only(objects, "Deployment")["spec"]["template"]["spec"]["volumes"]
    assert mount == {"name": volume["name"], "mountPath": "/srv/nas"}
    assert environment(objects)["STORAGE_PATH"] == "/srv/nas"
    assert volume["persistentVolumeClaim"] == {"claimName": "http-nas-storage"}


@pytest.mark.parametrize(
    "values, expected",
    [
        ({}, {"name": "http-nas-storage", "size": "1Gi", "mode": "ReadWriteOnce", "class": None}),
        (
            {"size": "10Gi", "claimName": "files", **SHARED},
            {"name": "files", "size": "10Gi", "mode": "ReadWriteMany", "class": "rook-cephfs"},
        ),
        (
            {"accessMode": "ReadWriteOncePod", "storageClass": "-"},
            {
                "name": "http-nas-storage",
                "size": "1Gi",
                "mode": "ReadWriteOncePod",
                "class": "",
            },
        ),
    ],
)
def test_the_claim_asks_for_what_was_said_and_outlives_the_release(
    chart: Chart, values: Object, expected: Object
) -> None:
    objects = chart.objects({"pvc": values})
    claim = only(objects, "PersistentVolumeClaim")
    assert {
        "name": claim["metadata"]["name"],
        "size": claim["spec"]["resources"]["requests"]["storage"],
        "mode": claim["spec"]["accessModes"][0],
        "class": claim["spec"].get("storageClassName"),
    } == expected
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert claimed(objects) == expected["name"]


def claimed(objects: list[Object]) -> str:
    """Return the name of the claim that the daemon uses."""
    (volume,) = only(objects, "Deployment")["spec"]["template"]["spec"]["volumes"]
    return str(volume["persistentVolumeClaim"]["claimName"])


def test_a_claim_that_is_there_is_used_and_none_is_made(chart: Chart) -> None:
    objects = chart.objects({"pvc": {"existingClaim": "mine", "claimName": "other"}})
    assert claimed(objects) == "mine"
    assert select(objects, "PersistentVolumeClaim") == []


@pytest.mark.parametrize(
    "values, strategy",
    [
        ({}, {"type": "Recreate"}),
        ({"pvc": {"accessMode": "ReadWriteOncePod"}}, {"type": "Recreate"}),
        (
            {"pvc": SHARED},
            {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        ),
        ({"pvc": SHARED, "strategy": "Recreate"}, {"type": "Recreate"}),
    ],
)
def test_pods_are_replaced_as_their_volume_allows(
    chart: Chart, values: Object, strategy: Object
) -> None:
    assert only(chart.objects(values), "Deployment")["spec"]["strategy"] == strategy


@pytest.mark.parametrize(
    "values, grace",
    [
        ({}, 5 + 30 + 10),
        ({"drain": 600}, 5 + 600 + 10),
        ({"preStop": 20, "drain": 0}, 20 + 0 + 10),
        ({"preStop": 0}, 0 + 30 + 10),
    ],
)
def test_a_pod_has_time_for_its_sleep_and_its_drain(
    chart: Chart, values: Object, grace: int
) -> None:
    spec = only(chart.objects(values), "Deployment")["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] == grace
    hook = spec["containers"][0].get("lifecycle")
    seconds = values.get("preStop", 5)
    sleep = ["python3", "-I", "-c", f"import time; time.sleep({seconds})"]
    assert hook == ({"preStop": {"exec": {"command": sleep}}} if seconds else None)


def test_probes_ask_the_right_questions(chart: Chart) -> None:
    nas = container(chart.objects())
    asked = {kind: nas[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert asked == {
        "startup": {"path": "/health", "port": "http"},
        "liveness": {"path": "/health", "port": "http"},
        "readiness": {"path": "/ready", "port": "http"},
    }
    assert nas["ports"] == [{"name": "http", "containerPort": 3000, "protocol": "TCP"}]
    assert nas["readinessProbe"]["timeoutSeconds"] > 5  # which /ready may take itself


def test_with_tls_the_daemon_has_its_files_and_all_ask_by_https(chart: Chart) -> None:
    objects = chart.objects(MATRIX["tls by cert-manager"][0], "--namespace=ns")
    nas = container(objects)
    for kind in ("startup", "liveness", "readiness"):
        asked = nas[f"{kind}Probe"]["httpGet"]
        assert (asked["port"], asked["scheme"]) == ("https", "HTTPS")
    variables = environment(objects)
    assert {name: variables[name] for name in variables if "TLS" in name} == {
        "HTTPNAS_TLS_CERT": "/etc/httpnas/tls/tls.crt",
        "HTTPNAS_TLS_KEY": "/etc/httpnas/tls/tls.key",
        "HTTPNAS_TLS_CLIENT_CA": "/etc/httpnas/client-ca/ca.crt",
    }
    # Of a file that is mounted by subPath, no change would ever come.
    mounts = {mount["name"]: mount for mount in nas["volumeMounts"]}
    for name, path in (("tls", "/etc/httpnas/tls"), ("client-ca", "/etc/httpnas/client-ca")):
        assert mounts[name] == {"name": name, "mountPath": path, "readOnly": True}
    volumes = only(objects, "Deployment")["spec"]["template"]["spec"]["volumes"]
    secrets = {volume["name"]: volume["secret"] for volume in volumes if "secret" in volume}
    assert secrets == {
        "auth": {"secretName": "nas-auth"},
        "tls": {"secretName": "http-nas-tls"},
        "client-ca": {"secretName": "clients", "items": [{"key": "ca.crt", "path": "ca.crt"}]},
    }
    certificate = only(objects, "Certificate")["spec"]
    assert certificate["secretName"] == "http-nas-tls"
    assert certificate["issuerRef"] == {"name": "ours", "kind": "ClusterIssuer"}
    service = "http-nas http-nas.ns http-nas.ns.svc http-nas.ns.svc.cluster.local"
    assert certificate["dnsNames"] == [*service.split(), "nas.example"]
    (endpoint,) = only(objects, "ServiceMonitor")["spec"]["endpoints"]
    assert (endpoint["scheme"], endpoint["tlsConfig"]) == (
        "https",
        {"serverName": "http-nas.ns.svc"},
    )
    assert only(objects, "Service")["spec"]["ports"][0]["name"] == "https"


def test_without_tls_nothing_speaks_of_it(defaults: str) -> None:
    objects = read(defaults)
    assert not [name for name in environment(objects) if "TLS" in name]
    assert {mount["name"] for mount in container(objects)["volumeMounts"]} == {"storage"}


def test_pods_run_as_2000_and_write_nowhere_else(chart: Chart) -> None:
    for _, _, spec in pods(chart.objects()):
        assert spec["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 2000,
            "runAsGroup": 2000,
            "fsGroup": 2000,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert spec["containers"][0]["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_the_cluster_can_choose_the_user(chart: Chart) -> None:
    for _, _, spec in pods(chart.objects(MATRIX["any user"][0])):
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(spec["securityContext"])
        assert spec["securityContext"]["runAsNonRoot"] is True


def test_no_pod_gets_a_token(chart: Chart) -> None:
    objects = chart.objects()
    assert only(objects, "ServiceAccount")["automountServiceAccountToken"] is False
    for _, _, spec in pods(objects):
        assert spec["serviceAccountName"] == "http-nas"
        assert spec["automountServiceAccountToken"] is False


def test_the_secret_is_a_folder_beside_the_storage_and_is_mounted_whole(chart: Chart) -> None:
    """With a subPath, a change of the Secret would never come to the daemon."""
    objects = chart.objects({"auth": {"existingSecret": "nas-auth"}})
    _, mount = container(objects)["volumeMounts"]
    assert mount == {"name": "auth", "mountPath": "/etc/httpnas/auth", "readOnly": True}
    spec = only(objects, "Deployment")["spec"]["template"]["spec"]
    assert spec["volumes"][1] == {"name": "auth", "secret": {"secretName": "nas-auth"}}
    assert environment(objects)["HTTPNAS_AUTH"] == "/etc/httpnas/auth/auth.toml"
    assert spec["automountServiceAccountToken"] is False


def test_the_daemon_alone_gets_a_token_to_fetch_keys_and_may_reach_the_api_server(
    chart: Chart,
) -> None:
    auth = {"existingSecret": "nas-auth", "clusterKeys": True}
    objects = chart.objects({"auth": auth, "networkPolicy": {"enabled": True}})
    spec = only(objects, "Deployment")["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is True
    assert only(objects, "Pod")["spec"]["automountServiceAccountToken"] is False
    (rule,) = only(objects, "NetworkPolicy")["spec"]["egress"]
    assert {port["port"] for port in rule["ports"]} == {53, 443, 6443}
    says = "auth.clusterKeys needs auth.existingSecret"
    assert says in chart.refusal({"auth": {"clusterKeys": True}})


def test_the_test_says_who_it_is_by_a_token_for_the_daemon_alone(chart: Chart) -> None:
    spec = only(chart.objects({"auth": {"existingSecret": "nas-auth"}}), "Pod")["spec"]
    (volume,) = spec["volumes"]
    (source,) = volume["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == "httpnas"
    (tour,) = spec["containers"]
    (mount,) = tour["volumeMounts"]
    path = f"{mount['mountPath']}/{source['serviceAccountToken']['path']}"
    assert tour["env"] == [{"name": "HTTPNAS_TOKEN_FILE", "value": path}]


def test_prometheus_sends_the_token_that_it_is_given(chart: Chart) -> None:
    (endpoint,) = only(chart.objects(MATRIX["monitoring with a token"][0]), "ServiceMonitor")[
        "spec"
    ]["endpoints"]
    assert endpoint["authorization"] == {"credentials": {"name": "metrics", "key": "token"}}


def test_selectors_stay_what_they_are(chart: Chart) -> None:
    """A Deployment's selector is immutable: with another one, no release could be upgraded."""
    labels = {"app.kubernetes.io/name": "http-nas", "app.kubernetes.io/instance": "http-nas"}
    wanted = {"podLabels": {"app.kubernetes.io/name": "other", "team": "data"}}
    objects = chart.objects(wanted)
    assert only(objects, "Deployment")["spec"]["selector"] == {"matchLabels": labels}
    assert only(objects, "Service")["spec"]["selector"] == labels
    template = only(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert template == {**labels, "team": "data"}


def test_the_service_sends_nothing_to_the_test(chart: Chart) -> None:
    objects = chart.objects(everything())
    selector = only(objects, "Service")["spec"]["selector"]
    assert [name for name, _ in selected(objects, selector)] == ["Deployment/http-nas"]


def test_the_autoscaler_alone_counts_pods(chart: Chart) -> None:
    objects = chart.objects(MATRIX["scaling by memory"][0])
    assert "replicas" not in only(objects, "Deployment")["spec"]
    scaler = only(objects, "HorizontalPodAutoscaler")["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 8)
    assert [metric["resource"]["name"] for metric in scaler["metrics"]] == ["memory"]
    assert only(chart.objects(MATRIX["three pods"][0]), "Deployment")["spec"]["replicas"] == 3


def test_a_spread_without_a_selector_is_over_our_pods(chart: Chart) -> None:
    constraint = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    objects = chart.objects({"topologySpreadConstraints": [constraint]})
    spec = only(objects, "Deployment")["spec"]
    assert spec["template"]["spec"]["topologySpreadConstraints"] == [
        {**constraint, "labelSelector": spec["selector"]}
    ]


def test_the_network_policy_lets_in_who_was_named_and_the_test_and_lets_nothing_out(
    chart: Chart,
) -> None:
    objects = chart.objects(MATRIX["network policy for others"][0])
    policy = only(objects, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    (rule,) = policy["ingress"]
    assert rule["ports"] == [{"port": "http", "protocol": "TCP"}]
    test, *others = rule["from"]
    labels = test["podSelector"]["matchLabels"]
    assert [name for name, _ in selected(objects, labels)] == ["Pod/http-nas-test"]
    assert others == MATRIX["network policy for others"][0]["networkPolicy"]["from"]


def test_prometheus_reads_the_metrics_of_the_service(chart: Chart) -> None:
    monitor = only(chart.objects(MATRIX["monitoring"][0]), "ServiceMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["endpoints"] == [{"port": "http", "path": "/metrics", "interval": "30s"}]


def test_the_dashboard_is_the_one_that_is_documented(chart: Chart) -> None:
    original = ROOT / "k8s" / "grafana-dashboard.json"
    theirs = CHART / "files" / original.name
    assert theirs.read_bytes() == original.read_bytes(), (
        f"cp {original.relative_to(ROOT)} {theirs.relative_to(ROOT)}"
    )
    config = only(chart.objects(MATRIX["dashboard"][0]), "ConfigMap")
    assert json.loads(config["data"]["httpnas.json"]) == json.loads(original.read_bytes())
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_ingresses_take_paths_as_http_nas_does(chart: Chart) -> None:
    rules = only(chart.objects(MATRIX["ingress with paths"][0]), "Ingress")["spec"]["rules"]
    assert [
        (rule.get("host"), [(path["path"], path["pathType"]) for path in rule["http"]["paths"]])
        for rule in rules
    ] == [
        ("nas.example", [("/file", "Prefix"), ("/", "Exact")]),
        ("*.nas.example", [("/", "Prefix")]),
        (None, [("/", "Prefix")]),
    ]


# What it refuses.


@pytest.mark.parametrize(
    "values, says",
    [
        (
            {"replicaCount": 3},
            "replicaCount is 3, but only one pod can have a ReadWriteOnce volume. "
            "Set pvc.accessMode=ReadWriteMany",
        ),
        (
            {"replicaCount": 2, "pvc": {"accessMode": "ReadWriteOncePod"}},
            "replicaCount is 2, but only one pod can have a ReadWriteOncePod volume",
        ),
        (
            {"replicaCount": 2, "pvc": {"existingClaim": "mine"}},
            "If the claim mine is ReadWriteMany, say so with pvc.accessMode=ReadWriteMany",
        ),
        (
            {"replicaCount": 2, "autoscaling": {"enabled": True, "maxReplicas": 1}},
            "replicaCount is 2, but",
        ),
        (
            {"autoscaling": {"enabled": True}},
            "autoscaling.maxReplicas is 3, but only one pod can have a ReadWriteOnce volume. "
            "Set pvc.accessMode=ReadWriteMany",
        ),
        (
            {
                "autoscaling": {"enabled": True, "maxReplicas": 2},
                "pvc": {"existingClaim": "mine", "accessMode": "ReadWriteOncePod"},
            },
            "autoscaling.maxReplicas is 2, but only one pod can have a ReadWriteOncePod volume. "
            "If the claim mine",
        ),
        (
            {"pvc": SHARED, "autoscaling": {"enabled": True, "minReplicas": 5, "maxReplicas": 4}},
            "autoscaling.minReplicas is 5, more than maxReplicas, 4",
        ),
        (
            {
                "pvc": SHARED,
                "autoscaling": {"enabled": True, "targetCPUUtilizationPercentage": None},
            },
            "autoscaling needs targetCPUUtilizationPercentage or",
        ),
        (
            {"tls": {"certificate": {"enabled": True, "issuerRef": {"name": "ours"}}}},
            "need tls.enabled=true",
        ),
        ({"tls": {"clientCASecretName": "clients"}}, "need tls.enabled=true"),
        (
            {"tls": {"enabled": True, "certificate": {"enabled": True}}},
            "tls.certificate needs the name of an issuer",
        ),
        (
            {"tls": {"enabled": True, "clientCASecretName": "clients"}},
            "tls.clientCASecretName needs auth.existingSecret",
        ),
    ],
)
def test_what_loses_data_or_makes_no_sense_is_refused_with_what_to_do(
    chart: Chart, values: Object, says: str
) -> None:
    assert says in chart.refusal(values)


def test_every_variable_that_a_value_sets_must_be_set_by_that_value(chart: Chart) -> None:
    set_by_values = environment(chart.objects(MATRIX["options"][0]))
    set_by_values |= environment(chart.objects(MATRIX["tls by cert-manager"][0]))
    for name in set_by_values:
        refusal = chart.refusal({"extraEnv": [{"name": name, "value": "1"}]})
        value = re.search(rf"extraEnv sets {name}: use the value (\w+)[\w.]* ", refusal)
        assert value
        assert value[1] in yaml.safe_load((CHART / "values.yaml").read_text())


@pytest.mark.parametrize(
    "values",
    [
        {"replicaCout": 2},
        {"replicaCount": "2"},
        {"replicaCount": -1},
        {"storagePath": "storage"},
        {"storagePath": "/"},
        {"image": {"repo": "httpnas"}},
        {"image": {"repository": ""}},
        {"image": {"pullPolicy": "always"}},
        {"pvc": {"sise": "1Gi"}},
        {"pvc": {"size": "1GB"}},
        {"pvc": {"size": 10}},
        {"pvc": {"claimName": "My_Files"}},
        {"pvc": {"accessMode": "ReadOnlyMany"}},
        {"pvc": {"accessModes": ["ReadWriteMany"]}},
        {"durability": "some"},
        {"maxUpload": "10Gi"},
        {"headroom": -1},
        {"stall": 0},
        {"idle": 0},
        {"drain": "30s"},
        {"drain": 0.5},
        {"preStop": -1},
        {"corsOrigins": "https://a.example"},
        {"corsOrigins": ["a.example"]},
        {"hosts": ["a b"]},
        {"tls": {"secret": "nas-tls"}},
        {"tls": {"secretName": "Nas_Tls"}},
        {"tls": {"certificate": {"issuerRef": {"kind": "Authority"}}}},
        {"auth": {"secret": "nas-auth"}},
        {"auth": {"existingSecret": "nas-auth", "key": "a/b"}},
        {"connectionsPerClient": -1},
        {"proxies": ["ingress"]},
        {"proxies": "10.0.0.0/8"},
        {"serviceMonitor": {"tokenSecret": "metrics"}},
        {"strategy": "RollingUpdate"},
        {"service": {"type": "ExternalName"}},
        {"service": {"port": 70000}},
        {"ingress": {"host": "a.example"}},
        {"ingress": {"enabled": True, "hosts": []}},
        {"ingress": {"hosts": [{"host": "a.example", "paths": ["file"]}]}},
        {"resources": {"request": {}}},
        {"autoscaling": {"maxReplicas": 0}},
        {"podDisruptionBudget": {"minAvailable": 1}},
        {"podLabels": {"a": 1}},
        {"extraEnv": [{"value": "1"}]},
        {"affinity": {"podAntiAffinty": {}}},
        {"networkPolicy": {"from": [{"podselector": {}}]}},
        {"serviceMonitor": {"interval": "30"}},
        {"dashboard": {"enable": True}},
    ],
    ids=str,
)
def test_values_that_mean_nothing_are_refused(chart: Chart, values: Object) -> None:
    (key,) = values
    refusal = chart.refusal(values)
    assert "values don't meet the specifications of the schema" in refusal
    assert key in refusal


# What comes with it.


def take_tour(
    chart: Chart, daemon: Twistd, service: str, values: Object | None = None, **env: str
) -> tuple[int, str]:
    """Run what the pod of ``helm test`` runs; return its status and what it has said."""
    (tour,) = only(chart.objects(values), "Pod")["spec"]["containers"]
    at = tour["command"].index("-c") + 1
    (python, *options), script = tour["command"][:at], tour["command"][at]
    _, _, *scheme = tour["command"][at + 1 :]
    assert (python, options) == ("python3", ["-I", "-c"])
    run = subprocess.run(
        [sys.executable, *options, script, service, str(daemon.port), *scheme],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, **env},
    )
    return run.returncode, run.stdout


def test_the_tour_of_helm_test_ends_well_and_leaves_nothing(chart: Chart, tmp_path: Path) -> None:
    root = tmp_path / "root"
    with twistd(root, "--durability=none", "--hosts=localhost") as daemon:
        status, said = take_tour(chart, daemon, "localhost")
    assert status == 0, said
    assert [path.name for path in root.iterdir()] == [".httpnas"]


def test_the_tour_of_helm_test_speaks_tls_where_the_daemon_does(
    chart: Chart, tmp_path: Path
) -> None:
    secret = Secret(tmp_path / "secret", Authority().server())
    with twistd(tmp_path / "root", "--durability=none", *secret.options) as daemon:
        status, said = take_tour(chart, daemon, "localhost", MATRIX["tls"][0])
    assert status == 0, said


def test_the_tour_of_helm_test_shows_its_token(chart: Chart, tmp_path: Path) -> None:
    auth = files.write(
        tmp_path,
        files.token("tour"),
        files.rule("tour", "/", ["create", "append", "read", "delete"]),
    )
    (tmp_path / "token").write_text(files.token_of("tour") + "\n")
    root = tmp_path / "root"
    with twistd(root, "--durability=none", f"--auth={auth}") as daemon:
        token = {"HTTPNAS_TOKEN_FILE": str(tmp_path / "token")}
        status, said = take_tour(chart, daemon, "localhost", None, **token)
        assert status == 0, said
        status, said = take_tour(chart, daemon, "localhost")
        assert status == 1 and "401" in said
    assert [path.name for path in root.iterdir()] == [".httpnas"]


def test_the_tour_of_helm_test_fails_where_the_daemon_does(chart: Chart, tmp_path: Path) -> None:
    with twistd(tmp_path / "root", "--durability=none", "--max-upload=1") as daemon:
        status, said = take_tour(chart, daemon, "localhost")
    assert status == 1
    assert "413" in said
    assert "the tour has failed" in said


def test_the_tour_of_helm_test_needs_no_dns(chart: Chart, tmp_path: Path) -> None:
    resolver = {"RES_OPTIONS": "attempts:1 timeout:1", "LOCALDOMAIN": "invalid"}
    with twistd(tmp_path / "root", "--durability=none", "--hosts=no-such-name") as daemon:
        status, said = take_tour(
            chart, daemon, "no-such-name", None, NO_SUCH_NAME_SERVICE_HOST="127.0.0.1", **resolver
        )
    assert status == 0, said
    assert "using its address, 127.0.0.1" in said


def test_the_tour_of_helm_test_asks_for_the_service_and_ends_in_time(chart: Chart) -> None:
    pod = only(chart.objects({"service": {"port": 80}}, release="files"), "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    *_, script, service, port = pod["spec"]["containers"][0]["command"]
    assert (service, port) == ("files-http-nas", "80")
    assert "$(" not in script  # which Kubernetes would replace
    assert pod["spec"]["restartPolicy"] == "Never"
    assert pod["spec"]["activeDeadlineSeconds"] <= 120


def notes(chart: Chart, where: Path, values: Object) -> str:
    """Return the notes that an install by *values* would show (helm asks a cluster for that)."""
    shutil.copytree(CHART, where)
    (where / "templates" / "notes.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\ndata:\n  notes: "
        '{{ include (print $.Template.BasePath "/NOTES.txt") . | quote }}\n'
    )
    objects = chart.at(where).objects(values, "--show-only=templates/notes.yaml")
    return str(only(objects, "ConfigMap")["data"]["notes"])


def test_the_commands_of_the_notes_work_when_pasted(chart: Chart, tmp_path: Path) -> None:
    text = notes(chart, tmp_path / "chart", {})
    commands = [line for line in text.splitlines() if "curl " in line]
    assert len(commands) == 6
    with twistd(tmp_path / "root", "--durability=none") as daemon:
        said = [
            subprocess.run(
                [
                    "bash",
                    "-euo",
                    "pipefail",
                    "-c",
                    line.replace("http://http-nas:3000", daemon.url),
                ],
                capture_output=True,
                text=True,
                timeout=30,
                check=True,
            ).stdout
            for line in commands
        ]
    assert [line.strip() for line in said] == [
        "OK",
        "OK",
        "6",
        "1\n2\n3\n4\n5\n6",
        "numbers.txt",
        "OK",
    ]


def test_the_notes_say_where_the_files_are_and_how_to_come_near(
    chart: Chart, tmp_path: Path
) -> None:
    values = {"pvc": {"existingClaim": "mine"}, "service": {"port": 80}}
    values |= MATRIX["ingress with paths"][0]
    text = notes(chart, tmp_path / "chart", values)
    assert "on the claim mine (ReadWriteOnce)" in text
    assert "port-forward service/http-nas 3000:80" in text
    assert "https://nas.example\n" in text
    assert "delete pvc" not in text
    assert "delete pvc http-nas-storage" in notes(chart, tmp_path / "other", {})


def test_the_notes_warn_unless_somebody_is_asked_who_he_is(chart: Chart, tmp_path: Path) -> None:
    assert "WARNING: whoever can connect" in notes(chart, tmp_path / "open", {})
    text = notes(chart, tmp_path / "chart", {"auth": {"existingSecret": "nas-auth"}})
    assert "WARNING" not in text
    assert "in the Secret nas-auth, in the file auth.toml" in text


def test_it_is_made_for_this_version() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (about["apiVersion"], about["name"]) == ("v2", "http-nas")
    assert about["appVersion"] == __version__


def test_a_package_holds_the_chart_and_nothing_else(chart: Chart, tmp_path: Path) -> None:
    copied = tmp_path / "http-nas"
    shutil.copytree(CHART, copied)
    for junk in (".git/config", ".DS_Store", "files/tour.pyc", "values.yaml~", "old-0.1.0.tgz"):
        (copied / junk).parent.mkdir(exist_ok=True)
        (copied / junk).write_text("junk")
    packed = chart.run("package", str(copied), "--destination", str(tmp_path))
    assert packed.returncode == 0, packed.stderr
    (archive,) = tmp_path.glob("*.tgz")
    with tarfile.open(archive) as tar:
        names = set(tar.getnames())
    templates = {
        "NOTES.txt",
        "_helpers.tpl",
        "_refusals.tpl",
        "certificate.yaml",
        "dashboard.yaml",
        "deployment.yaml",
        "hpa.yaml",
        "ingress.yaml",
        "networkpolicy.yaml",
        "pdb.yaml",
        "pvc.yaml",
        "service.yaml",
        "serviceaccount.yaml",
        "servicemonitor.yaml",
        "tests/tour.yaml",
    }
    others = {
        "Chart.yaml",
        "values.yaml",
        "values.schema.json",
        "files/grafana-dashboard.json",
        "files/tour.py",
    }
    assert names == {f"http-nas/{n}" for n in others | {f"templates/{t}" for t in templates}}
    assert chart.at(archive).text() == chart.text()


def test_every_value_is_documented() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    undocumented = [
        line
        for before, line in zip(["", *lines], lines, strict=False)
        if re.match(r" *[A-Za-z]\w*:( [^ ].*)?$", line) and not before.lstrip().startswith("#")
    ]
    assert undocumented == []


def paths(values: Any, before: str = "") -> set[str]:
    """Return where in *values* something stands, sections included."""
    if not isinstance(values, dict):
        return set()
    return {
        path
        for key, value in values.items()
        for path in (f"{before}{key}", *paths(value, f"{before}{key}."))
    }


def schema_paths(schema: Object, before: str = "") -> set[str]:
    return {
        path
        for key, value in schema.get("properties", {}).items()
        for path in (f"{before}{key}", *schema_paths(value, f"{before}{key}."))
    }


def test_every_value_stands_in_the_schema_and_nothing_else_does() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = paths(yaml.safe_load((CHART / "values.yaml").read_text()))
    # Not in the file: what helm itself hands down, and what has no sensible default.
    without_default = {
        "global",
        "resources.claims",
        "resources.limits.cpu",
        "securityContext.capabilities.add",
        *(f"affinity.{kind}" for kind in ("nodeAffinity", "podAffinity", "podAntiAffinity")),
    }
    assert schema_paths(schema) - values == without_default
    # Labels may have any name, so that their schema does not name them.
    assert values - schema_paths(schema) == {"dashboard.labels.grafana_dashboard"}


def test_what_ingress_nginx_needs_for_big_bodies_can_be_pasted(chart: Chart) -> None:
    text = (CHART / "values.yaml").read_text()
    lines = re.findall(r"^  #   (nginx\.ingress\.kubernetes\.io/.*)$", text, re.M)
    annotations = yaml.safe_load("\n".join(lines))
    switches = {key: value for key, value in annotations.items() if "timeout" not in key}
    assert switches == {
        "nginx.ingress.kubernetes.io/proxy-body-size": "0",
        "nginx.ingress.kubernetes.io/proxy-request-buffering": "off",
        "nginx.ingress.kubernetes.io/proxy-buffering": "off",
        "nginx.ingress.kubernetes.io/proxy-next-upstream": "off",
    }
    ingress = only(
        chart.objects({"ingress": {"enabled": True, "annotations": annotations}}), "Ingress"
    )
    assert ingress["metadata"]["annotations"] == annotations


# That the checks above can fail.

#: In what the defaults make: what is replaced, by what, and what is said of it.
PLANTED = [
    ("replicas: 1", "replicas: one", "spec.replicas"),
    ("replicas: 1", "replica: 1", "'replica' was unexpected"),
    ("replicas: 1", "replicas: null", ".spec.replicas is null"),
    ("apiVersion: apps/v1", "apiVersion: apps/v1beta1", "Couldn't find schema"),
    ("apiVersion: apps/v1", "apiVersion: other.example/v1", "Couldn't find schema"),
    ("kind: ServiceAccount", "kind: Account", "Couldn't find schema"),
    ("value: full", "value: 1", "env.2.value"),
    ("claimName: http-nas-storage", "claimName: other", "no PersistentVolumeClaim/other"),
    ("serviceAccountName: http-nas", "serviceAccountName: other", "no ServiceAccount/other"),
    ("targetPort: http", "targetPort: https", "Deployment/http-nas has no port https"),
    ("targetPort: http", "targetPort: 80", "Deployment/http-nas has no port 80"),
    ("path: /health\n              port: http", "path: /health\n              port: web", "web"),
    ("- name: storage\n              mountPath", "- name: other\n              mountPath", "other"),
    ("HTTPNAS_DRAIN", "HTTPNAS_STALL", "the variable HTTPNAS_STALL is there 2 times"),
    ("memory: 512Mi", "memory: 512MB", "is no quantity of memory: 512MB"),
    ('storage: "1Gi"', 'storage: "1 Gi"', "is no quantity of storage: 1 Gi"),
    ("name: http-nas-test\n  labels", "name: http_nas\n  labels", "is no name: http_nas"),
    ("managed-by: Helm", "managed-by: Helm!", "is no label"),
    (
        "  selector:\n    app.kubernetes.io/name: http-nas",
        "  selector:\n    app.kubernetes.io/name: other",
        "Service/http-nas: its selector finds nothing",
    ),
    (
        "app.kubernetes.io/name: http-nas-test",
        "app.kubernetes.io/name: http-nas",
        "Deployment/http-nas: its selector finds",
    ),
]


def plant(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize("old, new, says", PLANTED)
def test_a_mistake_in_an_object_is_seen(defaults: str, old: str, new: str, says: str) -> None:
    assert complaints(read(defaults)) == []
    found = complaints(read(plant(defaults, old, new)))
    assert any(says in what for what in found), found


@pytest.mark.parametrize(
    "case, kind, change, says",
    [
        (
            "ingress",
            "Ingress",
            lambda spec: spec["rules"][0]["http"]["paths"][0]["backend"]["service"].update(
                port={"number": 80}
            ),
            "no Service has",
        ),
        (
            "scaling",
            "HorizontalPodAutoscaler",
            lambda spec: spec["scaleTargetRef"].update(name="other"),
            "there is no Deployment/other",
        ),
        (
            "scaling",
            "PodDisruptionBudget",
            lambda spec: spec["selector"]["matchLabels"].update(a="b"),
            "its selector finds []",
        ),
        (
            "network policy",
            "NetworkPolicy",
            lambda spec: spec["podSelector"]["matchLabels"].update(a="b"),
            "its selector finds []",
        ),
        (
            "monitoring",
            "ServiceMonitor",
            lambda spec: spec["endpoints"][0].update(port="metrics"),
            "no Service that it finds has a port metrics",
        ),
        (
            "monitoring",
            "ServiceMonitor",
            lambda spec: spec["endpoints"][0].update(intervall="30s"),
            "expected",
        ),
        (
            "monitoring",
            "ServiceMonitor",
            lambda spec: spec.update(selector={"labels": {}}),
            "expected matchLabels",
        ),
        (
            "monitoring",
            "ServiceMonitor",
            lambda spec: spec.update(selectors={}),
            "in spec, not",
        ),
        (
            "extras",
            "Deployment",
            lambda spec: spec["template"]["spec"]["volumes"].append(
                {"name": "settings", "configMap": {"name": "other"}}
            ),
            "there is no ConfigMap/other",
        ),
        (
            "extras",
            "Deployment",
            lambda spec: spec["template"]["spec"]["volumes"].append(
                {"name": "more", "emptyDir": {}}
            ),
            "the volume more is there 2 times",
        ),
        (
            "extras",
            "Deployment",
            lambda spec: spec["template"]["spec"]["containers"][0]["volumeMounts"][1].update(
                mountPath="/mnt/storage"
            ),
            "the mount path /mnt/storage is there 2 times",
        ),
        (
            "defaults",
            "Deployment",
            lambda spec: spec["template"]["spec"]["containers"][0]["ports"].append(
                {"name": "http", "containerPort": 3001}
            ),
            "the port http is there 2 times",
        ),
    ],
)
def test_a_mistake_in_a_specification_is_seen(
    chart: Chart, case: str, kind: str, change: Callable[[Object], None], says: str
) -> None:
    objects = chart.objects(MATRIX[case][0])
    change(only(objects, kind)["spec"])
    found = complaints(objects)
    assert any(says in what for what in found), found


def test_an_object_that_is_there_twice_is_seen(defaults: str) -> None:
    objects = read(defaults)
    assert f"{title(objects[0])}: is there twice" in complaints([*objects, objects[0]])


@pytest.mark.parametrize(
    "text, says",
    [
        ("kind: A\nkind: A\napiVersion: v1\nmetadata: {name: a}", "'kind' is given twice"),
        ("kind: A\napiVersion: v1\nmetadata: {name: a, labels: {b: c, b: c}}", "'b' is given"),
        ("kind: A\napiVersion: v1", "not an object"),
        ("kind: List\napiVersion: v1\nitems: [1]", "not an object"),
        ("---\n", "no objects"),
    ],
)
def test_what_is_no_object_can_not_be_read(text: str, says: str) -> None:
    with pytest.raises((ValueError, yaml.YAMLError), match=says):
        read(text)


def liberties() -> dict[str, tuple[Callable[[Object], None], str]]:
    """Return ways to leave "restricted": what is changed in a pod, and what is said of it."""

    def of_pod(**changes: Any) -> Callable[[Object], None]:
        return lambda spec: spec.update(changes)

    def of_context(**changes: Any) -> Callable[[Object], None]:
        return lambda spec: spec["securityContext"].update(changes)

    def of_container(**changes: Any) -> Callable[[Object], None]:
        return lambda spec: spec["containers"][0].update(changes)

    def of_own(**changes: Any) -> Callable[[Object], None]:
        return lambda spec: spec["containers"][0]["securityContext"].update(changes)

    volume = {"name": "host", "hostPath": {"path": "/"}}
    return {
        "network": (of_pod(hostNetwork=True), "hostNetwork"),
        "processes": (of_pod(hostPID=True), "hostPID"),
        "memory": (of_pod(hostIPC=True), "hostIPC"),
        "volume": (of_pod(volumes=[volume]), "kind of the volume"),
        "init": (of_pod(initContainers=[{"name": "i"}]), "i: allowPrivilegeEscalation"),
        "sysctl": (of_context(sysctls=[{"name": "kernel.msgmax", "value": "1"}]), "sysctl"),
        "root allowed": (of_context(runAsNonRoot=False), "runAsNonRoot"),
        "root": (of_context(runAsUser=0), "runAsUser 0"),
        "root in one": (of_own(runAsUser=0), "runAsUser 0"),
        "root allowed in one": (of_own(runAsNonRoot=False), "runAsNonRoot"),
        "system calls": (of_context(seccompProfile={"type": "Unconfined"}), "seccompProfile"),
        "no seccomp": (lambda spec: spec["securityContext"].pop("seccompProfile"), "seccomp"),
        "escalation": (of_own(allowPrivilegeEscalation=True), "allowPrivilegeEscalation"),
        "privileged": (of_own(privileged=True), "privileged"),
        "capabilities": (of_own(capabilities={"drop": ["NET_RAW"]}), "are dropped"),
        "more": (of_own(capabilities={"drop": ["ALL"], "add": ["SYS_TIME"]}), "SYS_TIME"),
        "proc": (of_own(procMount="Unmasked"), "procMount"),
        "selinux": (of_own(seLinuxOptions={"type": "spc_t"}), "seLinuxOptions"),
        "apparmor": (of_own(appArmorProfile={"type": "Unconfined"}), "appArmorProfile"),
        "windows": (of_own(windowsOptions={"hostProcess": True}), "hostProcess"),
        "port": (of_container(ports=[{"containerPort": 1, "hostPort": 1}]), "hostPort"),
        "probe": (
            of_container(livenessProbe={"httpGet": {"port": 1, "host": "10.0.0.1"}}),
            "at the host",
        ),
    }


@pytest.mark.parametrize("liberty", liberties())
def test_what_is_not_restricted_is_seen(defaults: str, liberty: str) -> None:
    change, says = liberties()[liberty]
    objects = copy.deepcopy(read(defaults))
    change(only(objects, "Deployment")["spec"]["template"]["spec"])
    found = unrestricted(objects)
    assert any(says in what for what in found), found


def test_that_apparmor_was_turned_off_is_seen(defaults: str) -> None:
    objects = read(defaults)
    template = only(objects, "Deployment")["spec"]["template"]["metadata"]
    key = "container.apparmor.security.beta.kubernetes.io/http-nas"
    template["annotations"] = {key: "runtime/default"}
    assert unrestricted(objects) == []
    template["annotations"] = {key: "unconfined"}
    assert unrestricted(objects) == [f"Deployment/http-nas: the annotation {key}=unconfined"]


@pytest.mark.parametrize(
    "values, found",
    [
        ({}, None),
        ({"resources": {"limits": {"cpu": "2"}}}, "auto"),
        ({"resources": {"limits": {"cpu": "2"}}, "workers": 1}, "1"),
        ({"workers": 3}, "3"),
    ],
)
def test_workers_follow_the_limit_of_the_cpu(
    chart: Chart, values: dict[str, Any], found: str | None
) -> None:
    assert environment(chart.objects(values)).get("HTTPNAS_WORKERS") == found
