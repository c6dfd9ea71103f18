#!/usr/bin/env bash
# init.sh COMMAND...: the first process of the namespaces that enter.sh makes. Prepares them for a kubelet, runs the command,
# and reaps whatever loses its parent.
set -euo pipefail

# At its end it kills all it can see, and it mounts over folders of the system.
[[ $$ == 1 ]] || { echo "init.sh: only as the first process of namespaces of its own: see enter.sh" >&2; exit 1; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
usr=$here/../../target/tools/realnode/usr
cgroup=vmcp-e2e

# --- files: what the packages have fills the gaps of this machine, and its /run is hidden, sockets and all.
mount -t overlay overlay -o "ro,lowerdir=/usr:$usr" /usr
mount -t tmpfs tmpfs /run
mkdir -p /run/lock /run/netns /run/kernel
# All that the node keeps is in memory: nothing has to be cleaned up.
export VMCP_E2E=/run/node
mkdir -p $VMCP_E2E/cni
cp "$here/cni.conflist" $VMCP_E2E/cni/10-bridge.conflist

# --- kernel: the kubelet sets these and may not; a file in their place takes what it writes.
pretend() {
  echo "$2" >"/run/kernel/$1"
  mount --bind "/run/kernel/$1" "/proc/sys/${1//.//}"
}
pretend vm.overcommit_memory 1
pretend kernel.panic 10
pretend kernel.panic_on_oops 1

# --- names: those of the cluster, for the tests too.
echo "nameserver 198.18.0.1" >/run/resolv.conf
mount --bind /run/resolv.conf /etc/resolv.conf

# --- cgroups: pods go under one of their own, in each hierarchy. What a killed run left behind is empty by now.
forget() { for c in "$@"; do [[ ! -d $c ]] || find "$c" -depth -type d -exec rmdir {} \; 2>/dev/null || true; done; }
if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
  groups=(/sys/fs/cgroup/$cgroup)
  forget "${groups[@]}"
  mkdir -p "${groups[@]}"
  for c in cpu cpuset memory pids io hugetlb; do
    echo +$c >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null || true
    echo +$c >/sys/fs/cgroup/$cgroup/cgroup.subtree_control 2>/dev/null || true
  done
else
  groups=()
  for c in cpu cpuacct cpuset memory devices freezer blkio pids systemd; do
    [[ ! -d /sys/fs/cgroup/$c ]] || groups+=("/sys/fs/cgroup/$c/$cgroup")
  done
  forget "${groups[@]}"
  mkdir -p "${groups[@]}"
  for f in cpuset.cpus cpuset.mems; do cat /sys/fs/cgroup/cpuset/$f >/sys/fs/cgroup/cpuset/$cgroup/$f; done
fi

# --- network: a pair of interfaces of which one end leads nowhere, since the kubelet refuses a loopback address.
ip link set lo up
ip link add node0 type veth peer name node0p
ip addr add 198.18.0.1/24 dev node0
ip link set node0 up
ip link set node0p up
ip route add default dev node0
echo 1 >/proc/sys/net/ipv4/ip_forward
# Not on every kernel; where it is, packets between pods take the way of Services too.
echo 1 2>/dev/null >/proc/sys/net/bridge/bridge-nf-call-iptables || true

# Not exec: this shell is the process that orphans go to.
code=0
"$@" || code=$?
# Ending kills the rest, but an empty cgroup is only to be removed when all in it have ended.
kill -KILL -1 2>/dev/null || true
wait
forget "${groups[@]}"
exit "$code"
