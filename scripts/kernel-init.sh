#!/bin/sh
# The first process of a kernel under test. The root is the initramfs; one serial line is for what
# the tests say, the other one is the kernel's own.
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

# shellcheck source=/dev/null # written by test-kernels.sh: where all is
. /kernel-test.env
# Seconds after which a run of memleak hangs: emulated, one of a thousand processes takes minutes.
export TEST_TIMEOUT=1800
cd "$ROOT" || exit 1
exec >"$PORT" 2>&1
setsid sh scripts/kernel-tests.sh "$MEMLEAK" /kernel-test.plan
echo @done
sync
# Without a boot loader nobody knows how to power off; qemu takes this for an end.
echo b >/proc/sysrq-trigger
