"""Kubernetes objects as text, read strictly and checked for what an API server would refuse.

What the schemas say is not all: a selector that selects nothing, a port that no container has or a
claim that nobody made pass them, and show only in a cluster.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from typing import Any, TypeGuard

import pytest

yaml = pytest.importorskip("yaml")
kubernetes_validate = pytest.importorskip("kubernetes_validate")

from kubernetes_validate.utils import latest_version, major_minor  # noqa: E402
from yaml import SafeLoader  # noqa: E402

Object = dict[str, Any]

#: The oldest with a schema, the one that is usual, the newest.
VERSIONS = ("1.25", "1.32", major_minor(latest_version()))
SERVICE_MONITOR = ("monitoring.coreos.com/v1", "ServiceMonitor")
CERTIFICATE = ("cert-manager.io/v1", "Certificate")
#: What every namespace has by itself.
ALWAYS_THERE = frozenset({"ServiceAccount/default"})

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
_DNS_NAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z"
)
_LABEL_KEY = re.compile(r"([a-z0-9][-a-z0-9.]{0,252}/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?\Z")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?\Z")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|[KMGTPE]i|[MGTPE])?\Z")


class _UniqueKeys(SafeLoader):  # type: ignore[misc]
    """YAML's safe loader, to which a key that is given twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is given twice", node.value[index][0].start_mark
                )
        return super().construct_mapping(node, deep)


def read(text: str) -> list[Object]:
    """Return the objects in YAML *text*, those of a List one by one.

    :raises yaml.YAMLError: it is no YAML, or gives a key twice.
    :raises ValueError: it holds what is no object, or nothing.
    """
    found: list[Object] = []
    for document in yaml.load_all(text, _UniqueKeys):
        is_list = isinstance(document, dict) and document.get("kind") == "List"
        found += document["items"] if is_list else [] if document is None else [document]
    for item in found:
        if not isinstance(item, dict) or not _names_itself(item):
            raise ValueError(f"not an object with apiVersion, kind and name: {item!r}")
    if not found:
        raise ValueError("no objects")
    return found


def _names_itself(item: Object) -> bool:
    metadata = item.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return all(isinstance(text, str) for text in (item.get("apiVersion"), item.get("kind"), name))


def title(item: Object) -> str:
    return f"{item['kind']}/{item['metadata']['name']}"


def select(objects: Collection[Object], kind: str) -> list[Object]:
    """Return those of a *kind*."""
    return [item for item in objects if item["kind"] == kind]


def only(objects: Collection[Object], kind: str) -> Object:
    """Return the one of its *kind*."""
    (found,) = select(objects, kind)
    return found


def pods(objects: Collection[Object]) -> Iterator[tuple[str, Object, Object]]:
    """Yield title, metadata and specification of every pod, or template of pods."""
    for item in objects:
        template = item
        if item["kind"] == "CronJob":
            template = item["spec"]["jobTemplate"]["spec"]["template"]
        elif item["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"):
            template = item["spec"]["template"]
        elif item["kind"] != "Pod":
            continue
        yield title(item), template.get("metadata", {}), template["spec"]


def containers(spec: Object) -> list[Object]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def complaints(
    objects: Collection[Object],
    elsewhere: Collection[str] = (),
    versions: Collection[str] = VERSIONS,
) -> list[str]:
    """Return what is wrong with *objects*.

    :param elsewhere: titles (``Kind/name``) of what is there without them.
    :param versions: of Kubernetes.
    """
    found = [*_schema(objects, versions)]
    if found:  # what follows relies on the shape
        return found
    known = {*map(title, objects), *elsewhere, *ALWAYS_THERE}
    found += _twice(objects)
    for item in objects:
        found += [f"{title(item)}: {what}" for what in [*_nulls(item), *_names(item)]]
    for name, metadata, spec in pods(objects):
        found += [f"{name}: {what}" for what in _pod(metadata, spec, known)]
    for check in (_selectors, _services, _backends, _targets, _monitors):
        found += check(objects)
    return found


def _schema(objects: Collection[Object], versions: Collection[str]) -> Iterator[str]:
    for item in objects:
        if (item["apiVersion"], item["kind"]) == SERVICE_MONITOR:
            yield from _monitor_shape(item)
            continue
        if (item["apiVersion"], item["kind"]) == CERTIFICATE:
            yield from _certificate_shape(item)
            continue
        for version in versions:
            if what := _violation(json.dumps(item), version):
                yield f"{title(item)} ({version}): {what}"


@cache
def _violation(item: str, version: str) -> str | None:
    try:
        kubernetes_validate.validate(json.loads(item), version, strict=True)
    except kubernetes_validate.SchemaNotFoundError as error:
        return str(error.message)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
    return None


def _monitor_shape(item: Object) -> Iterator[str]:
    """Check a kind that Kubernetes does not bring: just the fields that we need."""
    spec = item.get("spec")
    shape = {"selector": dict, "endpoints": list}
    if set(item) != {"apiVersion", "kind", "metadata", "spec"} or not _has_shape(spec, shape):
        yield f"{title(item)}: expected {shape} in spec, not {spec}"
        return
    if set(spec["selector"]) != {"matchLabels"}:
        yield f"{title(item)}: expected matchLabels, not {spec['selector']}"
    for endpoint in spec["endpoints"]:
        shape = {"port": str, "path": str, "interval": str}
        if endpoint.get("scheme") == "https":
            shape |= {"scheme": str, "tlsConfig": dict}
        token = endpoint.get("authorization", {"credentials": {"name": "", "key": ""}})
        if not _has_shape(token, {"credentials": dict}) or not _has_shape(
            token["credentials"], {"name": str, "key": str}
        ):
            yield f"{title(item)}: {token} does not name a token"
        if not _has_shape({k: v for k, v in endpoint.items() if k != "authorization"}, shape):
            yield f"{title(item)}: expected {shape}, not {endpoint}"


def _certificate_shape(item: Object) -> Iterator[str]:
    """Check the other one."""
    spec = item.get("spec")
    shape = {
        "secretName": str,
        "dnsNames": list,
        "usages": list,
        "privateKey": dict,
        "issuerRef": dict,
    }
    if set(item) != {"apiVersion", "kind", "metadata", "spec"} or not _has_shape(spec, shape):
        yield f"{title(item)}: expected {shape} in spec, not {spec}"


def _has_shape(item: Any, shape: Mapping[str, type]) -> TypeGuard[Object]:
    return (
        isinstance(item, dict)
        and set(item) == set(shape)
        and all(isinstance(item[key], kind) for key, kind in shape.items())
    )


def _twice(objects: Collection[Object]) -> Iterator[str]:
    seen = set()
    for item in objects:
        identity = (title(item), item["metadata"].get("namespace"))
        if identity in seen:
            yield f"{title(item)}: is there twice"
        seen.add(identity)


def _nulls(item: Any, where: str = "") -> Iterator[str]:
    """Schemas let null pass for everything; it is what a template leaves where it forgot one."""
    if item is None:
        yield f"{where} is null"
    elif isinstance(item, dict):
        for key, value in item.items():
            yield from _nulls(value, f"{where}.{key}")
    elif isinstance(item, list):
        for index, value in enumerate(item):
            yield from _nulls(value, f"{where}[{index}]")


def _names(item: Object) -> Iterator[str]:
    metadata = item["metadata"]
    pattern = _DNS_LABEL if item["kind"] == "Service" else _DNS_NAME
    if not pattern.match(metadata["name"]):
        yield f"is no name: {metadata['name']}"
    yield from _labels(metadata)
    if item["kind"] == "PersistentVolumeClaim":
        yield from _quantities(item["spec"]["resources"])


def _labels(metadata: Object) -> Iterator[str]:
    for key, value in metadata.get("labels", {}).items():
        if not _LABEL_KEY.match(key) or not _LABEL_VALUE.match(value):
            yield f"is no label: {key}={value}"


def _quantities(resources: Object) -> Iterator[str]:
    for part in ("requests", "limits"):
        for what, quantity in resources.get(part, {}).items():
            if not _QUANTITY.match(str(quantity)):
                yield f"is no quantity of {what}: {quantity}"


def _pod(metadata: Object, spec: Object, known: Collection[str]) -> Iterator[str]:
    yield from _labels(metadata)
    for reference in _references(spec):
        if reference not in known:
            yield f"there is no {reference}"
    volumes = [volume["name"] for volume in spec.get("volumes", [])]
    yield from _repeated("volume", volumes)
    for container in containers(spec):
        yield from _container(container, volumes)
    ports = [
        port["name"] for c in containers(spec) for port in c.get("ports", []) if "name" in port
    ]
    yield from _repeated("port", ports)


def _references(spec: Object) -> Iterator[str]:
    yield f"ServiceAccount/{spec.get('serviceAccountName', 'default')}"
    for volume in spec.get("volumes", []):
        if claim := volume.get("persistentVolumeClaim"):
            yield f"PersistentVolumeClaim/{claim['claimName']}"
        if config := volume.get("configMap"):
            yield f"ConfigMap/{config['name']}"


def _container(container: Object, volumes: Collection[str]) -> Iterator[str]:
    mounts = container.get("volumeMounts", [])
    for mount in mounts:
        if mount["name"] not in volumes:
            yield f"there is no volume {mount['name']}"
    yield from _repeated("mount path", [mount["mountPath"] for mount in mounts])
    yield from _repeated("variable", [variable["name"] for variable in container.get("env", [])])
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        get = container.get(kind, {}).get("httpGet")
        if get and not _has_port(container, get["port"]):
            yield f"the {kind} asks at a port that is not there: {get['port']}"
    yield from _quantities(container.get("resources", {}))


def _has_port(container: Object, port: str | int) -> bool:
    key = "name" if isinstance(port, str) else "containerPort"
    return any(known.get(key) == port for known in container.get("ports", []))


def _repeated(what: str, names: list[str]) -> Iterator[str]:
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"the {what} {name} is there {names.count(name)} times"


def selected(objects: Collection[Object], labels: Object) -> list[tuple[str, Object]]:
    """Return title and specification of the pods that have all of *labels*."""
    return [
        (name, spec)
        for name, metadata, spec in pods(objects)
        if labels.items() <= metadata.get("labels", {}).items()
    ]


def _selectors(objects: Collection[Object]) -> Iterator[str]:
    """What is to find pods must find some, and a controller its own only."""
    places: dict[str, Callable[[Object], Object]] = {
        "Deployment": lambda spec: spec["selector"].get("matchLabels", {}),
        "StatefulSet": lambda spec: spec["selector"].get("matchLabels", {}),
        "DaemonSet": lambda spec: spec["selector"].get("matchLabels", {}),
        "PodDisruptionBudget": lambda spec: spec["selector"].get("matchLabels", {}),
        "NetworkPolicy": lambda spec: spec["podSelector"].get("matchLabels", {}),
    }
    for item in objects:
        if item["kind"] not in places:
            continue
        found = [name for name, _ in selected(objects, places[item["kind"]](item["spec"]))]
        is_controller = item["kind"] in ("Deployment", "StatefulSet", "DaemonSet")
        if not found or (is_controller and found != [title(item)]):
            yield f"{title(item)}: its selector finds {found}"


def _services(objects: Collection[Object]) -> Iterator[str]:
    for service in select(objects, "Service"):
        if "selector" not in service["spec"]:
            continue
        found = selected(objects, service["spec"]["selector"])
        if not found:
            yield f"{title(service)}: its selector finds nothing"
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            for name, spec in found:
                if not any(_has_port(container, target) for container in containers(spec)):
                    yield f"{title(service)}: {name} has no port {target}"


def _backends(objects: Collection[Object]) -> Iterator[str]:
    ports = {
        service["metadata"]["name"]: service["spec"]["ports"]
        for service in select(objects, "Service")
    }
    for ingress in select(objects, "Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                wanted = backend["port"]
                if not any(
                    port.get("name") == wanted.get("name", port.get("name"))
                    and port["port"] == wanted.get("number", port["port"])
                    for port in ports.get(backend["name"], [])
                ):
                    yield f"{title(ingress)}: no Service has {backend}"


def _targets(objects: Collection[Object]) -> Iterator[str]:
    for scaler in select(objects, "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        if f"{target['kind']}/{target['name']}" not in map(title, objects):
            yield f"{title(scaler)}: there is no {target['kind']}/{target['name']}"


def _monitors(objects: Collection[Object]) -> Iterator[str]:
    for monitor in select(objects, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        ports = {
            port.get("name")
            for service in select(objects, "Service")
            if wanted <= service["metadata"].get("labels", {}).items()
            for port in service["spec"]["ports"]
        }
        for endpoint in monitor["spec"]["endpoints"]:
            if endpoint["port"] not in ports:
                yield f"{title(monitor)}: no Service that it finds has a port {endpoint['port']}"


#: Kinds of volumes that the Pod Security Standard "restricted" allows.
_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
_SECCOMP = ("RuntimeDefault", "Localhost")
_SELINUX = (None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t")
_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
}


def unrestricted(objects: Collection[Object]) -> list[str]:
    """Return what the Pod Security Standard "restricted" would refuse of the pods in *objects*."""
    return [
        f"{name}: {what}"
        for name, metadata, spec in pods(objects)
        for what in [*_pod_liberties(metadata, spec), *_all_liberties(spec)]
    ]


def _pod_liberties(metadata: Object, spec: Object) -> Iterator[str]:
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield key
    for volume in spec.get("volumes", []):
        if not _VOLUMES & set(volume):
            yield f"the kind of the volume {volume}"
    for sysctl in spec.get("securityContext", {}).get("sysctls", []):
        if sysctl["name"] not in _SYSCTLS:
            yield f"the sysctl {sysctl['name']}"
    for key, value in metadata.get("annotations", {}).items():
        if key.startswith("container.apparmor.security.beta.kubernetes.io/") and (
            value != "runtime/default" and not value.startswith("localhost/")
        ):
            yield f"the annotation {key}={value}"


def _all_liberties(spec: Object) -> Iterator[str]:
    of_pod = spec.get("securityContext", {})
    yield from _context_liberties(of_pod)
    for container in [*containers(spec), *spec.get("ephemeralContainers", [])]:
        own = container.get("securityContext", {})
        liberties = [
            *_context_liberties(own),
            *_container_liberties(own),
            *_inherited_liberties({**of_pod, **own}),
            *_host_liberties(container),
        ]
        yield from (f"{container['name']}: {what}" for what in liberties)


def _context_liberties(context: Object) -> Iterator[str]:
    """What neither a pod nor a container may ask for."""
    if context.get("runAsUser") == 0:
        yield "runAsUser 0"
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield "hostProcess"
    selinux = context.get("seLinuxOptions", {})
    if selinux.get("type") not in _SELINUX or selinux.get("user") or selinux.get("role"):
        yield f"seLinuxOptions {selinux}"
    if context.get("appArmorProfile", {}).get("type", "RuntimeDefault") not in _SECCOMP:
        yield f"appArmorProfile {context['appArmorProfile']}"


def _container_liberties(own: Object) -> Iterator[str]:
    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield "not all capabilities are dropped"
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"capabilities {capabilities['add']}"
    if own.get("procMount", "Default") != "Default":
        yield f"procMount {own['procMount']}"


def _inherited_liberties(context: Object) -> Iterator[str]:
    """What a container may have of its pod."""
    if context.get("runAsNonRoot") is not True:
        yield "runAsNonRoot is not true"
    if context.get("seccompProfile", {}).get("type") not in _SECCOMP:
        yield f"seccompProfile {context.get('seccompProfile')}"


def _host_liberties(container: Object) -> Iterator[str]:
    for port in container.get("ports", []):
        if port.get("hostPort"):
            yield f"hostPort {port['hostPort']}"
    hooks = container.get("lifecycle", {}).values()
    probes = [container.get(f"{kind}Probe", {}) for kind in ("startup", "liveness", "readiness")]
    for action in [*hooks, *probes]:
        for kind in ("httpGet", "tcpSocket"):
            if action.get(kind, {}).get("host"):
                yield f"{kind} at the host {action[kind]['host']}"
