#!/usr/bin/env bash
# publish-check.sh: publishes to a registry of its own on this machine what a release would, and looks at what arrived.
set -euo pipefail

cd "$(dirname "$0")/.."
crane=target/tools/bin/crane
work=$(mktemp -d)
# Nobody's configuration, but one of this check.
export DOCKER_CONFIG=$work HELM_CONFIG_HOME=$work HELM_CACHE_HOME=$work
"$crane" registry serve --address 127.0.0.1:0 >"$work/log" 2>&1 &
registry=$!
trap 'kill "$registry"; rm -rf "$work"' EXIT

port=''
for _ in {1..100}; do
  port=$(sed -n 's/.*serving on port \([0-9]*\).*/\1/p' "$work/log")
  [[ -z $port ]] || break
  sleep 0.1
done
[[ -n $port ]] || { cat "$work/log" >&2; echo "publish-check: the registry does not start: see above" >&2; exit 1; }

same() { [[ $2 == "$3" ]] || { echo "publish-check: $1 is $2, and not $3" >&2; exit 1; }; }
declare -A said
while IFS='=' read -r key value; do said[$key]=$value; done < <(bash hack/publish.sh "127.0.0.1:$port")

tar -C "$work" -xf target/image/vmcp-session.tar index.json
version=$(sed -n 's/.*"org.opencontainers.image.ref.name": *"\([^"]*\)".*/\1/p' "$work/index.json")
same "the image that was pushed" "${said[image-digest]}" "$(sed -n 's/.*"digest": *"\([^"]*\)".*/\1/p' "$work/index.json")"
same "the image that has arrived" "$("$crane" digest "${said[image]}:$version")" "${said[image-digest]}"
"$crane" validate --remote "${said[image]}@${said[image-digest]}" >/dev/null
same "the chart that has arrived" "$("$crane" digest "${said[chart]}:$version")" "${said[chart-digest]}"
"$HELM" pull --plain-http "oci://${said[chart]}" --version "$version" --destination "$work" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
cmp "$work"/*.tgz "target/chart/vmcp-session-operator-$version.tgz"
echo "publish-check: image and chart arrive as they are"
