#!/usr/bin/env bash
# e2e.sh: runs the tests on a real node (tests/e2e) with what `make e2e` has built. Where that cannot be, it says why in one line
# and ends with 77.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() { echo "e2e: SKIPPED: $*" >&2; exit 77; }

[[ $(uname -s) == Linux ]] || skip "a node needs Linux"
((EUID == 0)) || skip "root is needed, for namespaces, mounts and cgroups of the node's own: run it with sudo"
for program in apt-get dpkg-deb; do
  command -v "$program" >/dev/null || skip "containerd, runc and others come from Debian's or Ubuntu's packages, and there is no $program"
done
# Root of a container may not be allowed to.
why=$(unshare --net --mount --pid --fork --mount-proc --propagation private mount -t tmpfs tmpfs /run 2>&1) ||
  skip "this root may not make namespaces and mounts (${why##*: })"
[[ -w /sys/fs/cgroup && (-e /sys/fs/cgroup/cgroup.controllers || -d /sys/fs/cgroup/memory) ]] ||
  skip "cgroups cannot be made in /sys/fs/cgroup"
if [[ ${1:-} == --check ]]; then exit 0; fi

# The node's cgroup has a fixed name. The lock goes with the last process of the run. It is not in /tmp, where anybody may be first.
exec 9>/run/vmcp-e2e.lock
flock -n 9 || { echo "e2e: another run is going on, waiting for it" >&2; flock 9; }

# Cargo builds outside, where there is a network, and runs the test inside.
runner="target.'cfg(target_os = \"linux\")'.runner=['bash', '$PWD/tests/realnode/enter.sh']"
exec cargo run --locked --quiet --config "$runner" --package vmcp-e2e
