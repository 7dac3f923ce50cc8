#!/bin/sh
# What the Dockerfile's build stages run:
#   bootstrap        uv and the build backend into /build/venv, an empty environment into /opt/finetune
#   packages NAME    requirements NAME into /opt/finetune
#   project          this project into /opt/app, which /opt/finetune finds through a .pth file
set -eu

# The builder's registry and CA, if there are any. Mounted for one command only.
if [ -f /run/secrets/registry ]; then . /run/secrets/registry; fi

uv() {
	/build/venv/bin/uv --no-cache --no-progress "$@"
}

case $1 in
bootstrap)
	python3 -m venv /build/venv
	/build/venv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check --require-hashes -r /build/bootstrap.txt
	uv venv --quiet --python "$(command -v python3)" /opt/finetune
	;;
packages)
	# The pins are all that is needed, and without what pyproject.toml overrides.
	uv pip install --python /opt/finetune/bin/python --compile-bytecode --no-deps \
		--build-constraints /build/bootstrap.txt --require-hashes -r "/build/$2.txt"
	/opt/finetune/bin/python -c 'import site; print("/opt/app", file=open(site.getsitepackages()[0] + "/app.pth", "w"))'
	;;
project)
	cd /src
	/build/venv/bin/python -m hatchling build --target wheel --directory /build/dist
	uv pip install --python /opt/finetune/bin/python --compile-bytecode --no-deps --target /opt/app /build/dist/*.whl
	;;
esac
