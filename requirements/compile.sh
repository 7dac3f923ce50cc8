#!/bin/sh
# Remakes the pins of every install from pyproject.toml: versions and hashes, no addresses. Called by `make lock`.
set -eu
cd "$(dirname "$0")/.."
compile() { # name, then uv's own arguments
	name=$1; shift
	uv pip compile pyproject.toml "$@" --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet \
		--output-file "requirements/$name.txt"
}
compile dev --extra dev ${UPGRADE:+--upgrade}
# The images install subsets of what was tested.
compile operator --extra operator --constraint requirements/dev.txt
compile trainer --extra trainer --constraint requirements/dev.txt
