#!/usr/bin/env bash
# enter.sh COMMAND...: runs a command in network, mount and process namespaces of its own, where a Kubernetes node can run
# without touching this machine. When the command ends, however it does, or this process does, all that it started ends.
# Cargo runs tests by it: see hack/e2e.sh.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec unshare --net --mount --pid --fork --kill-child --mount-proc --propagation private bash "$here/init.sh" "$@"
