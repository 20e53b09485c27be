"""The licence of a Debian package as an SPDX expression, from its copyright file where that can be read by a program."""

from __future__ import annotations

import re
from pathlib import Path

# Debian's names that are not SPDX's.
SPDX = {
    "Apache-2.0": "Apache-2.0",
    "BSD-2-clause": "BSD-2-Clause",
    "BSD-3-clause": "BSD-3-Clause",
    "Boost": "BSL-1.0",
    "Expat": "MIT",
    "Expat with embedded exception": "MIT WITH fmt-exception",
    "GPL-2": "GPL-2.0-only",
    "GPL-2+": "GPL-2.0-or-later",
    "ISC": "ISC",
    "LGPL-2.1": "LGPL-2.1-only",
    "LGPL-2.1+": "LGPL-2.1-or-later",
    "LGPL-3.0+ with special exception granted by copyright holders": "LGPL-3.0-or-later WITH LGPL-3.0-linking-exception",
    "MIT": "MIT",
    "NRL-2-clause": "LicenseRef-NRL-2-clause",
    "Zlib": "Zlib",
}

# Sources whose copyright files are prose, or describe their programs first and the library, which is what is linked,
# further down. Read by a person.
READ = {
    "e2fsprogs": "MIT",  # libcom_err: debian/copyright, lib/et.
    "gcc-12": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "gcc-14": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "glibc": "LGPL-2.1-or-later",
    "keyutils": "LGPL-2.0-or-later",  # libkeyutils; the programs are GPL.
    "krb5": "MIT",
    "libbsd": "BSD-3-Clause AND BSD-2-Clause AND ISC",
    "libmd": "BSD-3-Clause AND BSD-2-Clause AND ISC",
}


def licence_of(source: str, copyright_file: Path) -> str:
    """Raises LookupError, naming the file, for a licence that neither table has."""
    if source in READ:
        return READ[source]
    name = _of_all_files(copyright_file.read_text())
    if name not in SPDX:
        raise LookupError(f"{copyright_file} says '{name}' of its files: add it to SPDX or {source} to READ in {__file__}")
    return SPDX[name]


def _of_all_files(text: str) -> str:
    """The short name of the paragraph `Files: *`, or of the first one where none is for all files."""
    paragraphs = [part for part in re.split(r"\n\s*\n", text) if re.search(r"^Files:", part, re.M)]
    of_all = [part for part in paragraphs if re.search(r"^Files:\s*\*\s*$", part, re.M)] or paragraphs
    found = re.search(r"^License:[ \t]*(.+)$", of_all[0], re.M) if of_all else None
    return " ".join(found[1].split()) if found else "no licence that a program can read"
