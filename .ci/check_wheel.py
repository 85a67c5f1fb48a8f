"""Says whether a wheel can be shipped: its size, its tag, and what must not be in it."""

import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

from elftools.elf.elffile import ELFFile

MOST_BYTES = 1_000_000


def check(path: Path) -> list[str]:
    """Print what the wheel is, and return what is wrong with it."""
    wrong = []
    size = path.stat().st_size
    print(f"{path.name}: {size:,} bytes")
    if size > MOST_BYTES:
        wrong.append(f"{size:,} bytes are more than {MOST_BYTES:,}")
    home = str(Path(__file__).resolve().parents[1]).encode()
    with zipfile.ZipFile(path) as wheel:
        for name in wheel.namelist():
            content = wheel.read(name)
            if home in content:
                wrong.append(f"{name} holds the path {home.decode()}")
            if name.endswith(".so"):
                sections = [section.name for section in ELFFile(BytesIO(content)).iter_sections()]
                debug = [section for section in sections if section.startswith(".debug")]
                print(f"  {name}: {len(content):,} bytes")
                if debug:
                    wrong.append(f"{name} has {', '.join(debug)}")
    shown = subprocess.run(
        [sys.executable, "-m", "auditwheel", "show", str(path)], capture_output=True, text=True
    )
    print(shown.stdout.strip() or shown.stderr.strip())
    if "manylinux" not in shown.stdout:
        wrong.append("auditwheel finds no manylinux tag for it")
    return wrong


if __name__ == "__main__":
    found = [line for path in sys.argv[1:] for line in check(Path(path))]
    print(*(f"wrong: {line}" for line in found), sep="\n")
    sys.exit(bool(found))
