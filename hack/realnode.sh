#!/usr/bin/env bash
# realnode.sh: gets what a Kubernetes node needs besides tests/controlplane, and puts it where tests/realnode looks for it.
#   target/tools/realnode  containerd, runc, the network plugins and nft, from the distribution's packages, unpacked without
#                          root: this machine stays as it is
#   target/tools/pause     the image localhost/pause:1, of tests/realnode/pause, which holds the namespaces of a pod
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
who=realnode
# shellcheck source=hack/parts.sh
source "$root/hack/parts.sh"

programs=(containerd runc containernetworking-plugins nftables iproute2)
# What these need and a small image may not have. What the machine has is used instead.
libraries=(libseccomp2 libnftables1 libnftnl11 libxtables12 libmnl0 libedit2 libbsd0 libmd0 libbpf1 libelf1 libcap2 libtirpc3 libdb5.3)

# Since Debian 13 and Ubuntu 24.04 some have another name, for the size of their times.
has() { apt-cache policy "$1" 2>/dev/null | grep -q '^ *Candidate: [^(]'; }

node_packages() {
  local at
  for at in "${!libraries[@]}"; do
    if ! has "${libraries[at]}" && has "${libraries[at]}t64"; then libraries[at]+=t64; fi
  done
  unpacked "$1" "${programs[@]}" "${libraries[@]}"
  # Everything is in /usr today, but not in every package yet.
  mkdir usr
  local folder
  for folder in root/usr/bin root/usr/sbin root/usr/lib root/bin root/sbin root/lib; do
    [[ ! -d $folder ]] || { mkdir -p "usr/${folder##*/}"; cp -an "$folder/." "usr/${folder##*/}/"; }
  done
  rm -rf root
}

part realnode "packages $(digest "${BASH_SOURCE[0]}" "$root/hack/parts.sh")" node_packages

pause_image() {
  local arch
  arch=$(go env GOARCH)
  cd "$root/tests/realnode/pause"
  CGO_ENABLED=0 GO111MODULE=off quietly "go build" "$1/log" go build -trimpath -ldflags "-s -w" -o "$1/pause" main.go ||
    fail "go build of tests/realnode/pause failed: see above"
  cd "$root/hack/image"
  GOWORK=off quietly "image" "$1/log" go run -trimpath . -out "$1/pause.tar" -name localhost/pause:1 -program "$arch=$1/pause" ||
    fail "the image localhost/pause:1 could not be written: see above"
}

part pause "$(go env GOVERSION) $(cd "$root" && digest tests/realnode/pause/main.go hack/image/*.go hack/image/{go.mod,passwd,group})" pause_image
