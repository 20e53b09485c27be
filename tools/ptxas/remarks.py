"""What nvcc and ptxas say of kernels: `-Xptxas -v`, the names, the launch bounds in the PTX."""
import re
import subprocess
from dataclasses import dataclass

COMPILING = re.compile(r"ptxas info\s*: Compiling entry function '(\S+)' for 'sm_(\d+)'$")
PROPERTIES = re.compile(r"ptxas info\s*: Function properties for (\S+)$")
FRAME = re.compile(r"\s*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads$")
USED = re.compile(r"ptxas info\s*: Used (\d+) registers(.*)$")
SAYS_NOTHING = re.compile(r"ptxas info\s*: (\d+ bytes gmem.*|Compile time = .*|\(C7\d+\).*)$|\s*$")


class Unreadable(Exception):
    pass


@dataclass
class Remarks:
    """Of one kernel for one architecture."""
    symbol: str
    architecture: int
    registers: int = 0
    shared: int = 0
    constant: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0


def read_remarks(text, place="remarks"):
    """[Remarks] in the order of the text. A line that is not understood is an error: what it says might
    matter."""
    found = []
    current = None
    frame_of = None
    for number, line in enumerate(text.splitlines(), 1):
        if match := COMPILING.match(line):
            current = Remarks(match[1], int(match[2]))
        elif match := PROPERTIES.match(line):
            frame_of = match[1]  # Also of device functions that were not inlined.
        elif match := FRAME.match(line):
            if current is not None and frame_of == current.symbol:
                current.stack, current.spill_stores, current.spill_loads = map(int, match.groups())
            elif int(match[2]) or int(match[3]):
                raise Unreadable(f"{place}:{number}: {frame_of}, which is not a kernel, spills")
        elif match := USED.match(line):
            if current is None:
                raise Unreadable(f"{place}:{number}: registers of no kernel")
            current.registers = int(match[1])
            current.shared = sum(map(int, re.findall(r"(\d+) bytes smem", match[2])))
            current.constant = sum(map(int, re.findall(r"(\d+) bytes cmem\[\d+\]", match[2])))
            found.append(current)
            current = None
        elif not SAYS_NOTHING.match(line):
            raise Unreadable(f"{place}:{number}: not understood: {line.strip()}")
    return found


def demangle(symbols):
    """{symbol: what c++filt makes of it}."""
    symbols = sorted(set(symbols))
    done = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True)
    return dict(zip(symbols, done.stdout.splitlines()))


def readable(demangled):
    """"void dkv::cuda::(anonymous namespace)::gather_kernel<uint4>(uint4 const*, …)" → "gather_kernel<uint4>"."""
    name = demangled.replace("(anonymous namespace)::", "").replace("dkv::cuda::", "").replace("> >", ">>")
    name = re.sub(r"\b(\d+)u?l?\b(?=[,>])", r"\1", name.replace(" >", ">"))
    name = re.sub(r"\((?:unsigned |)(?:int|long|bool|char|short)\)(?=\d)", "", name)
    depth = 0
    for at, letter in enumerate(name):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            name = name[:at]
            break
    return name.removeprefix("void ")


def read_launch_bounds(ptx):
    """{symbol: threads of a block at most} of the kernels that state it."""
    bounds = {}
    symbol = None
    for line in ptx.splitlines():
        if match := re.search(r"\.entry (\w+)", line):
            symbol = match[1]
        elif match := re.match(r"\.maxntid (\d+)(?:, (\d+))?(?:, (\d+))?$", line.strip()):
            threads = 1
            for extent in match.groups(default="1"):
                threads *= int(extent)
            bounds[symbol] = threads
    return bounds
