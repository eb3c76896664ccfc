#!/usr/bin/env bash
# In a mount namespace: a /tmp whose folders are the machine's, and whose own files nobody else sees. veRL 0.9.1 sends
# weights through a socket /tmp/rl-colocate-zmq-JOB..., and JOB is 01000000 in every new Ray cluster: two trainings that do
# so at the same time get each other's.
mount -t tmpfs tmpfs /mnt
for folder in /tmp/*/; do
  mkdir -p "/mnt/${folder#/tmp/}"
  mount --rbind "$folder" "/mnt/${folder#/tmp/}" || true # it may be gone by now
done
chmod 1777 /mnt
mount --rbind /mnt /tmp
