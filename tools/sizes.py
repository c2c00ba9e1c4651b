# SPDX-License-Identifier: Apache-2.0
"""Prints what the built files have, in bytes, and fails if one has more than it may:

python tools/sizes.py dist/noisefuse-*.whl [dist/noisefuse-*.tar.gz]
"""

import sys
import zipfile
from pathlib import Path

# Compressed. The extension differs between compilers, the rest of a wheel does not.
MOST = {"extension": 845_000, "all else of the wheel": 740_000, "source": 2_097_152}


def parts(file: Path) -> dict[str, int]:
    if file.suffix == ".gz":
        return {"source": file.stat().st_size}
    with zipfile.ZipFile(file) as wheel:
        extension = sum(
            info.compress_size for info in wheel.infolist() if Path(info.filename).suffix in (".so", ".pyd")
        )
    return {"extension": extension, "all else of the wheel": file.stat().st_size - extension}


def main() -> None:
    found = {name: size for file in sys.argv[1:] for name, size in parts(Path(file)).items()}
    for name, size in found.items():
        print(f"{name}: {size:,} bytes of {MOST[name]:,}")
    if large := [name for name, size in found.items() if size > MOST[name]]:
        sys.exit(f"larger than it may be: {', '.join(large)}")


if __name__ == "__main__":
    main()
