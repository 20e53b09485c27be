"""Reads a disassembly by `cuobjdump -sass`: which instructions a kernel has, and which are in its loops.

A loop is a natural one: a branch back to a block that dominates it. A jump back from code that was moved out of
line is none. What is counted is the text of the program, not how often it runs.
"""
import re
from collections import Counter
from dataclasses import dataclass, field

ARCHITECTURE = re.compile(r"^\s*code for sm_(\d+)")
FUNCTION = re.compile(r"^\s*Function : (\S+)")
LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][A-Z0-9_]*)((?:\.\w+)*)\s*([^;]*);")
TARGET = re.compile(r"(0x[0-9a-f]+)\s*$")

# What is counted: name → the instruction and the modifier it has to have.
COUNTED = {
    "HMMA": ("HMMA", None),
    "LDGSTS": ("LDGSTS", None),
    "LDSM": ("LDSM", None),
    "LDG.128": ("LDG", "128"),
    "STG.128": ("STG", "128"),
    "LDS.128": ("LDS", "128"),
    "BAR": ("BAR", None),
    "LDL": ("LDL", None),
    "STL": ("STL", None),
}
LEAVES = {"EXIT", "RET", "KILL", "BPT"}
JUMPS = {"BRA", "JMP", "BSYNC", "BRX", "JMX"}


@dataclass
class Instruction:
    address: int
    predicated: bool
    name: str
    modifiers: tuple
    operands: str


@dataclass
class Counts:
    whole: Counter = field(default_factory=Counter)
    loops: Counter = field(default_factory=Counter)
    innermost: Counter = field(default_factory=Counter)  # Loops that hold no other.

    def shown(self, what):
        """"24/16/16": in the kernel, of these in loops, of these in innermost ones."""
        return f"{self.whole[what]}/{self.loops[what]}/{self.innermost[what]}"


def read_sass(text):
    """{(symbol, architecture): [Instruction]}."""
    functions = {}
    architecture = current = None
    for line in text.splitlines():
        if match := LINE.match(line):
            if current is not None:
                address, predicate, name, modifiers, operands = match.groups()
                always = predicate in (None, "PT", "UPT")
                current.append(Instruction(int(address, 16), not always, name,
                                           tuple(modifiers.split(".")[1:]), operands.strip()))
        elif match := ARCHITECTURE.match(line):
            architecture, current = int(match[1]), None
        elif match := FUNCTION.match(line):
            current = functions.setdefault((match[1], architecture), [])
    return functions


def target_of(instruction):
    match = TARGET.search(instruction.operands)
    return int(match[1], 16) if match else None


def rejoin_targets(code, next_of, at):
    """{index of BSYNC: indices where it may go on}: those of the BSSY of its barrier that reach it. Barriers' names
    are used again and again, so that the name alone would join what has nothing to do with each other."""
    arriving = [None] * len(code)  # {barrier: {index}} on arrival; None: not reached yet.
    found = {}
    pending = [(index, {}) for index in range(len(code)) if index == 0 or code[index - 1].name in ("EXIT", "RET")]
    while pending:
        index, state = pending.pop()
        while index < len(code):
            known = arriving[index]
            if known is not None and all(targets <= known.get(name, set()) for name, targets in state.items()):
                break
            merged = {name: set(targets) for name, targets in (known or {}).items()}
            for name, targets in state.items():
                merged[name] = merged.get(name, set()) | targets
            arriving[index] = merged
            instruction = code[index]
            state = merged
            barrier = instruction.operands.split(",")[0].strip()
            following = set(next_of[index])
            if instruction.name == "BSSY" and target_of(instruction) in at:
                state = {**merged, barrier: {at[target_of(instruction)]}}
            elif instruction.name == "BSYNC":
                found[index] = merged.get(barrier, set())
                following |= found[index]
                state = {name: targets for name, targets in merged.items() if name != barrier}
            following = sorted(following)
            if not following:
                break
            pending += [(other, state) for other in following[1:]]
            index = following[0]
    return found


def successors(code):
    """For every instruction the indices of those that may come next."""
    at = {instruction.address: index for index, instruction in enumerate(code)}
    result = []
    for index, instruction in enumerate(code):
        following = set()
        # "BRA P0, 0x…" and "BRA.DIV UR4, 0x…" are conditional by their operands.
        conditional = instruction.predicated or (
            instruction.name == "BRA" and "," in instruction.operands)
        if instruction.name not in LEAVES | JUMPS or conditional:
            following.add(index + 1)
        if instruction.name in ("BRA", "JMP"):
            following.add(at.get(target_of(instruction)))
        result.append({index for index in following if index is not None and index < len(code)})
    for index, targets in rejoin_targets(code, result, at).items():
        result[index] |= targets
    return result


def dominators(count, next_of, roots):
    """For every node a bit set of its dominators; 0 for those not reached."""
    before = [[] for _ in range(count)]
    for node, following in enumerate(next_of):
        for other in following:
            before[other].append(node)
    everything = (1 << count) - 1
    result = [1 << node if node in roots else everything for node in range(count)]
    changed = True
    while changed:
        changed = False
        for node in range(count):
            if node in roots:
                continue
            meet = everything
            for other in before[node]:
                meet &= result[other]
            meet |= 1 << node
            if meet != result[node]:
                result[node] = meet
                changed = True
    return result, before


def blocks_of(code, next_of):
    """Basic blocks as (first, last + 1), and the edges between them."""
    leaders = {0}
    for index, following in enumerate(next_of):
        if following != {index + 1}:
            leaders |= following | {index + 1}
    leaders = sorted(leader for leader in leaders if leader < len(code))
    spans = list(zip(leaders, leaders[1:] + [len(code)]))
    number = {first: block for block, (first, _) in enumerate(spans)}
    return spans, [{number[index] for index in next_of[last - 1]} for _, last in spans]


def loops_of(code):
    """Natural loops, those with the same head joined: {head block: set of blocks}, and the blocks."""
    spans, edges = blocks_of(code, successors(code))
    unreached = set(range(len(spans))) - set().union(*edges, set())
    dominated_by, before = dominators(len(spans), edges, unreached | {0})
    loops = {}
    for block, following in enumerate(edges):
        for head in following:
            if not dominated_by[block] >> head & 1:
                continue
            first = spans[head][0]
            if block == head and spans[head][1] - first == 1 and code[first].name == "BRA":
                continue  # "BRA ." fills what is behind the last EXIT.
            body = loops.setdefault(head, {head})
            pending = [block]
            while pending:
                node = pending.pop()
                if node not in body:
                    body.add(node)
                    pending += before[node]
    return loops, spans


def count(code):
    """Counts of COUNTED in one kernel's code."""
    loops, spans = loops_of(code)
    in_loops = set().union(*loops.values(), set())
    innermost = set()
    for head, body in loops.items():
        if not any(other in body for other in loops if other != head):
            innermost |= body
    counts = Counts()
    for block, (first, last) in enumerate(spans):
        for instruction in code[first:last]:
            for what, (name, modifier) in COUNTED.items():
                if instruction.name == name and (modifier is None or modifier in instruction.modifiers):
                    counts.whole[what] += 1
                    counts.loops[what] += block in in_loops
                    counts.innermost[what] += block in innermost
    return counts
