#!/bin/sh
# The first process of a test machine. It mounts what a Linux system has mounted, loads modules, waits for the NVMe
# controllers, runs the command, and tells the host its exit status.
#
# Standard output and standard error each go through a named pipe and `cat` to a virtio-serial port. The pipe is there because a
# port can be opened only once: a command that opens /dev/stdout or /dev/stderr needs something that opens again. After the
# command's end the marker is written into the same pipes: where the host sees it, everything before has arrived, also
# when a process left in the background still holds the pipe.

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /dev/hugepages
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=755 tmpfs /run
mount -t hugetlbfs hugetlbfs /dev/hugepages
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr
hostname nvme-vfio-vm

if [ -f /etc/vm/modules ]; then
    while read -r module; do
        insmod "$module" || echo "vm: cannot load $module" >/dev/console
    done </etc/vm/modules
fi

# What a controller is: without its driver yet, dead, or live with or without a namespace. (A namespace is there before its device file is.)
look_at() {
    is=away
    for state in "$1"/nvme/nvme*/state; do
        [ -f "$state" ] || continue
        read -r word <"$state"
        case $word in
        live)
            is=empty
            for namespace in "${state%/state}"/nvme*n*; do
                [ -b "/dev/${namespace##*/}" ] && is=ready
            done
            ;;
        dead) is=ready ;;
        esac
    done
}

# A controller is ready when the kernel's driver has it, calls it live, and its namespaces have been looked for. Times are counted in looks, each
# of which is at least a hundredth of a second: on a busy host the clock can leap, and one processor stand still while the other goes on.
wait_for_nvme() {
    looks=0
    while [ $looks -lt 3000 ]; do
        away=0 empty=0
        for device in /sys/bus/pci/devices/*; do
            read -r class <"$device/class"
            [ "$class" = 0x010802 ] || continue
            look_at "$device"
            case $is in
            away) away=$((away + 1)) ;;
            empty) empty=$((empty + 1)) ;;
            esac
        done
        [ $((away + empty)) = 0 ] && return
        # Without a namespace nothing tells that the search is over: some seconds must do.
        [ $away = 0 ] && [ $looks -lt 2600 ] && looks=2600
        usleep 10000
        looks=$((looks + 1))
    done
}
wait_for_nvme

cd /root
if [ ! -f /etc/vm/command ]; then
    setsid cttyhack /bin/sh -l </dev/console >/dev/console 2>&1
    poweroff -f
fi

port() {
    while :; do
        for name in /sys/class/virtio-ports/*/name; do
            [ -f "$name" ] || continue
            read -r word <"$name"
            if [ "$word" = "$1" ]; then
                name=${name%/name}
                port=/dev/${name##*/}
                return
            fi
        done
        usleep 10000
    done
}

mkfifo -m 666 /run/stdout /run/stderr
port vm.stdout
cat /run/stdout >"$port" &
exec 3<>/run/stdout
port vm.stderr
cat /run/stderr >"$port" &
exec 4<>/run/stderr
port vm.control
exec 5<>"$port"

read -r marker </etc/vm/marker
rm /etc/vm/marker
echo ready >&5
(
    exec </dev/null >/run/stdout 2>/run/stderr 3>&- 4>&- 5>&-
    . /etc/vm/command
) &
wait $!
status=$?
printf %s "$marker" >&3
printf %s "$marker" >&4
echo "exit $status" >&5

# The host answers when it has read everything.
read -r word <&5
timeout 30 sync
poweroff -f
