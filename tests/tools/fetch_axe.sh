#!/bin/sh
# Fetches axe-core (MPL-2.0) for the accessibility tests into tests/.cache/axe.min.js, through npm's own client.
# The file is a test tool: it is neither part of the repository nor of the package.
set -eu
cache="$(cd "$(dirname "$0")/.." && pwd)/.cache"
mkdir -p "$cache"
if [ -s "$cache/axe.min.js" ]; then
    exit 0
fi
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
npm pack --silent axe-core@4 >/dev/null
tar -xzf axe-core-4*.tgz package/axe.min.js
mv package/axe.min.js "$cache/axe.min.js"
