"""A generated part of a page: between "<!-- NAME: … -->" and "<!-- /NAME -->"."""
import re


def part(name):
    return re.compile(rf"(<!-- {name}:[^\n]*-->\n)(.*?)(<!-- /{name} -->)", re.DOTALL)


def put(page, name, text):
    """Replaces the part; a page without it is an error."""
    content = page.read_text()
    replaced, count = part(name).subn(lambda match: match[1] + text + match[3], content)
    if count != 1:
        raise SystemExit(f"{page}: {count} parts called {name}, expected one")
    if replaced != content:
        page.write_text(replaced)


def check(page, name, text):
    """Problems: the part is not `text`."""
    found = part(name).findall(page.read_text())
    if len(found) != 1:
        return [f"{page.name}: {len(found)} parts called {name}, expected one"]
    return [] if found[0][1] == text else [f"{page.name}: the part {name} is not what its script writes"]


def span(values):
    values = sorted(set(values))
    return str(values[0]) if len(values) == 1 else f"{values[0]} – {values[-1]}"


def of(rows, compiler):
    """Markdown: one row for each kernel, its instances and architectures taken together."""
    lines = [f"{len({(row['file'], row['kernel']) for row in rows})} kernels, nvcc {compiler}, "
             f"sm_{', '.join(sorted({row['sm'] for row in rows}, key=int))}; spills: "
             f"{sum(int(row['spill_stores']) + int(row['spill_loads']) for row in rows)} bytes.", "",
             "| kernel | instances | threads | registers | shared memory, bytes | occupancy | limited by |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    families = {}
    for row in rows:
        families.setdefault((row["file"], row["kernel"].split("<")[0]), []).append(row)
    for (file, kernel), some in families.items():
        shared = [int(row["static_shared"]) + int(row["dynamic_shared"]) for row in some]
        lines.append(f"| {file}: `{kernel}` | {len({row['kernel'] for row in some})} | "
                     f"{span([int(row['threads']) for row in some])} | {span([int(row['registers']) for row in some])} | "
                     f"{span(shared)} | {span([float(row['occupancy']) for row in some])} | "
                     f"{', '.join(sorted({row['limited_by'] for row in some}))} |")
    return "\n".join(lines) + "\n"
