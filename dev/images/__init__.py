"""The images: built by `make images`, run by `make images-check`. With podman or docker, with or without a registry."""
