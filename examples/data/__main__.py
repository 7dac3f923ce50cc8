"""Write every file that an example names, under the name that it has in the bucket `datasets`.

python -m examples.data FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from examples.data.files import write_all

if __name__ == "__main__":
    for path in write_all(Path(sys.argv[1])):
        sys.stdout.write(f"{path}\n")
