"""Entry of the sandbox's processes; run by path, so that it can start without `site`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[4]))

from dev.cluster.node.sandbox import container, inside, pod

COMMANDS = {"pod": pod.main, "container": container.main, "exec": inside.main}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](Path(sys.argv[2]))
