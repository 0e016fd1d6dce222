#!/bin/sh
# Installs the named Debian or Fedora packages, or says in one line what to do.
set -eu
if [ "$(id -u)" != 0 ]; then
	echo "the whole-system tests need: $* (install them, or run make as root)" >&2
	exit 1
fi
if command -v apt-get >/dev/null; then
	apt-get install -y -q "$@" >/dev/null 2>&1 || { apt-get update -q >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -q "$@" >/dev/null; }
elif command -v dnf >/dev/null; then
	dnf install -y -q "$@"
else
	echo "the whole-system tests need: $* (this system has neither apt-get nor dnf)" >&2
	exit 1
fi
