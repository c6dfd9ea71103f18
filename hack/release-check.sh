#!/usr/bin/env bash
# release-check.sh TAG: is the tag the version that everything here says it is?
set -euo pipefail

cd "$(dirname "$0")/.."
tag=${1:?which tag? as in v0.1.0}
wrong=0
is() { [[ $2 == "${tag#v}" ]] || { echo "release-check: the tag is $tag, but $1 says ${2:-nothing}" >&2; wrong=1; }; }

[[ $tag == v* ]] || { echo "release-check: $tag does not begin with v" >&2; wrong=1; }
is Cargo.toml "$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)"
chart=charts/vmcp-session-operator/Chart.yaml
is "the version in $chart" "$(sed -n 's/^version: *"\{0,1\}\([^"]*\)"\{0,1\}$/\1/p' "$chart")"
is "the appVersion in $chart" "$(sed -n 's/^appVersion: *"\{0,1\}\([^"]*\)"\{0,1\}$/\1/p' "$chart")"
is CHANGELOG.md "$(sed -n 's/^## \[\{0,1\}\([0-9][^] ]*\).*/\1/p' CHANGELOG.md | head -n 1)"
exit "$wrong"
