#!/bin/sh
# The first process of a kernel under test. The root file system is the initramfs. The tests print to one serial line,
# and the kernel prints to the other.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /run /tmp /root
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -s /proc/self/fd /dev/fd
# A Slurm cluster needs both.
echo node >/proc/sys/kernel/hostname
ip link set lo up

# shellcheck source=/dev/null # test-kernels.sh writes this file, with the paths
. /kernel-test.env
# Seconds after which a test takes a run of memleak for hung. In an emulator a run with a thousand processes takes
# minutes.
export TEST_TIMEOUT=1800
cd "$ROOT" || exit 1
exec >"$PORT" 2>&1
setsid sh scripts/kernel-tests.sh "$MEMLEAK" /kernel-test.plan
echo @done
sync
# Without a boot loader the kernel cannot power the machine off. qemu exits at a reboot (-no-reboot).
echo b >/proc/sysrq-trigger
