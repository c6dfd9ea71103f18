#!/usr/bin/env bash
# with-controlplane.sh [--clients] COMMAND...: runs a command while the control plane is built beside it, and waits for both.
# With --clients, what hack/clients.sh gets for tests is got after it, beside the command too.
# What is missing on this machine is said in one line, before anything is built.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/tests/controlplane/build.sh
out=$root/target/controlplane
clients=''
if [[ ${1:-} == --clients ]]; then
  clients=$root/hack/clients.sh
  shift
fi

if ! command -v cargo >/dev/null; then
  need=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
  echo "cargo was not found: install Rust $need or newer from https://rustup.rs/" >&2
  exit 1
fi
if ! command -v cc >/dev/null; then
  echo "cc was not found: Rust links with a C compiler; install gcc (Debian: apt install gcc)" >&2
  exit 1
fi
if ! command -v setpriv >/dev/null; then
  echo "setpriv was not found: install util-linux (the processes of tests end with it)" >&2
  exit 1
fi
# Without a Go that works there is nothing to be done beside: all is built already, or this says what to install.
if [[ -n ${KUBEBUILDER_ASSETS:-} ]] || ! (cd "$(dirname "$build")" && go env GOVERSION) >/dev/null 2>&1; then
  bash "$build" "$out"
  if [[ -n $clients ]]; then bash "$clients"; fi
  exec "$@"
fi

# Its lines stand by themselves, not at the end of cargo's progress bar.
clear=''
if [[ -t 2 ]]; then clear=$'\r\e[K'; fi
lines() { while IFS= read -r line; do printf '%s%s\n' "$clear" "$line" >&2; done; }

# A group of its own, so that all of it can be ended when the command fails or is interrupted.
setsid bash -c 'bash "$0" "$1" 2>&1 && { [[ -z $2 ]] || bash "$2" 2>&1; }' "$build" "$out" "$clients" > >(lines) &
building=$!
trap 'kill -TERM -- "-$building" 2>/dev/null || true' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

"$@"
if ! wait "$building"; then
  echo "the control plane${clients:+, or what clients need,} could not be made: see above" >&2
  exit 1
fi
trap - EXIT
