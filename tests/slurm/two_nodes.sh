#!/usr/bin/env bash
# A controller and two nodes of a real Slurm on this machine, each node in namespaces of its own: its address, host
# name, processes and /dev/shm; /tmp/ray is the lab's. Runs as process 1 of a namespace whose end ends all of it.
# Usage: two_nodes.sh LAB, the folder that tests/slurm/lab.py filled.
set -euo pipefail
lab=$1

hostname ctl
mount --bind "$lab/hosts" /etc/hosts
mount -t tmpfs tmpfs /run
mkdir /run/netns
mkdir -p /tmp/ray
mount -t tmpfs tmpfs /tmp/ray
ip link set lo up
ip link add br0 type bridge
ip address add 10.77.0.254/24 dev br0
ip link set br0 up

munged --force --foreground --key-file "$lab/munge/key" --socket "$lab/munge.socket" --pid-file "$lab/munged.pid" \
  --log-file "$lab/munged.log" --seed-file "$lab/munge.seed" &
slurmctld -D -f "$SLURM_CONF" >"$lab/slurmctld.out" 2>&1 &

node() {
  # Not `ip netns exec`, which mounts a /sys without the cgroups that slurmd looks for. The node's process 1 is bash,
  # which reaps what a job leaves behind.
  # shellcheck disable=SC2016
  exec nsenter --net="/run/netns/$1" unshare --uts --pid --mount --ipc --fork --kill-child --mount-proc bash -c '
    hostname "$1"
    mount -t tmpfs tmpfs /dev/shm
    mount -t tmpfs tmpfs /run
    slurmd -D -N "$1" -f "$SLURM_CONF" >"$2/slurmd-$1.out" 2>&1
    exit' bash "$1" "$lab"
}

for i in 1 2; do
  ip netns add "n$i"
  ip link add "veth$i" type veth peer name eth0 netns "n$i"
  ip link set "veth$i" master br0 up
  ip -n "n$i" link set lo up
  ip -n "n$i" address add "10.77.0.$i/24" dev eth0
  ip -n "n$i" link set eth0 up
  node "n$i" &
done
wait -n || true
echo "a daemon of the lab ended" >&2
exit 1
