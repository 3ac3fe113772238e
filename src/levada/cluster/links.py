"""Broken links of a cluster: which machine's frames no longer reach which other machine.

The rules are at the switch, in the control plane's namespace, so whoever sends over a broken link is told nothing. A
link is a pair of ports of the switch, from and to; the control plane's port is the switch itself. The kernel's rules
are the only record.
"""

import json
from collections.abc import Collection, Iterable
from enum import StrEnum

from levada.cluster import network
from levada.cluster.plan import ClusterPlan
from levada.cluster.shell import run

Link = tuple[str, str]

TABLE = "levada-faults"
BETWEEN, TO_CONTROL, FROM_CONTROL = "between-nodes", "to-control", "from-control"
RULES = f"""
table bridge {TABLE} {{
  set {BETWEEN} {{ type ifname . ifname; }}
  set {TO_CONTROL} {{ type ifname; }}
  set {FROM_CONTROL} {{ type ifname; }}
  chain forward {{ type filter hook forward priority 0; iifname . oifname @{BETWEEN} drop; }}
  chain input {{ type filter hook input priority 0; iifname @{TO_CONTROL} drop; }}
  chain output {{ type filter hook output priority 0; oifname @{FROM_CONTROL} drop; }}
}}
"""


class Direction(StrEnum):
    """Which way a link is broken, as the node that is named sees it."""

    BOTH = "both"
    INBOUND = "in"
    OUTBOUND = "out"


def between(port: str, peers: Iterable[str], direction: Direction) -> set[Link]:
    """The links of a port with its peers in a direction."""
    out = {(port, peer) for peer in peers}
    return {
        Direction.BOTH: out | {(to, origin) for origin, to in out},
        Direction.INBOUND: {(to, origin) for origin, to in out},
        Direction.OUTBOUND: out,
    }[direction]


def ports(plan: ClusterPlan) -> dict[str, str]:
    """What hangs on each port of the switch, as a person calls it."""
    return {node.link: node.name for node in plan.nodes} | {network.SWITCH: "the control plane"}


def tell(broken: Collection[Link], names: dict[str, str]) -> list[str]:
    """Broken links in as few sentences as say it; `names` has every port of the switch."""
    told: list[str] = []
    left = set(broken)
    for port, name in names.items():
        others = [other for other in names if other != port]
        for direction, text in (
            (Direction.BOTH, f"{name} is cut off"),
            (Direction.INBOUND, f"{name} receives nothing"),
            (Direction.OUTBOUND, f"nothing that {name} sends arrives"),
        ):
            whole = between(port, others, direction)
            if whole <= left:
                told.append(text)
                left -= whole
    for origin, to in sorted(left):
        if (to, origin) not in left:
            told.append(f"nothing from {names[origin]} reaches {names[to]}")
        elif origin < to:
            told.append(f"{names[origin]} and {names[to]} do not reach each other")
    return told


def script(changed: Iterable[Link], verb: str) -> str:
    """The nft commands that `add` links to, or `delete` them from, the broken ones."""
    lines = []
    for origin, to in sorted(changed):
        if to == network.SWITCH:
            name, element = TO_CONTROL, f'"{origin}"'
        elif origin == network.SWITCH:
            name, element = FROM_CONTROL, f'"{to}"'
        else:
            name, element = BETWEEN, f'"{origin}" . "{to}"'
        lines.append(f"{verb} element bridge {TABLE} {name} {{ {element} }}")
    return "\n".join(lines) + "\n"


def parse(listing: str) -> set[Link]:
    """The broken links in what `nft --json list table` prints."""
    broken: set[Link] = set()
    for item in json.loads(listing)["nftables"]:
        found = item.get("set", {})
        for element in found.get("elem", []):
            if found["name"] == TO_CONTROL:
                broken.add((element, network.SWITCH))
            elif found["name"] == FROM_CONTROL:
                broken.add((network.SWITCH, element))
            else:
                origin, to = element["concat"]
                broken.add((origin, to))
    return broken


def _nft(plan: ClusterPlan, *words: str, stdin: str | None = None) -> str:
    return run(["nsenter", f"--net={network.NAMESPACES / plan.control_namespace}", "nft", *words], stdin=stdin)


def _has_table(plan: ClusterPlan) -> bool:
    return network.exists(plan.control_namespace) and TABLE in _nft(plan, "list", "tables", "bridge")


def broken(plan: ClusterPlan) -> set[Link]:
    """The links that are broken now."""
    return parse(_nft(plan, "--json", "list", "table", "bridge", TABLE)) if _has_table(plan) else set()


def cut(plan: ClusterPlan, links: Iterable[Link]) -> None:
    """Break links, all at the same moment."""
    _nft(plan, "-f", "-", stdin=("" if _has_table(plan) else RULES) + script(links, "add"))


def mend(plan: ClusterPlan, port: str | None = None) -> None:
    """Undo what `cut` did to the links of one port, or of all."""
    if not _has_table(plan):
        return
    if port is None:
        _nft(plan, "delete", "table", "bridge", TABLE)
    else:
        _nft(plan, "-f", "-", stdin=script((link for link in broken(plan) if port in link), "delete"))
