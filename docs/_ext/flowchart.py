"""Flowcharts of the pages as SVG, drawn while the site is built: no script and no network in the reader's browser.

The source is the small part of Mermaid's language that the pages use, so that code hosts that know Mermaid show the
same picture: ``flowchart LR``, nodes ``A[text]``, ``A(text)``, ``A[(text)]``, edges ``-->``, ``<-->``, ``==>``,
``-.->`` with or without text, and chains of them. Anything else is an error, which fails the build.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

from docutils import nodes
from docutils.parsers.rst import Directive

NODE = r"(\w+)(\[\(.*?\)\]|\[.*?\]|\(.*?\)|\{.*?\})?"
EDGE = re.compile(r"\s*(<)?(?:(--|==)\s*(?!>)(?P<text>.+?)\s*\2>|-\.\s*(?P<dotted>.+?)\s*\.->|(-\.->|-->|==>))\s*")
CHAR, LINE, PAD, GAP, SPACE = 6.9, 17, 10, 20, 38
WIDE = 900  # wider pictures would be too small to read on a page: they stand


@dataclass
class Node:
    name: str
    lines: list[str] = field(default_factory=list)
    shape: str = "["
    layer: int = 0
    # center and size along (layers) and across (within a layer); dummies of long edges have no size
    at: float = 0.0
    across: float = 0.0
    width: float = 0.0
    height: float = 0.0
    dummy: bool = False


@dataclass
class Edge:
    start: str
    end: str
    text: str = ""
    kind: str = "solid"
    both: bool = False
    path: list[str] = field(default_factory=list)


def parse(source: str) -> tuple[str, dict[str, Node], list[Edge]]:
    """Direction, nodes and edges of a flowchart.

    Raises:
        ValueError: for a line that is not understood.
    """
    head, *lines = [line.strip() for line in source.strip().splitlines()]
    match = re.fullmatch(r"(?:flowchart|graph) (LR|TB|TD)", head)
    if not match:
        raise ValueError(f"a flowchart begins with `flowchart LR` or `flowchart TB`, got {head!r}")
    found: dict[str, Node] = {}
    edges: list[Edge] = []
    for line in lines:
        if not line or line.startswith("%%"):
            continue
        position, previous, link = 0, None, None
        while position < len(line):
            node = re.compile(NODE).match(line, position)
            if not node:
                raise ValueError(f"flowchart: {line[position:]!r} is no node in the line {line!r}")
            name, text = node.groups()
            entry = found.setdefault(name, Node(name))
            if text or not entry.lines:
                label = re.sub(r"^[\[({]+|[\])}]+$", "", text or name).strip('"')
                entry.lines = [part.strip() for part in re.split(r"<br\s*/?>", label)]
                entry.shape = "[(" if (text or "").startswith("[(") else (text or "[")[0]
            if previous and link:
                label = link["text"] or link["dotted"] or ""
                body = link[0]
                kind = "dotted" if "-." in body else "thick" if "==" in body else "solid"
                edges.append(Edge(previous, name, label.strip('"'), kind, bool(link[1])))
            position, previous = node.end(), name
            if position >= len(line):
                break
            link = EDGE.match(line, position)
            if not link:
                raise ValueError(f"flowchart: {line[position:]!r} is no arrow in the line {line!r}")
            position = link.end()
    return match[1], found, edges


def _layers(found: dict[str, Node], edges: list[Edge]) -> list[list[str]]:
    """Nodes by longest path from a source, long edges cut by dummies, crossings reduced by barycenters."""
    order: list[str] = []
    state: dict[str, int] = {}
    back: set[int] = set()

    def visit(name: str) -> None:
        state[name] = 1
        for index, edge in enumerate(edges):
            if edge.start == name:
                if state.get(edge.end) == 1:
                    back.add(index)  # closes a circle: drawn against the direction
                elif edge.end not in state:
                    visit(edge.end)
        state[name] = 2
        order.insert(0, name)

    for name in found:
        if name not in state:
            visit(name)
    down = [(edge.end, edge.start) if i in back else (edge.start, edge.end) for i, edge in enumerate(edges)]
    for name in order:
        for start, end in down:
            if start == name:
                found[end].layer = max(found[end].layer, found[name].layer + 1)
    for name in reversed(order):  # pull sources towards what they feed
        below = [found[end].layer for start, end in down if start == name]
        if below and not any(end == name for _, end in down):
            found[name].layer = min(below) - 1
    layers: list[list[str]] = [[] for _ in range(max(node.layer for node in found.values()) + 1)]
    for name in found:
        layers[found[name].layer].append(name)
    for index, edge in enumerate(edges):
        start, end = down[index]
        chain = [start]
        for layer in range(found[start].layer + 1, found[end].layer):
            name = f"{index}.{layer}"
            found[name] = Node(name, layer=layer, dummy=True)
            layers[layer].append(name)
            chain.append(name)
        chain.append(end)
        edge.path = chain[::-1] if index in back else chain
    links = [pair for edge in edges for pair in pairwise(edge.path)]
    for sweep in range(12):
        for layer in layers if sweep % 2 == 0 else layers[::-1]:
            place = {name: i for names in layers for i, name in enumerate(names)}

            def key(name: str, place: dict[str, int] = place) -> float:
                near = [place[b] if a == name else place[a] for a, b in links if name in (a, b)]
                return sum(near) / len(near) if near else place[name]

            layer.sort(key=key)
    return layers


def _place(found: dict[str, Node], edges: list[Edge], layers: list[list[str]], across: bool) -> tuple[float, float]:
    """Centers of the nodes; ``across`` False: layers run to the right, True: downwards."""
    for node in found.values():
        node.width = 0 if node.dummy else max(max(map(len, node.lines)) * CHAR + 2 * PAD, 34)
        node.height = 0 if node.dummy else len(node.lines) * LINE + 14
    thickness = [max((found[n].height if across else found[n].width) for n in layer) for layer in layers]
    position = 8.0
    for index, layer in enumerate(layers):
        for name in layer:
            found[name].at = position + thickness[index] / 2
        texts = [len(e.text) * CHAR * 0.9 + 22 for e in edges if e.text and found[e.path[0]].layer == index]
        position += thickness[index] + (max([SPACE, *([] if across else texts)]))
    length = position - SPACE + 8

    def size(name: str) -> float:
        return found[name].width if across else found[name].height

    for layer in layers:
        at = -sum(size(name) + GAP for name in layer) / 2
        for name in layer:
            found[name].across = at + size(name) / 2
            at += size(name) + GAP
    links = [pair for edge in edges for pair in pairwise(edge.path)]
    for sweep in range(24):
        for layer in layers if sweep % 2 == 0 else layers[::-1]:
            wish = {}
            for name in layer:
                above = [found[a].across for a, b in links if b == name]
                below = [found[b].across for a, b in links if a == name]
                near = (above or below) if sweep % 2 == 0 else (below or above)
                wish[name] = sum(near) / len(near) if near else found[name].across
            # keep order and gaps: push to the right where it is too tight, then center what was pushed
            pushed, end = {}, None
            for name in layer:
                least = wish[name] if end is None else end + size(name) / 2 + GAP
                pushed[name] = max(wish[name], least)
                end = pushed[name] + size(name) / 2
            shift = sum(pushed[name] - wish[name] for name in layer) / len(layer)
            for name in layer:
                found[name].across = pushed[name] - shift
    low = min(node.across - size(node.name) / 2 for node in found.values())
    for node in found.values():
        node.across += 8 - low
    return length, max(node.across + size(node.name) / 2 for node in found.values()) + 8


def _svg(source: str, direction: str, label: str) -> tuple[str, float]:
    _, found, edges = parse(source)
    layers = _layers(found, edges)
    down = direction == "TB"
    length, breadth = _place(found, edges, layers, down)
    width, height = (breadth, length) if down else (length, breadth)

    def point(node: Node, side: int) -> tuple[float, float]:
        if down:
            return node.across, node.at + side * node.height / 2
        return node.at + side * node.width / 2, node.across

    parts = []
    for edge in edges:
        chain = [found[name] for name in edge.path]
        forward = 1 if chain[-1].layer >= chain[0].layer else -1
        points = [point(chain[0], forward)]
        for dummy in chain[1:-1]:
            points.append(point(dummy, 0))
        points.append(point(chain[-1], -forward))
        path = f"M{points[0][0]:.1f},{points[0][1]:.1f}"
        for (x0, y0), (x1, y1) in pairwise(points):
            middle = ((y0 + y1) if down else (x0 + x1)) / 2
            bends = [(x0, middle), (x1, middle)] if down else [(middle, y0), (middle, y1)]
            path += " C" + " ".join(f"{x:.1f},{y:.1f}" for x, y in [*bends, (x1, y1)])
        start = ' marker-start="url(#arrow)"' if edge.both else ""
        parts.append(f'<path class="edge {edge.kind}" d="{path}" marker-end="url(#arrow)"{start}/>')
        if edge.text:
            (x0, y0), (x1, y1) = points[0], points[1]
            x, y = x0 + 0.6 * (x1 - x0), y0 + 0.6 * (y1 - y0)
            box = len(edge.text) * CHAR * 0.9 + 6
            parts.append(f'<rect class="tag" x="{x - box / 2:.1f}" y="{y - 9:.1f}" width="{box:.1f}" height="18"/>'
                         f'<text class="tag" x="{x:.1f}" y="{y + 4:.1f}">{escape(edge.text)}</text>')  # fmt: skip
    for node in found.values():
        if node.dummy or not any(node.lines):
            continue
        x, y = (node.across, node.at) if down else (node.at, node.across)
        radius = {"(": node.height / 2, "[(": 14}.get(node.shape, 5)
        kind = {"[(": " store", "(": " round"}.get(node.shape, "")
        parts.append(f'<rect class="node{kind}" x="{x - node.width / 2:.1f}" y="{y - node.height / 2:.1f}" '
                     f'width="{node.width:.1f}" height="{node.height:.1f}" rx="{radius}"/>')  # fmt: skip
        top = y - (len(node.lines) - 1) * LINE / 2 + 5
        for index, line in enumerate(node.lines):
            parts.append(f'<text x="{x:.1f}" y="{top + index * LINE:.1f}">{escape(line)}</text>')
    marker = (
        '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        'orient="auto-start-reverse"><path d="M0,0L10,5L0,10z"/></marker></defs>'
    )
    head = f'<svg class="{{}}" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img" '
    return f'{head}aria-label="{escape(label)}">{marker}{"".join(parts)}</svg>', width


class Flowchart(Directive):
    """``mermaid``: the picture, lying on wide screens and standing on narrow ones."""

    has_content = True
    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        source = "\n".join(self.content)
        try:
            direction, found, edges = parse(source)
            words = {name: " ".join(node.lines) for name, node in found.items()}
            label = "; ".join(f"{words[edge.start]} to {words[edge.end]}" for edge in edges)
            (lying, width), (standing, _) = _svg(source, "LR", label), _svg(source, "TB", label)
            both = direction == "LR" and width <= WIDE
            pictures = lying.format("lying") + standing.format("standing") if both else standing.format("only")
        except ValueError as error:
            raise self.error(str(error)) from error
        return [nodes.raw("", f'<div class="flowchart">{pictures}</div>', format="html")]


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("mermaid", Flowchart)
    # pages hold the drawn pictures: they are drawn again when this file changes
    return {"version": "1", "env_version": crc32(Path(__file__).read_bytes()), "parallel_read_safe": True}
