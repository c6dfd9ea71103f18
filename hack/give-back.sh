#!/usr/bin/env bash
# give-back.sh COMMAND...: runs a command as root, and gives what it has built or fetched to whoever called sudo. Otherwise their next
# build could not write there.
set -euo pipefail
cd "$(dirname "$0")/.."

give_back() {
  local places=(target) place
  # Caches, if they are those of the caller: sudo may have set another HOME.
  if [[ $(stat -c %u "$HOME") == "$SUDO_UID" ]]; then
    places+=("${CARGO_HOME:-$HOME/.cargo}" "${GOPATH:-$HOME/go}" "${GOCACHE:-$HOME/.cache/go-build}")
  fi
  for place in "${places[@]}"; do
    [[ ! -e $place ]] || chown --recursive --no-dereference --from=0 "$SUDO_UID:$SUDO_GID" "$place"
  done
}
if ((EUID == 0 && ${SUDO_UID:-0} != 0)); then trap give_back EXIT; fi
"$@"
