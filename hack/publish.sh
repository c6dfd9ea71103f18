#!/usr/bin/env bash
# publish.sh REGISTRY: pushes what `make image chart-package` has made, as a release does: the image as REGISTRY/vmcp-session and the
# chart as REGISTRY/charts/vmcp-session-operator. Prints image, image-digest, chart and chart-digest, each with = and on a line,
# for whoever signs them. Docker's configuration says who pushes; HELM, which helm.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
registry=${1:?which registry? as in ghcr.io/vmcp-dev}
helm=${HELM:-target/controlplane/helm}
cd "$root"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tar -C "$work" -xf target/image/vmcp-session.tar
version=$(sed -n 's/.*"org.opencontainers.image.ref.name": *"\([^"]*\)".*/\1/p' "$work/index.json")
chart=target/chart/vmcp-session-operator-$version.tgz
[[ -f $chart ]] || { echo "publish: the image is of version $version, and there is no $chart" >&2; exit 1; }

pushed=$(target/tools/bin/crane push "$work" "$registry/vmcp-session:$version")
printf 'image=%s\nimage-digest=%s\n' "${pushed%@*}" "${pushed#*@}"
# A registry on this machine, as a check has one, has no certificate.
plain=()
if [[ $registry == 127.0.0.1:* ]]; then plain=(--plain-http); fi
"$helm" push "${plain[@]}" "$chart" "oci://$registry/charts" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
printf 'chart=%s\nchart-digest=%s\n' "$registry/charts/vmcp-session-operator" "$(sed -n 's/^Digest: //p' "$work/log")"
