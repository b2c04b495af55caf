"""Evaluate the network policies in deploy/: workers reach what they need, and nothing else.

Policies for addresses are tried with addresses: the ends of each private network, and their neighbours outside.
Limit: the check reads policies, and some clusters do not enforce them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network
from itertools import product
from typing import Any

from tests.deploy.model import Manifest, Pods, name_of, pods, selects

type Rule = Mapping[str, Any]
type Target = tuple[str, int, str]

# The cluster, its network, and the nodes with their metadata services.
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
INSIDE = {str(network[end]) for network in _PRIVATE for end in (0, -1)}
OUTSIDE = {"1.1.1.1", "223.255.255.254", "2000::1"}
OUTSIDE |= {str(address) for network in _PRIVATE for address in (network[0] - 1, network[-1] + 1)}
# The services that give pods without keys their rights to a bucket.
IDENTITY = {("169.254.169.254", 80), ("169.254.170.23", 80), ("fd00:ec2::23", 80), ("169.254.169.252", 988)}
ADDRESSES = INSIDE | OUTSIDE | {address for address, _ in IDENTITY}
# Those that workers need, and some that they don't.
PORTS = [("UDP", 53), ("TCP", 53), ("TCP", 22), ("TCP", 80), ("TCP", 443), ("TCP", 988), ("TCP", 6379), ("UDP", 65535)]
SERVER_PORT = ("TCP", 6379)
STRANGER = {"app": "another"}


def network_problems(manifests: list[Manifest]) -> Iterator[str]:
    """Yield what a pod can't reach and should, and what it can and should not."""
    policies = [item for item in manifests if item["kind"] == "NetworkPolicy"]
    for item in policies:
        yield from _open_to_strangers(name_of(item), item["spec"])
    found = pods(manifests)
    for each in found:
        types = {kind for spec in _selecting(policies, each) for kind in spec["policyTypes"]}
        yield from (f"{each.where}: no policy denies its {kind}" for kind in sorted({"Ingress", "Egress"} - types))
    for worker in (each for each in found if each.is_worker):
        out = _rules(policies, worker, "egress")
        reached = {(*port, address) for port, address in product(PORTS, ADDRESSES) if _passes(out, *port, address)}
        yield from (f"{worker.where}: can't reach {target}" for target in _ports(_needed(worker) - reached))
        yield from (f"{worker.where}: reaches {target} too widely" for target in _ports(reached - _needed(worker)))
        for server in (each for each in found if not each.is_worker):
            if not _names(out, "to", server):
                yield f"{worker.where}: can't reach {server.where}"
            if not _names(_rules(policies, server, "ingress"), "from", worker):
                yield f"{server.where}: does not let {worker.where} in"


def _needed(worker: Pods) -> set[Target]:
    """Return DNS anywhere, models and buckets on the internet, and the identity of a pod that has no volume."""
    needed = {(protocol, 53, address) for protocol, address in product(("UDP", "TCP"), ADDRESSES)}
    needed |= {("TCP", 443, address) for address in OUTSIDE}
    if not any("persistentVolumeClaim" in volume for volume in worker.spec["volumes"]):
        needed |= {("TCP", port, address) for address, port in IDENTITY}
    return needed


def _ports(targets: set[Target]) -> list[str]:
    return sorted({f"{protocol} port {port}" for protocol, port, _ in targets})


def _selecting(policies: list[Manifest], each: Pods) -> list[dict[str, Any]]:
    return [item["spec"] for item in policies if selects(item["spec"]["podSelector"], each.labels)]


def _rules(policies: list[Manifest], each: Pods, direction: str) -> list[Rule]:
    """Return the rules of the policies that list the direction among their types. Others have no effect."""
    specs = [spec for spec in _selecting(policies, each) if direction.title() in spec["policyTypes"]]
    return [rule for spec in specs for rule in spec.get(direction, [])]


def _passes(rules: list[Rule], protocol: str, port: int, address: str) -> bool:
    return any(_has_port(rule, protocol, port) and _has_address(rule, address) for rule in rules)


def _has_port(rule: Rule, protocol: str, port: int) -> bool:
    """Return whether a rule is for a port. A rule without ports is for all."""
    ports = rule.get("ports") or [{"protocol": protocol, "port": port}]
    return any(
        item["protocol"] == protocol and item["port"] <= port <= item.get("endPort", item["port"]) for item in ports
    )


def _has_address(rule: Rule, address: str) -> bool:
    """Return whether an egress rule is for an address. A rule without `to` is for all."""
    blocks = [peer["ipBlock"] for peer in rule.get("to", []) if "ipBlock" in peer]
    found = ip_address(address)
    return not rule.get("to") or any(
        found in ip_network(block["cidr"]) and not any(found in ip_network(no) for no in block.get("except", []))
        for block in blocks
    )


def _names(rules: list[Rule], peers: str, other: Pods) -> bool:
    """Return whether a rule names these pods by their labels, for the server's port."""
    return any(
        selects(peer["podSelector"], other.labels)
        for rule in rules
        if _has_port(rule, *SERVER_PORT)
        for peer in rule.get(peers, [])
        if set(peer) == {"podSelector"}
    )


def _open_to_strangers(name: str, spec: Mapping[str, Any]) -> Iterator[str]:
    if selects(spec["podSelector"], STRANGER):
        yield f"{name}: applies to pods of others"
    for rule in spec.get("ingress", []):
        if not rule.get("from") or any("ipBlock" in peer for peer in rule["from"]):
            yield f"{name}: lets pods of others in"
    for rule in (*spec.get("ingress", []), *spec.get("egress", [])):
        for peer in (*rule.get("from", []), *rule.get("to", [])):
            named = "ipBlock" in peer or peer.get("namespaceSelector", {}).get("matchLabels")
            if not named and selects(peer.get("podSelector", {}), STRANGER):
                yield f"{name}: names pods of others"
