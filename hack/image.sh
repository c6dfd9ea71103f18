#!/usr/bin/env bash
# image.sh PACKAGE BINARY [ARCH...]: builds the image of one program of this workspace, for the processor of this machine unless others
# are named, and writes it to target/image/BINARY.tar: an archive in OCI's layout, which `ctr images import` takes. It is called
# localhost/BINARY:VERSION, with the version of the program's package. PROFILE is cargo's profile (release), IMAGE_OUT another file.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
package=$1 binary=$2
archs=("${@:3}")
cd "$root"

if ((${#archs[@]} == 0)); then
  case $(uname -m) in
    x86_64) archs=(amd64) ;;
    aarch64) archs=(arm64) ;;
    *) echo "image: $(uname -m) is no processor that images are built for: name amd64 or arm64" >&2; exit 1 ;;
  esac
fi
if ! (cd hack/image && go env GOVERSION) >/dev/null 2>&1; then
  echo "image: a Go that builds hack/image was not found: install Go $(sed -n 's/^go //p' hack/image/go.mod) or newer from https://go.dev/dl/" >&2
  exit 1
fi

programs=()
for arch in "${archs[@]}"; do
  program=$(bash hack/static.sh "$arch" "$package" "$binary")
  programs+=(-program "$arch=$program")
done

# NAME VERSION DESCRIPTION of the package, as cargo understands them.
about() {
  cargo metadata --locked --no-deps --format-version 1 |
    python3 -c 'import json, sys; print(*(p[sys.argv[2]] for p in json.load(sys.stdin)["packages"] if p["name"] == sys.argv[1]))' \
      "$package" "$1"
}
version=$(about version)
label=org.opencontainers.image
labels=(-label "$label.title=$binary" -label "$label.version=$version" -label "$label.description=$(about description)"
  -label "$label.licenses=$(about license)" -label "$label.source=https://github.com/vmcp-dev/vmcp-session-operator")
# What one must have to get the same bytes.
labels+=(-label "dev.vmcp.rust=$(rustc --version)")
# A commit is named only if this is what is in it.
created=0
if commit=$(git rev-parse --verify --quiet HEAD 2>/dev/null); then
  created=$(git log -1 --format=%ct)
  if [[ -z $(git status --porcelain) ]]; then labels+=(-label "$label.revision=$commit"); fi
fi

tool=$root/target/tools/image
(cd hack/image && GOWORK=off go build -trimpath -buildvcs=false -o "$tool" .)
"$tool" -out "${IMAGE_OUT:-target/image/$binary.tar}" -name "localhost/$binary:$version" -created "${SOURCE_DATE_EPOCH:-$created}" \
  "${programs[@]}" "${labels[@]}"
