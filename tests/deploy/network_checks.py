"""What no schema says of the network policies in deploy/: what is needed may pass, and nothing else.

Each check takes the objects of one kustomization and tells what is wrong with them, a line each. Rules for addresses
are tried with addresses: the ends of each private network, and what lies just outside. What a policy says is checked,
not what a cluster's network makes of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network
from typing import Any

from tests.deploy.model import LABEL, Manifest, Pods, name_of, pods
from tests.deploy.pod_checks import selects

type Problems = Iterator[str]
type Rule = Mapping[str, Any]

# The cluster, its network, and what is on the nodes, their metadata services included.
_PRIVATE = [
    ip_network(text)
    for text in (
        "10.0.0.0/8",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "fc00::/7",
        "fe80::/10",
    )
]
INSIDE = [str(network[end]) for network in _PRIVATE for end in (0, -1)]
OUTSIDE = ["1.1.1.1", "223.255.255.254", "2000::1"]
OUTSIDE += [str(address) for network in _PRIVATE for address in (network[0] - 1, network[-1] + 1)]
# What gives pods without keys their rights to a bucket.
IDENTITY = {("169.254.169.254", 80), ("169.254.170.23", 80), ("fd00:ec2::23", 80), ("169.254.169.252", 988)}
# No label of ours: a pod of others.
STRANGER = Pods("a stranger", {}, {}, set())


def traffic_is_denied_by_default(manifests: list[Manifest]) -> Problems:
    """For each pod of ours one policy that allows nothing, and for none of others."""
    denying = [
        item["spec"]
        for item in manifests
        if item["kind"] == "NetworkPolicy" and not item["spec"].keys() & {"ingress", "egress"}
    ]
    for spec in denying:
        if not spec["podSelector"]:
            yield "NetworkPolicy: denies traffic to pods of others"
    for each in pods(manifests):
        both = [spec for spec in denying if set(spec["policyTypes"]) == {"Ingress", "Egress"}]
        if not any(selects(spec["podSelector"], each) for spec in both):
            yield f"{each.where}: no policy denies its traffic"


def workers_reach_what_they_need(manifests: list[Manifest]) -> Problems:
    """Names, wherever they are answered; models and buckets on the internet; without a volume, their identity."""
    for worker in (each for each in pods(manifests) if each.is_worker):
        rules = list(_rules(manifests, worker, "egress"))
        wanted = [("UDP", 53, address) for address in INSIDE + OUTSIDE]
        wanted += [("TCP", 53, address) for address in INSIDE + OUTSIDE]
        wanted += [("TCP", 443, address) for address in OUTSIDE]
        if not any("persistentVolumeClaim" in volume for volume in worker.spec["volumes"]):
            wanted += [("TCP", port, address) for address, port in sorted(IDENTITY)]
        for protocol, port in dict.fromkeys(each[:2] for each in wanted):
            addresses = [each[2] for each in wanted if each[:2] == (protocol, port)]
            if not all(_reach(rules, protocol, port, address) for address in addresses):
                yield f"{worker.where}: may not reach {protocol} port {port}"


def nothing_else_is_reached(manifests: list[Manifest]) -> Problems:
    """No private address but for names and an identity, and no port of the internet but 53 and 443."""
    for name, rule in _all_rules(manifests, "egress"):
        ports = {port["port"] for port in rule.get("ports", [])}
        if not ports or any("endPort" in port for port in rule["ports"]):
            yield f"{name}: is for ports that nobody needs"
        for port in sorted(ports - {53}, key=str):
            allowed = {address for address, other in IDENTITY if other == port} | set(OUTSIDE if port == 443 else ())
            tried = {*INSIDE, *OUTSIDE, *(address for address, _ in IDENTITY)}
            if any(_passes(rule, address) for address in tried - allowed):
                yield f"{name}: opens port {port} to addresses that nobody needs"


def the_server_is_reached(manifests: list[Manifest]) -> Problems:
    """Workers may call it, and it lets them in."""
    found = pods(manifests)
    servers = [each for each in found if each.labels.get(LABEL + "component") == "coordinator"]
    for worker in (each for each in found if each.is_worker):
        out = list(_rules(manifests, worker, "egress"))
        for server in servers:
            if not any(_is_for(rule, "to", peer=server, server=server) for rule in out):
                yield f"{worker.where}: may not reach {server.where}"
            into = _rules(manifests, server, "ingress")
            if not any(_is_for(rule, "from", peer=worker, server=server) for rule in into):
                yield f"{server.where}: does not let {worker.where} in"


def metrics_are_reached(manifests: list[Manifest]) -> Problems:
    """Prometheus, which is in another namespace, is let in where there is something to scrape."""
    for worker in (each for each in pods(manifests) if each.is_worker):
        named = {port["name"] for container in worker.spec["containers"] for port in container.get("ports", [])}
        allowed = [
            {port["port"] for port in rule.get("ports", [])}
            for rule in _rules(manifests, worker, "ingress")
            if any("namespaceSelector" in peer for peer in rule.get("from", []))
        ]
        if "metrics" in named and {"metrics"} not in allowed:
            yield f"{worker.where}: its metrics may not be scraped"


def strangers_stay_strangers(manifests: list[Manifest]) -> Problems:
    """Who comes in is named by labels, pods and, if they are elsewhere, namespaces; so are the pods that are called."""
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for name, rule in _all_rules(manifests, direction):
            if direction == "ingress" and not (rule.get("from") and rule.get("ports")):
                yield f"{name}: lets everyone in"
            for peer in rule.get(peers, []):
                if direction == "ingress" and "ipBlock" in peer:
                    yield f"{name}: lets addresses in"
                anyone = "ipBlock" not in peer and selects(peer.get("podSelector", {}), STRANGER)
                if anyone or peer.get("namespaceSelector", peer) == {}:
                    yield f"{name}: is for pods of others"


def _all_rules(manifests: list[Manifest], direction: str) -> Iterator[tuple[str, Rule]]:
    for item in manifests:
        if item["kind"] == "NetworkPolicy":
            for rule in item["spec"].get(direction, []):
                yield name_of(item), rule


def _rules(manifests: list[Manifest], each: Pods, direction: str) -> Iterator[Rule]:
    for item in manifests:
        spec = item.get("spec", {})
        # Rules of a direction that is not among the types count for nothing.
        if item["kind"] == "NetworkPolicy" and direction.title() in spec["policyTypes"]:
            yield from spec.get(direction, []) if selects(spec["podSelector"], each) else []


def _reach(rules: list[Rule], protocol: str, port: int, address: str) -> bool:
    wanted = {"protocol": protocol, "port": port}
    return any(wanted in (rule.get("ports") or [wanted]) and _passes(rule, address) for rule in rules)


def _passes(rule: Rule, address: str) -> bool:
    """Whether an egress rule is for an address; without `to`, it is for all."""
    peers = rule.get("to", [])
    return not peers or any(_is_in(address, peer["ipBlock"]) for peer in peers if "ipBlock" in peer)


def _is_in(address: str, block: Mapping[str, Any]) -> bool:
    found = ip_address(address)
    return found in ip_network(block["cidr"]) and not any(found in ip_network(no) for no in block.get("except", []))


def _is_for(rule: Rule, peers: str, *, peer: Pods, server: Pods) -> bool:
    """Whether a rule is for these pods, and for a port of the server."""
    own = [port for container in server.spec["containers"] for port in container.get("ports", [])]
    ports = {port["name"] for port in own} | {port["containerPort"] for port in own}
    selected = any(selects(item["podSelector"], peer) for item in rule.get(peers, []) if set(item) == {"podSelector"})
    return selected and any(port["port"] in ports for port in rule.get("ports", []))


NETWORK_CHECKS = (
    traffic_is_denied_by_default,
    workers_reach_what_they_need,
    nothing_else_is_reached,
    the_server_is_reached,
    metrics_are_reached,
    strangers_stay_strangers,
)
