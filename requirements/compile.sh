#!/bin/sh
# Remakes the pins of every install from pyproject.toml: versions and hashes, no addresses. Called by `make lock`.
set -eu
cd "$(dirname "$0")/.."
compile() { # name, source, then uv's own arguments
	name=$1 source=$2; shift 2
	uv pip compile "$source" "$@" --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet \
		--output-file "requirements/$name.txt"
}
compile dev pyproject.toml --extra dev ${UPGRADE:+--upgrade}
# The images install subsets of what was tested.
compile operator pyproject.toml --extra operator --extra tracing --constraint requirements/dev.txt
compile trainer pyproject.toml --extra trainer --extra hopper --extra tracing --constraint requirements/dev.txt
compile bootstrap requirements/bootstrap.in --constraint requirements/dev.txt
